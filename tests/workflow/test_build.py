"""Members built from a tiny search: whole, exact, each expert stored once, and giving the logits of the search."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_merge.errors import BudgetTooSmall, InputError, RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.searching.evaluation import Evaluator
from hf_merge.serving.model import MergeModel
from hf_merge.serving.selection import MEMBERS_FOLDER
from hf_merge.storing import front as fronts
from hf_merge.storing.front import FrontPoint
from hf_merge.storing.library import Member
from hf_merge.storing.strict_json import loads
from hf_merge.workflow.build import build, choose_points
from hf_merge.workflow.configurations import configuration_of, new_builder
from hf_merge.workflow.family_router import ROUTER_FILE, ROUTER_REPORT, read_router
from hf_merge.workflow.project import DTYPES, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.run_folder import FRONT_FILE, RECIPE_FILE, read_run
from hf_merge.workflow.search import search
from tests.tiny_runs import TinyRun


def unbuilt(run: TinyRun, folder: Path) -> Path:
    """Returns a copy of the run as its search left it."""
    folder.mkdir()
    for name in (RECIPE_FILE, FRONT_FILE, "journal.jsonl"):
        shutil.copy(run.folder / name, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every file; the lock's are the time of its last holder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_front_and_both_controls_are_built(tiny_run: TinyRun) -> None:
    every = {point.id for point in (*tiny_run.front.points, *tiny_run.front.controls.values())}
    assert {path.name for path in tiny_run.members} == every
    assert {path.name for path in (tiny_run.folder / MEMBERS_FOLDER).iterdir()} == every


def test_a_loaded_model_gives_bit_for_bit_the_logits_that_the_search_saw(tiny_run: TinyRun) -> None:
    require_the_logits_of_the_search(tiny_run.recipe, tiny_run.front.points, tiny_run.folder)


def test_so_does_one_that_was_searched_in_bfloat16(tiny_run: TinyRun, tmp_path: Path) -> None:
    settings = {**tiny_run.document["search"], "dtype": "bfloat16", "evaluations": 4}
    recipe = Recipe.parse(tiny_run.document | {"search": settings}, "test")
    front = search(recipe, tmp_path / "run", progress=False)
    build(tmp_path / "run", progress=False)
    require_the_logits_of_the_search(recipe, front.points, tmp_path / "run")


def require_the_logits_of_the_search(recipe: Recipe, points: Sequence[FrontPoint], folder: Path) -> None:
    with open_project(recipe) as project:
        rows = {task: data.search for task, data in load_rows(project.recipe, project.heads).items()}
        runs = task_runs(project, rows, Reader(project))
        evaluator = Evaluator(new_builder(project, folder, read_run(folder)[0]), runs, DTYPES[recipe.search.dtype])
        for point in points:
            model = MergeModel.from_pretrained(folder, budget=point.cost)
            assert model.chain_map.id == point.id
            for task, run in evaluator.runs.items():
                chain = evaluator.builder.chain(configuration_of(point, evaluator.builder), task)
                seen = evaluator.logits(task, chain)
                for batch in run.batches:
                    given = model(task=task, **batch.inputs).logits[:, : seen.shape[1]].float()
                    assert torch.equal(given, seen[list(batch.rows)])


def test_a_member_takes_exactly_the_bytes_that_its_cost_says(tiny_run: TinyRun) -> None:
    for folder in tiny_run.members:
        chain_map = Member(folder).chain_map
        held = sum(expert.bytes for expert in chain_map.experts)
        held += sum(entry.bytes for entry in chain_map.heads.values())
        assert held == round(4 * chain_map.base.parameters * chain_map.cost)


def test_every_expert_is_stored_once_and_is_in_a_chain(tiny_run: TinyRun) -> None:
    for folder in tiny_run.members:
        chain_map = Member(folder).chain_map
        stored = [expert.id for expert in chain_map.experts]
        assert len(set(stored)) == len(stored)
        assert {identifier for chain in chain_map.chains.values() for identifier in chain} == set(stored)


def test_equal_experts_of_two_members_are_equal_bytes(tiny_run: TinyRun) -> None:
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for folder in tiny_run.members:
        member = Member(folder)
        for entry in member.chain_map.experts:
            decoded = member.expert(entry)
            known = seen.setdefault(entry.id, decoded)
            assert all(torch.equal(known[name], tensor) for name, tensor in decoded.items())


def test_a_second_build_writes_the_same_and_trains_no_second_router(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tmp_path / "family"
    first = build(tiny_run.folder, family, progress=False, max_configs=2)
    before = contents(family)
    (family / f".{'0' * 16}.part").write_bytes(b"of a killed build")
    monkeypatch.setattr(
        "hf_merge.workflow.family_router.train_router", lambda *_: pytest.fail("the router is there already")
    )
    assert build(tiny_run.folder, family, progress=False, max_configs=2) == first
    assert contents(family) == before
    again = tiny_run.folder / MEMBERS_FOLDER
    for folder in first:
        there = contents(again / folder.name)
        there["README.md"] = contents(folder)["README.md"]  # it tells of the report, which may be there by now
        assert contents(folder) == there


def test_a_router_that_was_trained_from_something_else_is_trained_anew(tiny_run: TinyRun, tmp_path: Path) -> None:
    family = tmp_path / "family"
    before = contents(tiny_run.folder / MEMBERS_FOLDER / build(tiny_run.folder, family, max_configs=1)[0].name)
    router, report = (family / ROUTER_FILE).read_bytes(), (family / ROUTER_REPORT).read_bytes()
    (family / ROUTER_FILE).write_bytes(b"of another run")
    (family / ROUTER_REPORT).write_bytes(report.replace(b'"origin": "', b'"origin": "0'))
    (member,) = build(tiny_run.folder, family, progress=False, max_configs=1)
    assert (family / ROUTER_FILE).read_bytes() == router == (member / ROUTER_FILE).read_bytes()
    assert (family / ROUTER_REPORT).read_bytes() == report
    assert contents(member)["chains.json"] == before["chains.json"]


def test_a_family_of_other_weights_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    family = tmp_path / "family"
    build(tiny_run.folder, family, progress=False, max_configs=1)
    front = fronts.read(family / FRONT_FILE)
    task = next(iter(front.task_sha256))
    other = replace(front, task_sha256={**front.task_sha256, task: "0" * 64})
    (family / FRONT_FILE).write_bytes(fronts.dump(other))
    before = contents(family)
    with pytest.raises(
        RunFolderError, match=f"weights of .*{task}.* are not those that .*family was searched on.*--out"
    ):
        build(tiny_run.folder, family, progress=False, max_configs=1)
    assert contents(family) == before


def test_a_run_folder_is_known_under_another_name(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tiny_run.folder)
    monkeypatch.chdir(tmp_path)
    front = (tiny_run.folder / FRONT_FILE).read_bytes()
    (member,) = build(Path("link"), tiny_run.folder, progress=False, max_configs=1)
    assert member.resolve().parent == (tiny_run.folder / MEMBERS_FOLDER).resolve()
    assert (tiny_run.folder / FRONT_FILE).read_bytes() == front


def test_the_router_of_a_family_reads_back_and_tells_its_accuracy(tiny_run: TinyRun) -> None:
    report = loads((tiny_run.folder / ROUTER_REPORT).read_bytes(), "router.json", limit_bytes=10_000)
    assert isinstance(report, dict) and set(report) == {"layers", "accuracy", "origin"}
    with open_project(tiny_run.recipe) as project:
        router, eyes = read_router(tiny_run.folder, project)
    assert (router.tasks, eyes.layers) == (3, 0)
    for folder in tiny_run.members:
        assert (folder / ROUTER_FILE).read_bytes() == (tiny_run.folder / ROUTER_FILE).read_bytes()


def test_one_task_is_built_without_a_router_and_loads(tiny_run: TinyRun, tmp_path: Path) -> None:
    document = tiny_run.document | {"tasks": tiny_run.document["tasks"][:1]}
    search(Recipe.parse(document, "test"), tmp_path / "one", progress=False)
    (member,) = build(tmp_path / "one", progress=False)
    assert not (tmp_path / "one" / ROUTER_FILE).exists()
    (answer,) = MergeModel.from_pretrained(member).predict(["the small cat sleeps"])
    assert answer.task == "animals"


def test_points_are_chosen_by_name_by_number_or_all(tiny_run: TinyRun) -> None:
    front = tiny_run.front
    assert choose_points(front, [front.points[1].id], None) == [front.points[1]]
    thinned = choose_points(front, (), 2)
    assert thinned == [front.points[0], front.points[-1]]
    with pytest.raises(InputError, match="There is no configuration 'c9999'"):
        choose_points(front, ["c9999"], None)
    with pytest.raises(InputError, match="at least 1"):
        choose_points(front, (), 0)


def test_budgets_choose_the_best_that_fits(tiny_run: TinyRun) -> None:
    points = tiny_run.front.points
    assert MergeModel.from_pretrained(tiny_run.folder).chain_map.id == points[-1].id
    assert MergeModel.from_pretrained(tiny_run.folder, budget=99.0).chain_map.id == points[-1].id
    with pytest.raises(BudgetTooSmall, match=points[0].id) as caught:
        MergeModel.from_pretrained(tiny_run.folder, budget=points[0].cost / 2)
    least = MergeModel.from_pretrained(tiny_run.folder, budget=f"{round(4 * caught.value.least * 29344) + 1}B")
    assert least.chain_map.id == points[0].id


def test_a_run_that_is_none_or_has_not_ended_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no recipe\.yaml"):
        build(tmp_path, progress=False)
    folder = unbuilt(tiny_run, tmp_path / "run")
    (folder / FRONT_FILE).unlink()
    with pytest.raises(RunFolderError, match=r"has not ended.*--resume"):
        build(folder, progress=False)


def test_a_family_folder_that_is_not_ours_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds 'thesis\.tex', which hf-merge did not write"):
        build(tiny_run.folder, tmp_path, progress=False)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_file_is_no_family_folder(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        build(tiny_run.folder, tmp_path / "file", progress=False)


def test_the_family_of_another_recipe_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / RECIPE_FILE).write_text("another")
    with pytest.raises(RunFolderError, match="family of another recipe"):
        build(tiny_run.folder, tmp_path, progress=False)
    assert contents(tmp_path) == {RECIPE_FILE: b"another"}


def test_weights_that_changed_since_the_search_are_refused(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_merge.storing.digests.sha256_of", lambda _: "0" * 64)
    with pytest.raises(RunFolderError, match=r"The weights of .* are not those that .* was searched on"):
        build(tiny_run.folder, tmp_path / "family", progress=False)
    assert not (tmp_path / "family").exists()
