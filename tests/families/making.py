"""A family on disk: its random base, fine-tunes that are the base plus noise under random heads, data, a recipe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_merge.recipe import Recipe
from tests.families.catalogue import SIDE, FamilySpec
from tests.tiny_models import LABELS, new_tokenizer, write_data


TASKS = ("animals", "colours")
ROWS = {"train": 12, "validation": 6, "test": 6}
LOADERS: Mapping[str, Any] = {"text": AutoModelForSequenceClassification, "image": AutoModelForImageClassification}
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
        """Returns a recipe of four evaluations."""
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
        searching = {"population": 4, "evaluations": 4, "offspring": 4, "validation_rows": 6, "batch_size": 4}
        document = {
            "base": {"model": str(self.base)},
            "tasks": tasks,
            "search": searching | search,
            "router": {"rows_per_task": 8, "epochs": 1},
        }
        return Recipe.parse(document, "recipe")


def make_data(kind: str, folder: Path) -> dict[str, dict[str, Path]]:
    """Writes the rows of the two tasks, of texts or images."""
    return {task: write_data(kind, task, folder / task, ROWS, 0) for task in TASKS}


def make_family(spec: FamilySpec, folder: Path, data: Mapping[str, Mapping[str, Path]]) -> MadeFamily:
    """Writes base and fine-tunes into a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base: PreTrainedModel = AutoModel.from_config(spec.config())
        _add_noise(base)
        base.save_pretrained(folder / "base")
        _save_reader(spec, folder / "base")
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


def _save_reader(spec: FamilySpec, folder: Path) -> None:
    if spec.kind == "text":
        new_tokenizer("distilbert").save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
