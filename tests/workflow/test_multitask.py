"""A multi-task model as a row: its own heads on one backbone, and nothing else taken for one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hf_merge.errors import InputError, ModelMismatch
from hf_merge.recipe import Recipe
from hf_merge.workflow.compare import MULTITASK, PRETRAINED, compare
from hf_merge.workflow.multitask import open_multitask
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]


def _recipe(family: TinyFamily) -> Recipe:
    return Recipe.parse(
        family.recipe(search={"validation_rows": 20}, router={"rows_per_task": 12, "epochs": 2}), "test"
    )


def _save(family: TinyFamily, folder: Path) -> Path:
    """Writes the base's backbone under each fine-tune's own head, as multi-task training would leave its own."""
    base = load_file(family.base / "model.safetensors")
    for name, task in family.tasks.items():
        shutil.copytree(task.folder, folder / name)
        file = folder / name / "model.safetensors"
        tensors = {key: base.get(key.removeprefix("bert."), tensor) for key, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    return folder


def test_the_row_is_that_of_its_backbone_under_its_heads(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("bert")
    folder = _save(family, tmp_path / "multitask")
    found = compare(_recipe(family), chosen=["average"], multitask=folder, routed=True, progress=False)
    rows = {row.name: row for row in found.rows}
    row, base = rows[MULTITASK], rows[PRETRAINED]
    assert row.scores == pytest.approx(base.scores) and row.validation == pytest.approx(base.validation)
    assert (row.cost, row.kind) == (base.cost, "reference")
    assert row.routed_scores == pytest.approx(base.routed_scores)


def test_fine_tunes_of_their_own_are_no_multi_task_model(tiny_family: Families) -> None:
    family = tiny_family("bert")
    with (
        pytest.raises(InputError, match=r"differ in '.*': these are several models and not one"),
        open_multitask(_recipe(family), family.base.parent),
    ):
        pass


def test_a_task_without_a_checkpoint_is_named(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("bert")
    folder = _save(family, tmp_path / "multitask")
    shutil.rmtree(folder / "colours")
    with pytest.raises(InputError, match="holds no folder 'colours'"), open_multitask(_recipe(family), folder):
        pass


def test_a_model_of_another_base_is_refused(tiny_family: Families, tmp_path: Path) -> None:
    family, other = tiny_family("bert"), tiny_family("distilbert")
    for name in family.tasks:
        shutil.copytree(other.tasks["animals"].folder, tmp_path / name)
    with pytest.raises(ModelMismatch), open_multitask(_recipe(family), tmp_path):
        pass
