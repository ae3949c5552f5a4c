"""`hf-merge report --analyses`: every number recomputed from front, test table, or plain transformers models."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import AutoModel, AutoTokenizer

from hf_merge.errors import ModelMismatch, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.searching.metrics import score
from hf_merge.searching.tasks import load_task
from hf_merge.storing import front as fronts
from hf_merge.storing import results
from hf_merge.storing.durable import FolderLock
from hf_merge.storing.front import Front
from hf_merge.workflow.analyses import (
    ALL_RUNS,
    ANALYSES_FILE,
    ASSOCIATIONS_PLOT,
    SENSITIVITY_PLOT,
    TABLES_FILE,
    UTILITY_PLOT,
    analyse,
)
from hf_merge.workflow.build import build
from hf_merge.workflow.findings import Analyses, as_markdown
from hf_merge.workflow.report import report
from hf_merge.workflow.run_folder import FRONT_FILE, REPORT_FILE
from hf_merge.workflow.search import search
from tests.tiny_models import TinyFamily, load_task_model
from tests.tiny_runs import ROUTER, SEARCH, TinyRun


Families = Callable[[str], TinyFamily]
pytestmark = pytest.mark.slow  # every test is a whole command or two


def measured_run(document: dict[str, Any], folder: Path) -> Path:
    """Returns a run folder that was searched, built and measured."""
    search(Recipe.parse(document, "test"), folder, progress=False)
    build(folder, configs=[fronts.read(folder / FRONT_FILE).points[0].id], progress=False)
    report(folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def measured(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the run that was measured on test rows, not to be changed but by analyses."""
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("measured") / "run"))
    report(folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def other_seed(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = tiny_run.family.recipe(search=SEARCH | {"seed": 1, "evaluations": 12}, router=ROUTER)
    return measured_run(document, tmp_path_factory.mktemp("other") / "run")


@pytest.fixture(scope="module")
def pooled(measured: Path, other_seed: Path) -> Analyses:
    return analyse(measured, further=[other_seed], progress=False)


@pytest.fixture
def copy(measured: Path, tmp_path: Path) -> Path:
    """Returns a copy of a measured run, to be changed."""
    return Path(shutil.copytree(measured, tmp_path / "run"))


def points_of(run: Path) -> list[tuple[float, float, float]]:
    """Returns a front as triples (C, P on validation rows, P on test rows), by rising C."""
    front, table = fronts.read(run / FRONT_FILE), results.read(run / REPORT_FILE)
    rows = {row.id: row.oracle for row in table.rows}
    return sorted((point.cost, point.performance, rows[point.id]) for point in front.points)


def test_the_utility_of_storage_is_that_of_fronts_and_test_tables(
    pooled: Analyses, measured: Path, other_seed: Path
) -> None:
    assert [row.run for row in pooled.utility] == [ALL_RUNS, str(measured), str(other_seed)]
    steps: list[list[tuple[float, float]]] = [[], []]
    for row, run in zip(pooled.utility[1:], (measured, other_seed), strict=True):
        for found, column in ((row.validation_steps, 1), (row.test_steps, 2)):
            expected = [
                ((first[0] + second[0]) / 2, (second[column] - first[column]) / (second[0] - first[0]))
                for first, second in pairwise(points_of(run))
            ]
            assert list(found) == [pytest.approx(pair) for pair in expected]
            steps[column - 1] += expected
    together = pooled.utility[0]
    for correlation, pairs in ((together.validation, steps[0]), (together.test, steps[1])):
        assert correlation.pairs == len(pairs) >= 3
        assert correlation.rho == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
        assert correlation.p is not None and 0 < correlation.p <= 1


def test_associations_count_the_configurations_of_all_fronts(
    pooled: Analyses, tiny_run: TinyRun, other_seed: Path
) -> None:
    points = [*tiny_run.front.points, *fronts.read(other_seed / FRONT_FILE).points]
    assert pooled.configurations == len(points)
    assert tuple(pooled.associations) == tiny_run.front.components
    for index, matrix in enumerate(pooled.associations.values()):
        for one in range(3):
            for other in range(3):
                together = sum(point.grouping[index][one] == point.grouping[index][other] for point in points)
                assert matrix[one][other] == pytest.approx(together / len(points))


def test_all_tasks_kept_apart_score_as_the_control_of_the_search(pooled: Analyses, tiny_run: TinyRun) -> None:
    assert pooled.separate == tiny_run.front.controls["all-separate"].scores
    drops = [row.drop for row in pooled.sensitivity]
    assert drops == sorted(drops, reverse=True) and any(drop != 0 for drop in drops)
    assert {row.component for row in pooled.sensitivity} == set(tiny_run.front.components)


def test_a_components_sensitivity_is_that_of_plain_models_with_it_merged(
    tiny_family: Families, tmp_path: Path
) -> None:
    """At full precision, where a merged component is base plus scaled task vectors, worked out here by hand."""
    family = tiny_family("bert")
    document = family.recipe(search=SEARCH | {"evaluations": 4}, router=ROUTER, merge={"codecs": ["full"]})
    run = measured_run(document, tmp_path / "run")
    found = analyse(run, progress=False)
    front = fronts.read(run / FRONT_FILE)
    (member,) = (run / "members").iterdir()
    tensors = {
        entry["name"]: entry["tensors"] for entry in json.loads((member / "chains.json").read_text())["components"]
    }
    base = AutoModel.from_pretrained(family.base).state_dict()
    tuned = {name: load_task_model("text", task.folder) for name, task in family.tasks.items()}
    own = {name: {key: value.clone() for key, value in model.state_dict().items()} for name, model in tuned.items()}
    rows = {
        spec.name: load_task(
            spec, validation_rows=24, router_rows=60, seed=0, num_labels=family.tasks[spec.name].num_labels,
            label_names=family.tasks[spec.name].labels,
        ).search
        for spec in Recipe.parse(document, "test").tasks
    }  # fmt: skip

    def scored(name: str) -> float:
        encoded = AutoTokenizer.from_pretrained(family.base)(
            list(rows[name].texts or ()), padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = tuned[name](**encoded).logits
        answers = logits[:, 0] if family.tasks[name].labels is None else logits.argmax(dim=1)
        return score(family.tasks[name].metric, answers.numpy(), rows[name].labels)

    kept = {name: scored(name) for name in tuned}
    assert found.separate == pytest.approx(kept, abs=1e-4)
    for row in found.sensitivity:
        for name, model in tuned.items():
            changed = dict(own[name])
            for tensor in tensors[row.component]:
                vectors = sum((part[f"bert.{tensor}"] - base[tensor] for part in own.values()), torch.zeros(()))
                changed[f"bert.{tensor}"] = base[tensor] + front.method["scale"] * vectors
            model.load_state_dict(changed)
            assert row.drops[name] == pytest.approx(kept[name] - scored(name), abs=1e-4), row.component
        assert row.drop == pytest.approx(sum(row.drops.values()) / 3)


def test_what_is_written_is_what_is_returned(pooled: Analyses, measured: Path) -> None:
    assert json.loads((measured / ANALYSES_FILE).read_text()) == json.loads(json.dumps(pooled.as_json()))
    assert (measured / TABLES_FILE).read_text() == as_markdown(pooled)
    for name in (ASSOCIATIONS_PLOT, SENSITIVITY_PLOT, UTILITY_PLOT):
        assert (measured / name).read_bytes().startswith(b"\x89PNG")


def test_one_run_alone_stands_for_itself(copy: Path) -> None:
    found = analyse(copy, progress=False)
    assert [row.run for row in found.utility] == list(found.runs) == [str(copy)]
    assert found.unseen is None


def test_adapters_share_their_base_and_it_is_no_finding(
    tiny_adapters: Callable[[str, str], TinyFamily], tmp_path: Path
) -> None:
    document = tiny_adapters("bert", "ia3").recipe(search=SEARCH | {"evaluations": 4}, router=ROUTER)
    run = measured_run(document, tmp_path / "run")
    found = analyse(run, progress=False)
    own = set(fronts.read(run / FRONT_FILE).components) - {"base"}
    assert set(found.associations) == {row.component for row in found.sensitivity} == own


# What is refused


def test_a_run_that_was_not_measured_is_refused(copy: Path) -> None:
    (copy / REPORT_FILE).unlink(missing_ok=True)
    with pytest.raises(RunFolderError, match=f"was not measured on test rows. Run: hf-merge report {copy}"):
        analyse(copy, progress=False)


def test_a_run_that_was_not_built_is_refused(copy: Path) -> None:
    (copy / "router.safetensors").unlink()
    with pytest.raises(RunFolderError, match=f"not built yet. Run: hf-merge build {copy}"):
        analyse(copy, progress=False)


def test_a_run_to_pool_must_be_measured_too(measured: Path, copy: Path) -> None:
    (copy / REPORT_FILE).unlink()
    with pytest.raises(RunFolderError, match=f"Run: hf-merge report {copy}"):
        analyse(measured, further=[copy], progress=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "ties", "density": 0.2}}, "method is {'name': 'ties', 'density': 0.2} there and"),
        ({"base_sha256": "0" * 64}, f"base_sha256 is {'0' * 64} there and "),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_not_pooled(
    measured: Path, copy: Path, changes: dict[str, Any], said: str
) -> None:
    front: Front = fronts.read(copy / FRONT_FILE)
    (copy / FRONT_FILE).write_bytes(fronts.dump(replace(front, **changes)))
    with pytest.raises(RunFolderError, match="cannot be pooled with") as refused:
        analyse(measured, further=[copy], progress=False)
    assert said in str(refused.value)


def test_a_run_is_not_pooled_with_itself(measured: Path) -> None:
    with pytest.raises(RunFolderError, match="is named twice"):
        analyse(measured, further=[measured / ".." / measured.name], progress=False)


def test_a_run_of_one_task_has_nothing_to_share(tiny_family: Families, tmp_path: Path) -> None:
    document = tiny_family("bert").recipe(search=SEARCH | {"evaluations": 4}, router=ROUTER)
    document["tasks"] = document["tasks"][:1]
    with pytest.raises(RunFolderError, match="has one task, 'animals'"):
        analyse(measured_run(document, tmp_path / "run"), progress=False)


def test_a_front_of_other_weights_is_refused(copy: Path) -> None:
    front = fronts.read(copy / FRONT_FILE)
    other = replace(front, task_sha256=dict(front.task_sha256) | {"animals": "0" * 64})
    (copy / FRONT_FILE).write_bytes(fronts.dump(other))
    with pytest.raises(RunFolderError, match="The weights of task animals are not those"):
        analyse(copy, progress=False)


def test_a_run_that_is_being_worked_on_is_left_alone(copy: Path) -> None:
    with FolderLock(copy), pytest.raises(RunFolderError, match="is in use by process"):
        analyse(copy, progress=False)


def test_what_was_refused_wrote_nothing(tiny_family: Families, copy: Path) -> None:
    for name in (ANALYSES_FILE, TABLES_FILE):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelMismatch):
        analyse(copy, unseen=Recipe.parse(tiny_family("distilbert").recipe(), "test"), progress=False)
    assert not (copy / ANALYSES_FILE).exists() and not (copy / TABLES_FILE).exists()
