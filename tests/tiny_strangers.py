"""Tasks of a tiny family's base that no run of it merged."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny_models import LABELS, ROWS, TinyFamily, TinyTask, fine_tune, write_data


def build_strangers(family: TinyFamily, folder: Path, names: tuple[str, ...] = ("weather",)) -> TinyFamily:
    """Returns a family of further fine-tunes of a text family's base, made like its own."""
    tasks = {}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for name in names:
            data = write_data(family.kind, name, folder / f"{name}-data", ROWS, 7)
            fine_tune(family.layout, family.base, folder / name, LABELS[name], data["train"])
            tasks[name] = TinyTask(name, folder / name, LABELS[name], "accuracy", data)
    return TinyFamily(family.layout, family.kind, family.base, tasks)


def recipe_of(strangers: TinyFamily, **sections: Any) -> dict[str, Any]:
    """Returns a recipe of strangers."""
    return strangers.recipe(router={"rows_per_task": 12}, **sections)
