"""Families of tiny models: a random base, fine-tunes that are the base plus noise, and data that their heads know.

Everything is real transformers 5 on disk: folders of `save_pretrained` with a tokenizer or an image processor, and
Parquet files. No model is trained. The noise is seeded, and the last layer of each head is fitted by least squares to
the task's train rows, so that fine-tunes are right most of the time, the base under their heads less often, and
merged models somewhere between.
"""

import io
import json
import random
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    CLIPForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


TEXT_LAYOUTS = ("bert", "roberta", "distilbert", "gpt2")
IMAGE_LAYOUTS = ("vit", "clip_vision", "dinov2")
LAYOUTS = TEXT_LAYOUTS + IMAGE_LAYOUTS
WIDTH, LAYERS, POSITIONS, IMAGE_SIDE = 32, 3, 32, 16
SAMPLING_RATE = 16000
ROWS = {"train": 160, "validation": 60, "test": 60}
NOISE = 0.15

# One word of the first list's labels is in every row of that task; the filler words tell the tasks apart for a router.
LABELS = {
    "animals": ("cat", "dog"),
    "colours": ("red", "green", "blue"),
    "weather": ("sun", "rain", "snow", "wind"),
    "sizes": ("one", "two", "three", "four", "five"),
}
FILLERS = {
    "animals": ["the", "small", "old", "friendly", "hungry", "sleeps", "runs"],
    "colours": ["paint", "bright", "wall", "a", "pale", "shade", "dark"],
    "weather": ["today", "tomorrow", "cold", "warm", "forecast", "sky", "near"],
    "sizes": ["about", "metres", "long", "box", "of", "weighs", "pounds"],
}
_LOADERS: Mapping[str, Any] = {"text": AutoModelForSequenceClassification, "image": AutoModelForImageClassification}
WORDS = sorted({word for lists in (LABELS, FILLERS) for words in lists.values() for word in words})


@dataclass(frozen=True)
class TinyTask:
    """One task: `labels` is None for a regression, `files` are Parquet files by split; `adapter` if peft wrote it."""

    name: str
    folder: Path
    labels: tuple[str, ...] | None
    metric: str
    files: Mapping[str, Path]
    adapter: bool = False

    @property
    def num_labels(self) -> int:
        return len(self.labels) if self.labels is not None else 1


@dataclass(frozen=True)
class TinyFamily:
    """A base and its fine-tunes; `kind` is `text` or `image`, which is also the name of the data's column."""

    layout: str
    kind: str
    base: Path
    tasks: Mapping[str, TinyTask]

    def recipe(self, **sections: Any) -> dict[str, Any]:
        """Returns a recipe for the family, as the YAML would hold it; `sections` are `merge`, `search`, `router`.

        Its preset is `paper`, where `search` names none: most tests count what one method and one codec give.
        """
        tasks = [
            {
                "name": task.name,
                "adapter" if task.adapter else "model": str(task.folder),
                "metric": task.metric,
                "data": {
                    "path": "parquet",
                    "data_files": {split: str(file) for split, file in task.files.items()},
                    **self.columns(task),
                },
            }
            for task in self.tasks.values()
        ]
        return {
            "base": {"model": str(self.base)},
            "tasks": tasks,
            **sections,
            "search": {"preset": "paper", **sections.get("search", {})},
        }

    def columns(self, task: TinyTask) -> dict[str, Any]:
        """Returns what a recipe says of the columns of a task's data."""
        return {self.kind: self.kind, "label": "label"}


def build_family(layout: str, folder: Path, *, rows: Mapping[str, int] = ROWS, seed: int = 0) -> TinyFamily:
    """Returns a family of three tasks with 2, 3 and 4 labels; of `bert` the third is a regression instead."""
    kind = "image" if layout in IMAGE_LAYOUTS else "text"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = new_base(layout)
        base.save_pretrained(folder / "base")
        save_reader(layout, folder / "base")
        tasks = {}
        for name in ("animals", "colours", "sizes" if layout == "bert" else "weather"):
            data = write_data(kind, name, folder / f"{name}-data", rows, seed)
            labels = None if name == "sizes" else LABELS[name]
            fine_tune(layout, folder / "base", folder / name, labels, data["train"])
            metric = "pearson_spearman" if labels is None else "accuracy"
            tasks[name] = TinyTask(name, folder / name, labels, metric, data)
    return TinyFamily(layout, kind, folder / "base", tasks)


def config_of(layout: str, **changes: Any) -> PreTrainedConfig:
    """Returns the configuration of a layout's base, with `changes`."""
    wide = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "initializer_range": 0.1}
    blocks = {**wide, "intermediate_size": 2 * WIDTH}
    image = {"image_size": IMAGE_SIDE, "patch_size": 8}
    text = {"vocab_size": len(vocabulary(layout)), "max_position_embeddings": POSITIONS}
    settings: dict[str, dict[str, Any]] = {
        "bert": {**text, **blocks},
        "roberta": {
            **text, **blocks, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1,
            "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
        },
        "distilbert": {
            **text, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 2 * WIDTH, "initializer_range": 0.1,
        },
        "gpt2": {
            "vocab_size": text["vocab_size"], "n_positions": POSITIONS, "n_embd": WIDTH, "n_layer": LAYERS,
            "n_head": 2, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0,
        },
        "vit": {**blocks, **image},
        "dinov2": {**wide, **image, "mlp_ratio": 2},
        "clip_vision": {
            "vision_config": {**blocks, **image, "initializer_factor": 4.0, "projection_dim": 8},
            "text_config": {**blocks, "vocab_size": 20, "projection_dim": 8},
            "projection_dim": 8,
        },
    }  # fmt: skip
    return AutoConfig.for_model(layout.removesuffix("_vision"), **(settings[layout] | changes))


def new_base(layout: str) -> PreTrainedModel:
    """Returns a random base; `clip_vision` comes with a head, for CLIP's vision model alone has a type of its own."""
    config = config_of(layout)
    made: Any = CLIPForImageClassification if layout == "clip_vision" else AutoModel.from_config
    model: PreTrainedModel = made(config)
    return _evaluating(model)


def fine_tune(layout: str, base: Path, out: Path, labels: tuple[str, ...] | None, train: Path) -> None:
    """Saves the base plus noise, with a head fitted to the train rows."""
    kind = "image" if layout in IMAGE_LAYOUTS else "text"
    names = dict(enumerate(labels or ("LABEL_0",)))
    padding = {"pad_token_id": 0} if layout == "gpt2" else {}  # without it GPT-2 classifies one row at a time
    model: PreTrainedModel = (
        _LOADERS[kind]
        .from_pretrained(
            base,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            problem_type="regression" if labels is None else "single_label_classification",
            ignore_mismatched_sizes=True,
            **padding,
        )
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            width = NOISE * (float(parameter.std()) if parameter.numel() > 1 else 0.1) + 0.01
            parameter.add_(torch.randn(parameter.shape), alpha=width)
    table = pyarrow.parquet.read_table(train).to_pydict()
    save_reader(layout, out)
    fit_head(model, inputs_of(kind, out, table), torch.tensor(table["label"]), regression=labels is None)
    model.save_pretrained(out)


def write_data(kind: str, task: str, folder: Path, rows: Mapping[str, int], seed: int) -> dict[str, Path]:
    """Writes distinct rows into one Parquet file per split; every label occurs in each."""
    rng = random.Random(f"{task} {seed}")
    folder.mkdir(parents=True)
    files: dict[str, Path] = {}
    seen: set[str | bytes] = set()
    for split, count in rows.items():
        items: list[str | bytes] = []
        labels: list[int] = []
        while len(items) < count:
            label = len(items) % len(LABELS[task])
            item = _MAKERS[kind](task, label, rng)
            if item not in seen:
                seen.add(item)
                items.append(item)
                labels.append(label)
        cells = items if kind == "text" else [{"bytes": item, "path": None} for item in items]
        numbers = [label + 1.5 for label in labels] if task == "sizes" else labels
        files[split] = folder / f"{split}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({kind: cells, "label": numbers}), files[split])
    return files


def vocabulary(layout: str) -> dict[str, int]:
    """Returns the words of a layout's tokenizer with their numbers, special tokens first."""
    special = {
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "gpt2": ["<|endoftext|>"],
    }.get(layout, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return {word: number for number, word in enumerate([*special, *WORDS])}


def save_reader(layout: str, folder: Path) -> None:
    """Writes a tokenizer, or the configuration of an image processor, into a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout in TEXT_LAYOUTS:
        new_tokenizer(layout).save_pretrained(folder)
        return
    kind = {"vit": "ViTImageProcessor", "clip_vision": "CLIPImageProcessor", "dinov2": "BitImageProcessor"}[layout]
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    settings = {
        "image_processor_type": kind, "do_resize": True, "size": side, "do_center_crop": False, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def new_tokenizer(layout: str) -> PreTrainedTokenizerFast:
    """Returns a word-level tokenizer with the layout's special tokens; GPT-2's has no padding token, as in life."""
    words = vocabulary(layout)
    if layout == "gpt2":
        inner = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
        roles = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    elif layout == "roberta":
        inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
        roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    else:
        inner = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
        inner.post_processor = processors.BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
        roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "token_type_ids", "attention_mask"] if layout == "bert" else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=POSITIONS, model_input_names=names, padding_side="right", **roles
    )


def pictures(cells: list[dict[str, Any]]) -> list[Image.Image]:
    """Returns the images in a column of a Parquet file."""
    return [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells]


def samples_in(content: bytes) -> NDArray[np.float32]:
    """Returns the samples of a WAV file of one channel and 16 bits."""
    with wave.open(io.BytesIO(content)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(32768)


def load_task_model(kind: str, folder: Path) -> PreTrainedModel:
    """Returns a fine-tune as transformers itself loads it."""
    model: PreTrainedModel = _LOADERS[kind].from_pretrained(folder)
    return _evaluating(model)


def _evaluating(model: PreTrainedModel) -> PreTrainedModel:
    model.train(False)
    return model


def _text(task: str, label: int, rng: random.Random) -> str:
    words = rng.choices(FILLERS[task], k=rng.randint(3, 7))
    words.insert(rng.randrange(len(words) + 1), LABELS[task][label])
    return " ".join(words)


def _picture(task: str, label: int, rng: random.Random) -> bytes:
    """Returns a PNG of noise: the task chooses the colour, the label a quarter that is brighter."""
    channel = ("animals", "colours", "weather").index(task)
    noise = bytes(rng.randrange(60) for _ in range(IMAGE_SIDE * IMAGE_SIDE * 3))
    image = Image.frombytes("RGB", (IMAGE_SIDE, IMAGE_SIDE), noise)
    half = IMAGE_SIDE // 2
    corner = (half * (label % 2), half * (label // 2))
    bright = tuple(220 if part == channel else 90 for part in range(3))
    image.paste(Image.blend(image.crop((0, 0, half, half)), Image.new("RGB", (half, half), bright), 0.8), corner)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def _sound(task: str, label: int, rng: random.Random) -> bytes:
    """Returns a WAV file of at most an eighth of a second: the task chooses the pitch, the label the overtone."""
    rows = np.arange(rng.randint(SAMPLING_RATE // 20, SAMPLING_RATE // 8)) / SAMPLING_RATE
    pitch = 200 * (1 + list(LABELS).index(task))
    tones = np.sin(2 * np.pi * pitch * rows) + np.sin(2 * np.pi * pitch * (label + 2) * rows)
    noise = np.array([rng.uniform(-0.2, 0.2) for _ in rows])
    return wav_of((tones + noise) / 4)


def wav_of(samples: NDArray[Any], rate: int = SAMPLING_RATE) -> bytes:
    """Returns samples between -1 and 1, [samples] or [samples, channels], as a WAV file of 16 bits."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return stream.getvalue()


_MAKERS: Mapping[str, Callable[[str, int, random.Random], str | bytes]] = {
    "text": _text,
    "image": _picture,
    "audio": _sound,
}


def inputs_of(kind: str, folder: Path, table: Mapping[str, list[Any]]) -> dict[str, Tensor]:
    """Returns all rows as one batch."""
    if kind == "text":
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return dict(tokenizer(table["text"], padding=True, return_tensors="pt"))
    images = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in pictures(table["image"])]
    pixels = torch.stack(images).view(-1, IMAGE_SIDE, IMAGE_SIDE, 3).permute(0, 3, 1, 2)
    return {"pixel_values": (pixels.float() / 255 - 0.5) / 0.5}


@torch.no_grad()
def fit_head(model: PreTrainedModel, inputs: dict[str, Tensor], labels: Tensor, *, regression: bool) -> None:
    """Sets the model's last linear layer to the ridge regression of the labels on what it is given."""
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(**inputs)
    handle.remove()
    features = seen[0]
    if features.ndim == 3:  # GPT-2 scores every position; the last real one counts
        last = inputs["attention_mask"].sum(dim=1) - 1
        features = features[torch.arange(len(features)), last]
    targets = labels.float()[:, None] if regression else nn.functional.one_hot(labels).float() * 8 - 4
    if layer.bias is not None:
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    gram = features.T @ features + 1e-3 * len(features) * torch.eye(features.shape[1])
    solution = torch.linalg.solve(gram, features.T @ targets).T
    layer.weight.copy_(solution[:, : layer.in_features])
    if layer.bias is not None:
        layer.bias.copy_(solution[:, -1])
