"""Makes the eight fine-tuned models of the benchmark suite `vision`, scores them, and writes a recipe to merge them.

    python examples/vision_suite.py --data DATA --base DINOV2 --cache CACHE
    hf-merge search CACHE/recipe.yaml --out RUN

`DATA/suites.json` names the tasks of the suite and, relative to DATA, their Parquet files; `DINOV2` is the folder of a
DINOv2 model with patches of 14 pixels. All of a model is fine-tuned, with a linear head, on pictures of 56 x 56
pixels: 16 patches, for which the position embeddings are interpolated. A model that is already in CACHE is not made
again, whatever base or settings made it: name another CACHE for others.
"""

import argparse
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from finetune import FineTuning, loss, parameter_groups, quality, rate
from PIL import Image
from text_suite import SPLITS, score, table, write_recipe, write_text
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedModel,
)
from transformers.utils.logging import set_verbosity


SIDE = 56
# Steps of a task, whatever the number of its rows; a gentle rate for all of a pre-trained vision model.
STEPS = 320
EVERY = 64  # after so many steps it is looked how good the model is on validation rows
SETTINGS = FineTuning(learning_rate=1e-4)
# The processor of DINOv2, but for the side: no crop, for small pictures have what matters at their edges too.
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
FINISHED_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


@dataclass(frozen=True)
class VisionTask:
    """A task of the suite: its name, its Parquet files by split, and the names of its labels in order."""

    name: str
    files: dict[str, Path]
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """Rows ready for a model: pixels `[rows, 3, SIDE, SIDE] float32`, and labels `[rows] int64`."""

    pixels: Tensor
    labels: Tensor


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description="Make and score the models of suite vision, and a recipe that merges them."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of suites.json and the Parquet files it names"
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of a DINOv2 model with patches of 14 pixels")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models, scores.json and recipe.yaml")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these of the suite's tasks")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of a task")
    parser.add_argument("--validation-rows", type=int, default=400, help="rows a task that the recipe searches by")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="what the recipe computes in"
    )
    chosen = parser.parse_args(arguments)
    set_verbosity(logging.ERROR)
    cache: Path = chosen.cache.resolve()
    suite = read_suite(chosen.data.resolve())
    unknown = set(chosen.tasks or ()) - {task.name for task in suite}
    if unknown:
        parser.error(f"no such tasks: {', '.join(sorted(unknown))}; the suite has {[task.name for task in suite]}")
    tasks = [task for task in suite if chosen.tasks is None or task.name in chosen.tasks]
    base = prepare_base(chosen.base.resolve(), cache / "base")
    scores = make_and_score(base, tasks, cache, chosen.steps)
    entries = [recipe_task(task, cache / task.name) for task in tasks]
    write_recipe(base, entries, cache, chosen.validation_rows, chosen.dtype)
    print(table({task.name: scores[task.name] for task in tasks}))


def read_suite(data: Path) -> list[VisionTask]:
    """Reads the tasks of suite `vision`."""
    suite = json.loads((data / "suites.json").read_text(encoding="utf-8"))["suites"]["vision"]["tasks"]
    return [
        VisionTask(
            described["name"],
            {split: data / file for split, file in described["files"].items()},
            tuple(described["label_names"]),
        )
        for described in suite
    ]


def prepare_base(base: Path, out: Path) -> Path:
    """Returns a folder of the base with the suite's processor beside it, which it may lack or have for other sizes."""
    if not all((out / name).is_file() for name in FINISHED_FILES):
        out.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(base / name, out / name)
        write_text(out / "preprocessor_config.json", json.dumps(PROCESSOR, indent=2) + "\n")
    return out


def make_and_score(base: Path, tasks: Sequence[VisionTask], cache: Path, steps: int) -> dict[str, Any]:
    """Makes what the cache lacks and scores what is new; returns the content of `scores.json`, by task name."""
    file = cache / "scores.json"
    scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    processor = AutoImageProcessor.from_pretrained(base, backend="pil")
    for task in tasks:
        folder = cache / task.name
        finished = all((folder / name).is_file() for name in FINISHED_FILES)
        if finished and task.name in scores:
            continue
        rows = {split: read_rows(path, processor) for split, path in task.files.items()}
        if not finished:
            fine_tune(base, task, rows, folder, steps)
        found = score_task(base, rows, folder)
        scores[task.name] = {"metric": "accuracy", "settings": settings(steps), **found}
        write_text(file, json.dumps(scores, indent=2) + "\n")
    return scores


def settings(steps: int) -> dict[str, Any]:
    """Returns how a task was trained, for `scores.json`."""
    used = ("learning_rate", "batch_size", "seed", "weight_decay", "warmup")
    return {"steps": steps} | {name: getattr(SETTINGS, name) for name in used}


def read_rows(file: Path, processor: BaseImageProcessor) -> Pictures:
    """Reads and processes the rows of one Parquet file."""
    rows = pyarrow.parquet.read_table(file, columns=["image", "label"]).to_pydict()
    pixels = [
        processor(images=Image.open(BytesIO(cell["bytes"])).convert("RGB"), return_tensors="pt")["pixel_values"]
        for cell in rows["image"]
    ]
    return Pictures(torch.cat(pixels), torch.tensor(rows["label"]))


def fine_tune(base: Path, task: VisionTask, rows: dict[str, Pictures], out: Path, steps: int) -> None:
    """Fine-tunes all of the base on one task; `out` appears only when all of it is written."""
    with torch.random.fork_rng():
        torch.manual_seed(SETTINGS.seed)
        model = new_model(base, task)
        train_model(model, rows, task.name, steps)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(unfinished)
        write_text(unfinished / "preprocessor_config.json", json.dumps(PROCESSOR, indent=2) + "\n")
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def new_model(base: Path, task: VisionTask) -> PreTrainedModel:
    """Returns the base with a new head for the task, in float32, on the accelerator if there is one."""
    config = AutoConfig.from_pretrained(
        base,
        id2label=dict(enumerate(task.label_names)),
        label2id={name: number for number, name in enumerate(task.label_names)},
        problem_type="single_label_classification",
    )
    model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(base, config=config, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return model


def train_model(model: PreTrainedModel, rows: dict[str, Pictures], title: str, steps: int) -> None:
    """Trains a model in place and leaves it with the best weights that were looked at, by `quality` on validation."""
    train, validation = rows["train"], rows["validation"]
    optimizer = torch.optim.AdamW(
        parameter_groups(model, SETTINGS.weight_decay), lr=SETTINGS.learning_rate, fused=True
    )
    schedule = LambdaLR(optimizer, partial(rate, int(SETTINGS.warmup * steps), steps))
    batches = shuffled_batches(len(train.labels), torch.Generator().manual_seed(SETTINGS.seed))
    best, best_weights = -math.inf, model.state_dict()
    with tqdm(total=steps, desc=title, unit="step") as progress:
        for step in range(1, steps + 1):
            model.train()
            rows_of_step = next(batches)
            optimizer.zero_grad()
            logits = forward(model, train.pixels[rows_of_step])
            torch.autograd.backward(loss(logits, train.labels[rows_of_step].to(model.device)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update()
            if step % EVERY and step < steps:
                continue
            reached = quality(predict(model, validation.pixels), validation.labels)
            progress.set_postfix(validation=f"{reached:.4f}")
            if reached > best:
                best, best_weights = reached, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_weights)


def shuffled_batches(rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields row numbers in batches, epoch after epoch, each in an order of its own."""
    while True:
        yield from torch.randperm(rows, generator=generator).split(SETTINGS.batch_size)


def forward(model: PreTrainedModel, pixels: Tensor, autocast: bool = True) -> Tensor:
    """Runs the model on pixels; returns logits `[batch, labels] float32`."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits: Tensor = model(pixel_values=pixels.to(model.device)).logits
    return logits.float()


def predict(model: PreTrainedModel, pixels: Tensor, autocast: bool = True) -> Tensor:
    """Returns the logits `[rows, labels] float32` of all rows, on the CPU."""
    model.train(False)
    with torch.inference_mode():
        return torch.cat([forward(model, part, autocast).cpu() for part in pixels.split(64)])


def score_task(base: Path, rows: dict[str, Pictures], folder: Path) -> dict[str, dict[str, float]]:
    """Scores a fine-tuned model and its two controls, in float32; see `text_suite.score_task`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).to(device)
    logits = {"fine_tuned": [predict(model, rows[split].pixels, autocast=False) for split in SPLITS]}
    model.base_model.load_state_dict(AutoModel.from_pretrained(base, dtype=torch.float32).state_dict())
    logits["pre_trained"] = [predict(model, rows[split].pixels, autocast=False) for split in SPLITS]
    labels = rows["train"].labels
    logits["majority"] = [torch.bincount(labels).float().expand(len(rows[split].labels), -1) for split in SPLITS]
    return {
        name: {
            split: score("accuracy", found, rows[split].labels)
            for split, found in zip(SPLITS, logits[name], strict=True)
        }
        for name in ("majority", "pre_trained", "fine_tuned")
    }


def recipe_task(task: VisionTask, folder: Path) -> dict[str, Any]:
    """Returns a task's entry in the recipe."""
    files = {split: str(path) for split, path in task.files.items()}
    data = {"path": "parquet", "data_files": files, "image": "image", "label": "label"}
    return {"name": task.name, "model": str(folder), "data": data, "metric": "accuracy"}


if __name__ == "__main__":
    main()
