"""A family on disk: its random base, fine-tunes that are the base plus noise under random heads, data, a recipe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_merge.recipe import Recipe
from tests.families.catalogue import SIDE, FamilySpec
from tests.tiny_models import LABELS, SAMPLING_RATE, new_tokenizer, write_data


TASKS = ("animals", "colours")
ROWS = {"train": 12, "validation": 6, "test": 6}
LOADERS: Mapping[str, Any] = {
    "text": AutoModelForSequenceClassification,
    "image": AutoModelForImageClassification,
    "audio": AutoModelForAudioClassification,
}
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
    "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}  # fmt: skip


@dataclass(frozen=True)
class MadeFamily:
    """A base, its fine-tunes by task, and the rows of each task by split; all of it paths."""

    spec: FamilySpec
    base: Path
    tuned: Mapping[str, Path]
    data: Mapping[str, Mapping[str, Path]]

    def recipe(self, **search: Any) -> Recipe:
        """Returns a recipe of four evaluations by preset `paper`, unless `search` says otherwise."""
        tasks = [
            {
                "name": task,
                "model": str(self.tuned[task]),
                "data": {
                    "path": "parquet",
                    "data_files": {split: str(file) for split, file in self.data[task].items()},
                    self.spec.kind: self.spec.kind,
                },
            }
            for task in self.tuned
        ]
        counts = {"population": 4, "evaluations": 4, "offspring": 4, "validation_rows": 6, "batch_size": 4}
        document = {
            "base": {"model": str(self.base)},
            "tasks": tasks,
            "search": {"preset": "paper", **counts, **search},
            "router": {"rows_per_task": 8, "epochs": 1},
        }
        return Recipe.parse(document, "recipe")


def make_data(kind: str, folder: Path) -> dict[str, dict[str, Path]]:
    """Writes the rows of the two tasks, of texts, images or sounds."""
    return {task: write_data(kind, task, folder / task, ROWS, 0) for task in TASKS}


def make_family(spec: FamilySpec, folder: Path, data: Mapping[str, Mapping[str, Path]]) -> MadeFamily:
    """Writes base and fine-tunes into a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base: PreTrainedModel = AutoModel.from_config(spec.config())
        _add_noise(base)
        base.save_pretrained(folder / "base")
        save_reader(spec, folder / "base")
        for task in TASKS:
            names = dict(enumerate(LABELS[task]))
            model: PreTrainedModel = LOADERS[spec.kind].from_pretrained(
                folder / "base", id2label=names, label2id={name: index for index, name in names.items()}
            )
            _add_noise(model)
            model.save_pretrained(folder / task)
    return MadeFamily(spec, folder / "base", {task: folder / task for task in TASKS}, data)


@torch.no_grad()
def _add_noise(model: PreTrainedModel) -> None:
    """Changes every weight a little, and every statistic of a batch normalisation."""
    for parameter in model.parameters():
        width = 0.3 * float(parameter.std()) + 0.03 if parameter.numel() > 1 else 0.03
        parameter.add_(torch.randn(parameter.shape), alpha=width)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(torch.randn(buffer.shape), alpha=0.1)
        elif name.endswith("running_var"):
            buffer.mul_(torch.rand(buffer.shape) + 0.5)


def save_reader(spec: FamilySpec, folder: Path) -> None:
    """Writes the tokenizer, image processor or feature extractor of a family into a folder."""
    if spec.kind == "text":
        new_tokenizer("distilbert").save_pretrained(folder)
        return
    settings = _PROCESSOR if spec.kind == "image" else _extractor(spec)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _extractor(spec: FamilySpec) -> dict[str, Any]:
    """Returns the settings of the feature extractor that models of a family come with."""
    common = {"sampling_rate": SAMPLING_RATE, "padding_value": 0.0}
    if spec.name == "whisper":
        frames = {"chunk_length": 1, "hop_length": SAMPLING_RATE // 100, "n_fft": 400}
        return common | frames | {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 8}
    if spec.name == "audio-spectrogram-transformer":
        return common | {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 16, "max_length": 64}
    masked = spec.settings.get("feat_extract_norm") == "layer"
    return common | {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True, "return_attention_mask": masked,
        "feature_size": 1,
    }  # fmt: skip
