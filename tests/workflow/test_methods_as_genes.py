"""Several merge methods in a recipe: searched component by component, built, loaded, told; and AutoMerge's preset."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import RecipeError
from hf_merge.recipe import Recipe
from hf_merge.recipe.presets import AUTOMERGE_METHODS
from hf_merge.searching.evaluation import weighted_score
from hf_merge.storing.results import read as read_report
from hf_merge.workflow.build import build
from hf_merge.workflow.configurations import new_builder
from hf_merge.workflow.project import open_project
from hf_merge.workflow.report import report
from hf_merge.workflow.run_folder import REPORT_FILE, read_run
from hf_merge.workflow.search import search
from hf_merge.workflow.tables import front_table
from tests.tiny_models import TinyFamily
from tests.workflow.test_build import require_the_logits_of_the_search


Families = Callable[[str], TinyFamily]
METHODS = ["average", {"name": "ties", "density": 0.5}, "task_arithmetic"]
FEW = {"population": 6, "evaluations": 14, "validation_rows": 20}


def _recipe(family: TinyFamily, methods: Any = METHODS, **search: Any) -> Recipe:
    return Recipe.parse(family.recipe(merge={"methods": methods}, search={**FEW, **search}), "test")


@pytest.mark.slow
def test_what_a_search_chose_is_built_measured_and_loaded(tiny_family: Families, tmp_path: Path) -> None:
    recipe, run = _recipe(tiny_family("distilbert")), tmp_path / "run"
    front = search(recipe, run, progress=False)
    merged = [point for point in front.points if point.id != front.controls["all-separate"].id]
    assert {method["name"] for point in merged for method in point.methods or ()} > {"average"}
    folders = build(run, progress=False)
    require_the_logits_of_the_search(recipe, front.points, run)
    for folder in folders:
        point = front.point(folder.name)
        assert point is not None and point.methods is not None
        chains = json.loads((folder / "chains.json").read_text())
        chosen = dict(zip(front.components, point.methods, strict=True))
        for expert in chains["experts"]:
            if len(expert["members"]) > 1:
                assert expert["method"] == chosen[expert["component"]]
    assert "a method for each component, int8 (unit tensor, policy always)" in front_table(front)
    card = (folders[0] / "README.md").read_text()
    assert "merged by" in card and "one of several, chosen for each component" in card
    measured = report(run, progress=False)
    assert measured == read_report(run / REPORT_FILE) and len(measured.rows) > len(front.points)


@pytest.mark.slow
def test_an_interrupted_search_continues_to_the_same_front(tiny_family: Families, tmp_path: Path) -> None:
    recipe = _recipe(tiny_family("distilbert"))
    whole = search(recipe, tmp_path / "whole", progress=False)
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "journal.jsonl").write_bytes(b"".join(lines[:8]))
    (tmp_path / "cut" / "front.json").unlink()
    assert search(recipe, tmp_path / "cut", resume=True, progress=False) == whole


@pytest.mark.slow
def test_automerge_keeps_one_group_and_beats_or_equals_every_single_method(
    tiny_family: Families, tmp_path: Path
) -> None:
    alone = len(AUTOMERGE_METHODS)
    changed = {"preset": "automerge", **FEW, "population": 20, "evaluations": alone + 4}
    recipe = Recipe.parse(tiny_family("bert").recipe(search=changed), "test")
    assert len(recipe.merge.methods) == alone
    front = search(recipe, tmp_path / "run", progress=False)
    assert all(set(column) == {0} for point in front.points for column in point.grouping)
    journal = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    tried = [entry for entry in (line.get("record", line) for line in journal) if entry.get("kind") == "evaluation"]
    uniform = [entry["performance"] for entry in tried if len(set(entry["methods"])) == 1]
    assert len(uniform) == alone and len(tried) == alone + 4
    assert max(point.performance for point in front.points) >= max(uniform)


def test_tasks_far_from_the_mean_count_more_where_asked(tiny_family: Families, tmp_path: Path) -> None:
    front = search(_recipe(tiny_family("distilbert"), deviation=1.0), tmp_path / "run", progress=False)
    for point in front.points:
        values = list(point.scores.values())
        mean = sum(values) / len(values)
        far = max(abs(value - mean) for value in values)
        weights = [1 + (abs(value - mean) / far if far else 0.0) for value in values]
        expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        assert point.performance == pytest.approx(expected)
    assert any(point.performance != pytest.approx(sum(point.scores.values()) / 3) for point in front.points)


def test_equal_scores_weigh_the_same() -> None:
    assert weighted_score({"a": 0.5, "b": 0.5}, 1.0) == 0.5
    assert weighted_score({"a": 0.0, "b": 0.9}, 0.0) == 0.45


def test_a_method_given_twice_is_refused(tiny_family: Families, tmp_path: Path) -> None:
    doubled = ["average", {"name": "ties"}, {"name": "ties", "density": 0.2}]
    with pytest.raises(RecipeError, match=r"merge.methods gives .*'ties'.* twice"):
        search(_recipe(tiny_family("bert"), doubled), tmp_path / "run", progress=False)


@pytest.mark.slow
def test_codecs_are_chosen_component_by_component_built_and_loaded(tiny_family: Families, tmp_path: Path) -> None:
    document = tiny_family("distilbert").recipe(merge={"codecs": ["int8", "int4"]}, search={**FEW, "evaluations": 20})
    recipe, run = Recipe.parse(document, "test"), tmp_path / "run"
    front = search(recipe, run, progress=False)
    stored = {codec["name"] for point in front.points for codec in point.codecs or ()}
    assert stored == {"int8", "int4"}
    assert all(point.codecs is not None and point.methods is None for point in front.points)
    assert "task_arithmetic (scale 0.4), a codec for each component" in front_table(front)
    folders = build(run, progress=False)
    require_the_logits_of_the_search(recipe, front.points, run)
    for folder in folders:
        point = front.point(folder.name)
        assert point is not None and point.codecs is not None
        chains = json.loads((folder / "chains.json").read_text())
        chosen = {name: codec["name"] for name, codec in zip(front.components, point.codecs, strict=True)}
        assert all(expert["codec"] == chosen[expert["component"]] for expert in chains["experts"])
        held = sum(expert["bytes"] for expert in chains["experts"]) + sum(
            head["bytes"] for head in chains["heads"].values()
        )
        assert held == pytest.approx(4 * point.cost * front.parameters, rel=1e-9)
    assert "stored as" in (folders[0] / "README.md").read_text()
    with open_project(recipe) as project:
        space, builder = project.space(), new_builder(project)
        four, eight = (builder.cost(space.all_separate(codec)) for codec in (1, 0))
        assert four < eight and front.reference[0] == pytest.approx(1.1 * eight)


def test_a_codec_given_twice_is_refused(tiny_family: Families, tmp_path: Path) -> None:
    document = tiny_family("bert").recipe(merge={"codecs": ["int8", {"name": "int8", "policy": "always"}]})
    with pytest.raises(RecipeError, match=r"merge.codecs gives .*'int8'.* twice"):
        search(Recipe.parse(document, "test"), tmp_path / "run", progress=False)


def test_a_front_of_a_single_method_is_written_as_before(tiny_family: Families, tmp_path: Path) -> None:
    search(_recipe(tiny_family("distilbert"), ["average"], evaluations=6), tmp_path / "run", progress=False)
    assert '"methods"' not in (tmp_path / "run" / "front.json").read_text()
    front, _ = read_run(tmp_path / "run")
    assert all(point.methods is None for point in front.points)


def test_components_may_be_named_by_patterns(tiny_family: Families, tmp_path: Path) -> None:
    family = tiny_family("distilbert")
    document = family.recipe(merge={"segments": {"late": ["*layer.2*"]}}, search={**FEW, "evaluations": 6})
    recipe = Recipe.parse(document, "test")
    front = search(recipe, tmp_path / "run", progress=False)
    assert front.granularity == "segments" and front.components == ("late", "rest")
    build(tmp_path / "run", progress=False)
    require_the_logits_of_the_search(recipe, front.points, tmp_path / "run")
    document["merge"]["segments"] = {"late": ["*layer.9*"]}
    with pytest.raises(RecipeError, match="no tensor belongs to 'late'"):
        search(Recipe.parse(document, "test"), tmp_path / "other", progress=False)
