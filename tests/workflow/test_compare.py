"""`hf-merge compare`: every number is the one that the method, the report or the plain model gives."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_merge.errors import RecipeError, RunFolderError
from hf_merge.merging import methods
from hf_merge.modeling.inputs import restore
from hf_merge.recipe import Recipe
from hf_merge.searching.metrics import score
from hf_merge.searching.tasks import load_task
from hf_merge.storing import front as fronts
from hf_merge.storing import results
from hf_merge.workflow.build import build
from hf_merge.workflow.compare import INDIVIDUAL, INT8, PRETRAINED, compare
from hf_merge.workflow.comparison import Comparison, Row, as_text, searched_rows
from hf_merge.workflow.family_router import read_router
from hf_merge.workflow.merge import merge
from hf_merge.workflow.project import Reader, open_project
from hf_merge.workflow.report import report
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.run_folder import FRONT_FILE, REPORT_FILE
from hf_merge.workflow.search import search
from tests.tiny_models import TinyFamily
from tests.tiny_runs import TinyRun


Families = Callable[[str], TinyFamily]
SMALL = {"validation_rows": 20}
DYNAMIC = ("EMR-Merging", "Twin-Merging")
pytestmark = pytest.mark.slow  # every test is a whole command or two


def _rows(comparison: Comparison) -> dict[str, Row]:
    return {row.name: row for row in comparison.rows}


@pytest.fixture(scope="module")
def compared(tiny_family: Families, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("comparison") / "out"
    recipe = Recipe.parse(tiny_family("bert").recipe(search=SMALL, router={"rows_per_task": 12}), "test")
    few = {"adamerging": {"steps": 3}}
    return compare(recipe, settings=few, out=out, routed=True, progress=False), out


def test_every_method_has_a_row_beside_the_fine_tunes_and_the_base(compared: tuple[Comparison, Path]) -> None:
    rows = _rows(compared[0])
    assert list(rows)[:3] == [INDIVIDUAL, INT8, PRETRAINED]
    assert set(rows) == {INDIVIDUAL, INT8, PRETRAINED, *methods.available(), *DYNAMIC}
    for name in methods.available():
        row = rows[name]
        assert row.note is None and row.seconds is not None and row.seconds > 0
        assert row.kind == "static" and row.peak_megabytes is not None and row.peak_megabytes >= 0
        assert row.cost == pytest.approx(rows[PRETRAINED].cost)
        assert row.test == pytest.approx(np.mean(list(row.scores.values())))
    assert rows[INDIVIDUAL].normalised == 1.0
    assert rows[INDIVIDUAL].cost == pytest.approx(3 * (rows[PRETRAINED].cost or 0), rel=0.01)
    assert (rows[INT8].cost or 9) < 0.3 * (rows[INDIVIDUAL].cost or 0)


@pytest.mark.parametrize("method", ["task_arithmetic", "tsv", "regmean"])
def test_a_rows_scores_are_those_of_the_model_that_merge_writes(
    tiny_family: Families, compared: tuple[Comparison, Path], tmp_path: Path, method: str
) -> None:
    family, kept = tiny_family("bert"), compared[1] / "gathered"
    document = family.recipe(search=SMALL, router={"rows_per_task": 12})
    recipe = Recipe.parse(document, "test")
    for spec in recipe.tasks:
        out = tmp_path / spec.name
        merge(recipe, out, method=method, head=spec.name, gathered=kept, progress=False)
        model: Any = AutoModelForSequenceClassification.from_pretrained(out).eval()
        labels = family.tasks[spec.name].labels
        rows = load_task(
            spec,
            validation_rows=20,
            router_rows=12,
            seed=0,
            num_labels=len(labels) if labels else 1,
            label_names=labels,
        ).test
        encoded = AutoTokenizer.from_pretrained(out)(list(rows.texts or ()), padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**encoded).logits
        answers = logits[:, 0].numpy() if labels is None else logits.argmax(dim=1).numpy()
        expected = score(spec.metric, answers, rows.labels)
        assert _rows(compared[0])[method].scores[spec.name] == pytest.approx(expected, abs=1e-4)


def test_what_was_gathered_before_is_said_not_to_be_in_the_time(
    tiny_family: Families, compared: tuple[Comparison, Path], tmp_path: Path
) -> None:
    shutil.copytree(compared[1] / "gathered", tmp_path / "out" / "gathered")
    recipe = Recipe.parse(tiny_family("bert").recipe(search=SMALL, router={"rows_per_task": 12}), "test")
    again = _rows(compare(recipe, chosen=["average", "regmean"], out=tmp_path / "out", progress=False))
    assert "was there from before" in (again["regmean"].remark or "")
    first = _rows(compared[0])
    assert all(rows[name].remark is None for rows, name in ((again, "average"), (first, "regmean"), (first, "fisher")))


def test_what_is_written_is_what_is_returned(compared: tuple[Comparison, Path]) -> None:
    comparison, out = compared
    assert json.loads((out / "comparison.json").read_text()) == json.loads(json.dumps(comparison.as_json()))
    table = (out / "comparison.md").read_text()
    for row in comparison.rows:
        assert f"{row.test:.4f}" in table
    assert len(as_text(comparison).splitlines()) == 2 + len(comparison.rows) + len(DYNAMIC)
    with Image.open(out / "comparison.png") as image:
        assert image.format == "PNG" and image.width > 600


def test_dynamic_peers_have_rows_with_their_cost_and_how_it_is_counted(compared: tuple[Comparison, Path]) -> None:
    rows = _rows(compared[0])
    heads = (rows[PRETRAINED].cost or 0) - 1
    emr, twin = (rows[name] for name in DYNAMIC)
    assert emr.cost == pytest.approx(1 + 3 / 32 + heads, rel=1e-3)
    assert "with the base, which it needs too, 1 more" in (emr.remark or "")
    assert 1 + heads < (twin.cost or 0) < 3 and dict(twin.settings) == {"scale": 0.4, "keep": 0.1}
    for row in (emr, twin):
        assert row.kind == "peer" and row.peak_megabytes is not None and row.seconds is not None
        assert row.test == pytest.approx(np.mean(list(row.scores.values())))


def test_under_routing_rows_that_go_astray_are_wrong(tiny_family: Families, compared: tuple[Comparison, Path]) -> None:
    comparison, out = compared
    recipe = Recipe.parse(tiny_family("bert").recipe(search=SMALL, router={"rows_per_task": 12}), "test")
    own = {}
    with open_project(recipe) as project:
        data, reader = load_rows(project.recipe, project.heads), Reader(project)
        found, eyes = read_router(out, project)
        for index, (task, part) in enumerate(data.items()):
            sent = restore(batches := reader.batches(part.test), [found.route(eyes.pooled(b.inputs)) for b in batches])
            own[task] = float((sent == index).float().mean())
    assert 0 < min(own.values()) < 1
    for row in comparison.rows:
        assert row.routed == pytest.approx(np.mean(list(row.routed_scores.values())))
        for task in ("animals", "colours"):  # at most the rows that stayed can be right
            assert row.routed_scores[task] <= min(own[task], row.scores[task]) or row.name == "Twin-Merging"
            assert row.routed_scores[task] >= row.scores[task] - (1 - own[task]) or row.name == "Twin-Merging"
            assert row.routed_scores[task] <= own[task]


def test_the_routed_scores_are_those_of_the_report(tiny_run: TinyRun, measured: Path, tmp_path: Path) -> None:
    own = results.read(measured / REPORT_FILE).scores("individual")
    found = _rows(compare(tiny_run.recipe, chosen=["average"], out=tmp_path, routed=True, progress=False))
    assert own is not None  # the same recipe gives the same router
    assert found[INDIVIDUAL].routed_scores == pytest.approx(own.routed_scores)


def test_fine_tunes_at_8_bits_are_so_where_the_recipe_stores_nothing_in_8_bits(
    tiny_family: Families, tmp_path: Path
) -> None:
    merging = {"codecs": [{"name": "int8", "policy": "never"}]}
    recipe = Recipe.parse(tiny_family("bert").recipe(search=SMALL, merge=merging), "test")
    rows = _rows(compare(recipe, chosen=["average"], out=tmp_path / "out", progress=False))
    assert (rows[INT8].cost or 9) < 0.3 * (rows[INDIVIDUAL].cost or 0)


def test_without_being_asked_no_router_is_trained(tiny_run: TinyRun, tmp_path: Path) -> None:
    found = compare(tiny_run.recipe, chosen=["twin"], out=tmp_path, progress=False)
    assert all(row.routed is None for row in found.rows) and not (tmp_path / "router.safetensors").exists()
    assert [row.name for row in found.rows if row.kind == "peer"] == ["Twin-Merging"]


def test_what_a_search_found_stands_beside_it(tiny_run: TinyRun, measured: Path) -> None:
    comparison = compare(tiny_run.recipe, chosen=["average"], runs=[measured], progress=False)
    rows, front = _rows(comparison), tiny_run.front
    own = str(front.method["name"])
    best = max(front.points, key=lambda point: point.performance)
    top = rows["MERGE G3 (the best)"]
    table = results.read(measured / REPORT_FILE)
    found, own_scores = table.scores(best.id), table.scores("individual")
    assert found is not None and own_scores is not None
    assert (top.cost, top.test, top.routed, top.runs) == (best.cost, found.oracle, found.routed, 1)
    assert top.scores == found.oracle_scores
    assert rows[INDIVIDUAL].scores == pytest.approx(own_scores.oracle_scores)
    least = rows["MERGE G1 (beats its method)"]
    cheaper = [point for point in front.points if point.performance > (rows[own].validation or 0)]
    assert least.cost == min(point.cost for point in cheaper)


def test_two_runs_become_a_mean(tiny_run: TinyRun, measured: Path, tmp_path: Path) -> None:
    front, table = tiny_run.front, results.read(measured / REPORT_FILE)
    shutil.copytree(measured, tmp_path / "other")
    best, second = sorted(front.points, key=lambda point: -point.performance)[:2]
    fewer = replace(front, points=tuple(point for point in front.points if point.id != best.id))
    (tmp_path / "other" / FRONT_FILE).write_bytes(fronts.dump(fewer))
    runs = [measured, tmp_path / "other"]
    top = _rows(compare(tiny_run.recipe, chosen=["average"], runs=runs, progress=False))["MERGE G3 (the best)"]
    one, other = table.scores(best.id), table.scores(second.id)
    assert one is not None and other is not None and top.runs == 2
    assert top.cost == pytest.approx((one.cost + other.cost) / 2)
    assert top.test == pytest.approx((one.oracle + other.oracle) / 2)
    assert top.cost_deviation == pytest.approx(abs(one.cost - other.cost) / np.sqrt(2))
    assert top.test_deviation == pytest.approx(abs(one.oracle - other.oracle) / np.sqrt(2))


@pytest.fixture(scope="module")
def automerged(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a measured run of preset `automerge` on the checkpoints of the tiny run."""
    folder = tmp_path_factory.mktemp("automerged") / "run"
    section = {"preset": "automerge", "evaluations": 6, "population": 4, "validation_rows": 24}
    recipe = Recipe.parse(tiny_run.document | {"search": section}, "as automerge")
    search(recipe, folder, progress=False)
    build(folder, progress=False)
    report(folder, progress=False)
    return folder


def test_searches_for_one_merged_model_have_a_row_of_their_own(
    tiny_run: TinyRun, measured: Path, automerged: Path
) -> None:
    runs = [automerged, measured]
    rows = _rows(compare(tiny_run.recipe, chosen=["average"], runs=runs, progress=False))
    front = fronts.read(automerged / FRONT_FILE)
    best = max(front.points, key=lambda point: point.performance)
    found = results.read(automerged / REPORT_FILE).scores(best.id)
    row = rows["AutoMerge"]
    assert found is not None and (row.cost, row.test, row.runs) == (best.cost, found.oracle, 1)
    assert row.kind == "searched"
    assert rows["MERGE G3 (the best)"].runs == 1


def test_only_searches_for_one_merged_model_leave_out_merges_rows(tiny_run: TinyRun, automerged: Path) -> None:
    rows = _rows(compare(tiny_run.recipe, chosen=["average"], runs=[automerged], progress=False))
    assert [name for name, row in rows.items() if row.kind == "searched"] == ["AutoMerge"]


def test_the_folder_of_a_search_is_left_alone(tiny_run: TinyRun) -> None:
    with pytest.raises(RunFolderError, match="holds a run or a family, whose router would be replaced"):
        compare(tiny_run.recipe, chosen=["average"], out=tiny_run.folder, progress=False)
    assert not (tiny_run.folder / "comparison.json").exists()


@pytest.mark.parametrize(("name", "said"), [("twin", "takes none here"), ("tsv", "is not compared, but ties")])
def test_settings_that_nothing_would_read_are_refused(tiny_run: TinyRun, name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=f"A setting is given to '{name}', which {said}"):
        compare(tiny_run.recipe, chosen=["ties"], settings={name: {"scale": 0.5}}, progress=False)


def test_the_folder_of_a_family_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    build(tiny_run.folder, tmp_path, progress=False, max_configs=1)
    router = (tmp_path / "router.safetensors").read_bytes()
    with pytest.raises(RunFolderError, match="holds a run or a family"):
        compare(tiny_run.recipe, chosen=["average"], out=tmp_path, progress=False, routed=True)
    assert (tmp_path / "router.safetensors").read_bytes() == router


def test_an_unknown_method_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(RecipeError, match="Unknown merge method 'tise'"):
        compare(tiny_run.recipe, chosen=["tise"], progress=False)


def test_a_method_that_cannot_handle_the_models_says_so_in_its_row(
    tiny_adapters: Callable[[str, str], TinyFamily],
) -> None:
    recipe = Recipe.parse(tiny_adapters("bert", "ia3").recipe(search=SMALL), "test")
    rows = _rows(compare(recipe, chosen=["fisher", "average", "emr", "twin"], progress=False))
    for name in DYNAMIC:
        assert rows[name].test is None
        assert rows[name].note == f"{name} works on whole fine-tunes, and these tasks are adapters"
    assert rows["fisher"].test is None and "looks into whole fine-tunes" in (rows["fisher"].note or "")
    assert rows["average"].test is not None
    assert rows[INDIVIDUAL].cost == pytest.approx(1.0, abs=0.1)  # one base and three small adapters


def test_a_point_that_no_run_has_is_told(tiny_run: TinyRun, measured: Path) -> None:
    table = results.read(measured / REPORT_FILE)
    rows = searched_rows([(tiny_run.front, table)], merged=2.0, best=2.0)
    assert [row.note for row in rows] == ["1 of 1 runs have no such point"] * 2 + [None]
    lacking = replace(table, rows=table.rows[:1])
    assert "run hf-merge report again" in (searched_rows([(tiny_run.front, lacking)], 0.0, 0.0)[2].note or "")


def test_settings_by_method_replace_defaults(tiny_family: Families) -> None:
    recipe = Recipe.parse(
        tiny_family("bert").recipe(search=SMALL, merge={"methods": [{"name": "ties", "scale": 0.7}]}), "test"
    )
    chosen = {"ties": {"density": 0.9}, "task_arithmetic": {"scale": 0.1}}
    rows = _rows(compare(recipe, chosen=["task_arithmetic"], settings=chosen, progress=False))
    assert rows["ties"].settings["density"] == 0.9 and rows["ties"].settings["scale"] == 0.7
    assert rows["task_arithmetic"].settings == {"scale": 0.1}
    with pytest.raises(RecipeError, match="Unknown merge method 'tiez'"):
        compare(recipe, settings={"tiez": {"density": 0.9}}, progress=False)
