"""Coefficients fitted inside the groups of a front: kept where validation agrees, built and loaded like any other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_merge.errors import InputError, RecipeError, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.searching.pareto import Reference, hypervolume
from hf_merge.storing import front as fronts
from hf_merge.storing.durable import write_atomic
from hf_merge.workflow.build import build
from hf_merge.workflow.refine import as_text, refine
from hf_merge.workflow.run_folder import FRONT_FILE, REFINEMENT_FILE, read_run
from hf_merge.workflow.search import search
from tests.tiny_models import TinyFamily
from tests.workflow.test_build import require_the_logits_of_the_search


Families = Callable[[str], TinyFamily]
SETTINGS = {"rows": 8.0, "epochs": 3.0}
pytestmark = pytest.mark.slow  # every test is a whole command or two


@pytest.fixture
def run(tiny_family: Families, tmp_path: Path) -> Path:
    """A finished run whose groups are merged poorly, so that there is something to gain."""
    merging = {
        "methods": [{"name": "task_arithmetic", "scale": 0.9}],
        "codecs": [{"name": "int8", "policy": "always"}],
    }
    few = {"population": 6, "evaluations": 14, "validation_rows": 40}
    recipe = Recipe.parse(tiny_family("distilbert").recipe(merge=merging, search=few), "test")
    search(recipe, tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_what_scores_more_replaces_its_point_at_the_same_cost(run: Path) -> None:
    before, recipe = read_run(run)
    found = refine(run, settings=SETTINGS, progress=False)
    after, _ = read_run(run)
    assert [point.id for point in found.points] == [point.id for point in before.points]
    assert any(point.kept for point in found.points)
    names = {point.id for point in after.points}
    for told, old in zip(found.points, before.points, strict=True):
        assert told.performance == old.performance
        if told.note is None:
            assert told.refined_cost is not None and told.refined_performance is not None
            better = told.refined_performance > told.performance and told.refined_cost <= told.cost + 1e-9
            assert told.kept == better
        assert not (told.kept and told.id in names)
    for point in after.points:
        for method in point.methods or ():
            assert method["name"] == "expert_merging" and method["within"] in {old.id for old in before.points}
    assert after.controls == before.controls and after.history == before.history
    box = Reference(*after.reference)
    volume = hypervolume([(point.cost, point.performance) for point in after.points], box)
    assert found.hypervolume_after == after.hypervolume == volume > found.hypervolume_before == before.hypervolume
    assert json.loads((run / REFINEMENT_FILE).read_text()) == json.loads(json.dumps(found.as_json()))
    build(run, progress=False)
    require_the_logits_of_the_search(recipe, after.points, run)
    assert f"{sum(point.kept for point in found.points)} of " in as_text(found)


def test_a_folder_that_does_not_say_which_rows_were_searched_is_refused(run: Path, tmp_path: Path) -> None:
    family = tmp_path / "family"
    build(run, family, progress=False, max_configs=1)
    before = {path.name for path in family.iterdir()}
    with pytest.raises(RunFolderError, match=r"holds no journal\.jsonl that says on which rows"):
        refine(family, settings=SETTINGS, progress=False)
    assert {path.name for path in family.iterdir()} == before


def test_rows_that_changed_since_the_search_are_refused(run: Path) -> None:
    _, recipe = read_run(run)
    before, task = (run / FRONT_FILE).read_bytes(), recipe.tasks[0]
    path = Path((task.data.data_files or {})["validation"])
    kept, table = path.read_bytes(), pyarrow.parquet.read_table(path)
    column = table.column_names.index(task.data.label)
    try:
        turned = table.set_column(column, task.data.label, pyarrow.array(table[column].to_pylist()[::-1]))
        pyarrow.parquet.write_table(turned, path)
        with pytest.raises(RunFolderError, match=f"journal.jsonl: the validation rows of task '{task.name}' are not"):
            refine(run, settings=SETTINGS, progress=False)
    finally:
        path.write_bytes(kept)
    assert (run / FRONT_FILE).read_bytes() == before


def test_a_refined_front_is_never_there_without_its_record(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, written = (run / FRONT_FILE).read_bytes(), []

    def full(path: Path, data: bytes) -> None:
        written.append(path.name)
        if path.name == FRONT_FILE:
            raise OSError(28, "No space left on device")
        write_atomic(path, data)

    monkeypatch.setattr("hf_merge.workflow.refine.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        refine(run, settings=SETTINGS, progress=False)
    assert written == [REFINEMENT_FILE, FRONT_FILE] and (run / FRONT_FILE).read_bytes() == before


def test_a_second_time_the_refined_are_passed_over(run: Path) -> None:
    first = refine(run, settings=SETTINGS, progress=False)
    second = refine(run, settings=SETTINGS, progress=False)
    passed = [point for point in second.points if point.note == "refined before"]
    assert len(passed) == len([p for p in read_run(run)[0].points if p.methods is not None]) > 0
    assert second.hypervolume_before == first.hypervolume_after == second.hypervolume_after


def test_what_merges_nothing_is_passed_over(run: Path) -> None:
    front, _ = read_run(run)
    separate = front.controls["all-separate"]
    points = (*(point for point in front.points if point.id != separate.id), separate)
    (run / FRONT_FILE).write_bytes(fronts.dump(replace(front, points=tuple(sorted(points, key=lambda p: p.cost)))))
    notes = {point.id: point.note for point in refine(run, settings=SETTINGS, progress=False).points}
    assert notes[separate.id] == "merges nothing"


def test_a_refined_run_is_not_resumed_over(run: Path) -> None:
    refine(run, settings=SETTINGS, progress=False)
    before = (run / FRONT_FILE).read_bytes()
    with pytest.raises(RunFolderError, match=r"front that was refined since .* hf-merge build"):
        search(Recipe.load(run / "recipe.yaml"), run, resume=True, progress=False)
    assert (run / FRONT_FILE).read_bytes() == before


def test_chunks_are_fitted_too(run: Path) -> None:
    found = refine(run, method="expert_merging_plus", settings={**SETTINGS, "budget": 2.0}, progress=False)
    assert found.method["name"] == "expert_merging_plus"
    assert any(point.refined_performance is not None for point in found.points)


def test_what_cannot_be_refined_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'ties' fits no coefficients inside groups. Choose expert_merging or"):
        refine(run, method="ties", progress=False)
    with pytest.raises(InputError, match="'adamerging' fits no coefficients"):
        refine(run, method="adamerging", progress=False)
    with pytest.raises(RecipeError, match="unknown setting 'rowz'"):
        refine(run, settings={"rowz": 3}, progress=False)
    with pytest.raises(RunFolderError, match="is no run folder"):
        refine(tmp_path, progress=False)


def test_other_checkpoints_are_refused(run: Path, tiny_family: Families, tmp_path: Path) -> None:
    recipe = (run / "recipe.yaml").read_text()
    folder = next(iter(tiny_family("distilbert").tasks.values())).folder
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = tensors[name] + torch.ones_like(tensors[name])
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    (run / "recipe.yaml").write_text(recipe.replace(f"model: {folder}\n", f"model: {other}\n"))
    with pytest.raises(RunFolderError, match=r"The weights of task \w+ are not those that .* was searched on"):
        refine(run, settings=SETTINGS, progress=False)
