"""A search end to end on a tiny family: the same front whatever interrupts it, and nothing lost."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import RunFolderError
from hf_merge.recipe import Recipe
from hf_merge.searching.evaluation import Evaluator
from hf_merge.storing.durable import FolderLock, Journal
from hf_merge.storing.timings import read_timings
from hf_merge.workflow.run_folder import FRONT_FILE, JOURNAL_FILE, RECIPE_FILE, TIMINGS_FILE
from hf_merge.workflow.search import ALL_MERGED, ALL_SEPARATE, search, search_settings
from tests.tiny_runs import SEARCH, TinyRun


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / JOURNAL_FILE).read_text().splitlines()]


def cut(run: TinyRun, out: Path, lines: int, torn: bytes = b"") -> Path:
    """Returns a run folder as a search leaves it that was killed after so many lines of its journal."""
    out.mkdir()
    shutil.copy(run.folder / RECIPE_FILE, out)
    whole = (run.folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (out / JOURNAL_FILE).write_bytes(b"".join(whole[:lines]) + torn)
    return out


def test_the_same_seed_gives_the_same_front_byte_for_byte(tiny_run: TinyRun, tmp_path: Path) -> None:
    search(tiny_run.recipe, tmp_path / "again", progress=False)
    assert (tmp_path / "again" / FRONT_FILE).read_bytes() == (tiny_run.folder / FRONT_FILE).read_bytes()
    assert (tmp_path / "again" / JOURNAL_FILE).read_bytes() == (tiny_run.folder / JOURNAL_FILE).read_bytes()


@pytest.mark.parametrize(
    "lines", [0, 2, 7, 11, *(pytest.param(lines, marks=pytest.mark.slow) for lines in (1, 4, 10))]
)
def test_a_search_killed_anywhere_resumes_to_the_same_front(tiny_run: TinyRun, tmp_path: Path, lines: int) -> None:
    out = cut(tiny_run, tmp_path / "run", lines, torn=b'{"kind":"evalu' if lines == 7 else b"")
    search(tiny_run.recipe, out, resume=True, progress=False)
    assert (out / FRONT_FILE).read_bytes() == (tiny_run.folder / FRONT_FILE).read_bytes()
    assert (out / JOURNAL_FILE).read_bytes() == (tiny_run.folder / JOURNAL_FILE).read_bytes()


def test_a_resumed_search_runs_no_chain_that_is_in_the_journal(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = cut(tiny_run, tmp_path / "run", 11)
    monkeypatch.setattr(Evaluator, "logits", lambda *_: pytest.fail("a chain of the journal was run again"))
    search(tiny_run.recipe, out, resume=True, progress=False)


def test_times_go_on_where_a_killed_search_left_them(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = cut(tiny_run, tmp_path / "run", 6)  # four evaluations
    whole = (tiny_run.folder / TIMINGS_FILE).read_bytes().splitlines(keepends=True)
    (out / TIMINGS_FILE).write_bytes(b"".join(whole[:4]))
    search(tiny_run.recipe, out, resume=True, progress=False)
    assert (out / TIMINGS_FILE).read_bytes().splitlines(keepends=True)[:4] == whole[:4]
    resumed, undisturbed = (read_timings(folder / TIMINGS_FILE) for folder in (out, tiny_run.folder))
    seconds = [timing.seconds for timing in resumed]
    assert len(seconds) == SEARCH["evaluations"] and seconds == sorted(seconds)
    untimed = [replace(timing, seconds=0.0, blocks_run=0) for timing in resumed]
    assert untimed == [replace(timing, seconds=0.0, blocks_run=0) for timing in undisturbed]


@pytest.mark.parametrize("content", [None, b"", b"no times\n"], ids=["missing", "empty", "damaged"])
def test_a_run_without_its_times_is_resumed_to_the_same_front(
    tiny_run: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    out = cut(tiny_run, tmp_path / "run", 6)
    if content is not None:
        (out / TIMINGS_FILE).write_bytes(content)
    search(tiny_run.recipe, out, resume=True, progress=False)
    for name in (FRONT_FILE, JOURNAL_FILE):
        assert (out / name).read_bytes() == (tiny_run.folder / name).read_bytes()
    assert ("goes on without times" in caplog.text) == (content != b"")
    assert len(read_timings(out / TIMINGS_FILE)) == (5 if content == b"" else 0)


def test_a_function_is_told_what_happens_and_sees_it_on_the_disk(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = cut(tiny_run, tmp_path / "run", 6)
    told: list[str] = []

    def listen(event: Mapping[str, Any]) -> None:
        told.append(event["event"])
        assert (out / FRONT_FILE).exists() == (event["event"] == "finished")
        if "number" in event:
            assert len(records(out)) == 2 + event["number"]

    search(tiny_run.recipe, out, resume=True, progress=listen)
    assert told == ["started", "references", "resumed", *["evaluation"] * 5, "finished"]


def test_a_search_killed_before_its_recipe_was_written_starts_again(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = cut(tiny_run, tmp_path / "run", 0)
    (out / RECIPE_FILE).unlink()
    (out / f".{'0' * 16}.part").write_bytes(b"half a recipe")
    search(tiny_run.recipe, out, progress=False)
    assert (out / FRONT_FILE).read_bytes() == (tiny_run.folder / FRONT_FILE).read_bytes()
    assert not list(out.glob("*.part"))


def test_the_journal_holds_every_real_evaluation(tiny_run: TinyRun) -> None:
    kinds = [record["kind"] for record in records(tiny_run.folder)]
    assert kinds == ["inputs", "references", *["evaluation"] * SEARCH["evaluations"]]
    assert tiny_run.front.history[-1][0] == SEARCH["evaluations"]


def test_the_front_is_one(tiny_run: TinyRun) -> None:
    points = tiny_run.front.points
    assert all(first.cost < second.cost for first, second in pairwise(points))
    assert all(first.performance < second.performance for first, second in pairwise(points))
    scored = {tuple(map(tuple, record["grouping"])) for record in records(tiny_run.folder) if "grouping" in record}
    assert {point.grouping for point in points} <= scored
    assert set(tiny_run.front.controls) == {ALL_MERGED, ALL_SEPARATE}
    merged, separate = (tiny_run.front.controls[name] for name in (ALL_MERGED, ALL_SEPARATE))
    assert merged.grouping == ((0, 0, 0),) * 4
    assert separate.grouping == ((0, 1, 2),) * 4
    assert all(merged.cost <= point.cost <= separate.cost for point in points)
    for point in points:
        assert point.performance == pytest.approx(sum(point.scores.values()) / 3)


def test_the_recipe_of_a_run_is_complete_and_reads_back(tiny_run: TinyRun) -> None:
    kept = Recipe.load(tiny_run.folder / RECIPE_FILE)
    assert kept == tiny_run.recipe
    assert kept.dump() == (tiny_run.folder / RECIPE_FILE).read_text()
    assert search_settings(kept).population == SEARCH["population"]


def test_checkpoints_that_changed_are_refused_on_resume(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = cut(tiny_run, tmp_path / "run", 5)
    before = (out / JOURNAL_FILE).read_bytes()
    monkeypatch.setattr("hf_merge.storing.digests.sha256_of", lambda _: "0" * 64)
    with pytest.raises(RunFolderError, match=r"the checkpoint of base, task animals, .* another SHA-256"):
        search(tiny_run.recipe, out, resume=True, progress=False)
    assert (out / JOURNAL_FILE).read_bytes() == before
    assert not (out / FRONT_FILE).exists()


def test_rows_that_changed_are_refused_on_resume(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = cut(tiny_run, tmp_path / "run", 5)
    with Journal(out / JOURNAL_FILE) as journal:
        first, *others = (dict(record) for record in journal.records())
    assert isinstance(first["rows"], dict)
    (out / JOURNAL_FILE).unlink()
    with Journal(out / JOURNAL_FILE) as journal:
        journal.append(first | {"rows": first["rows"] | {"animals": "0" * 64}})
        for record in others:
            journal.append(record)
    before = (out / JOURNAL_FILE).read_bytes()
    with pytest.raises(
        RunFolderError, match=r"the validation rows of task 'animals' are not those that this run began"
    ):
        search(tiny_run.recipe, out, resume=True, progress=False)
    assert (out / JOURNAL_FILE).read_bytes() == before
    assert not (out / FRONT_FILE).exists()


def test_a_journal_of_another_order_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = cut(tiny_run, tmp_path / "run", 2)
    one = next(record for record in records(tiny_run.folder) if record["kind"] == "evaluation")
    record = {key: value for key, value in one.items() if key not in ("bytes", "crc32")}
    with Journal(out / JOURNAL_FILE) as journal:
        journal.append(record | {"grouping": [[0, 1, 1]] * 4})
    with pytest.raises(RunFolderError, match="evaluation 1 is not the one that this recipe asks for"):
        search(tiny_run.recipe, out, resume=True, progress=False)


@pytest.mark.parametrize("grouping", [[[0, 0]] * 4, [[0, 0, 0]]], ids=["tasks", "components"])
def test_a_journal_of_another_shape_is_refused(tiny_run: TinyRun, tmp_path: Path, grouping: object) -> None:
    out = cut(tiny_run, tmp_path / "run", 2)
    one = next(record for record in records(tiny_run.folder) if record["kind"] == "evaluation")
    record = {key: value for key, value in one.items() if key not in ("bytes", "crc32")}
    with Journal(out / JOURNAL_FILE) as journal:
        journal.append(record | {"grouping": grouping})
    with pytest.raises(RunFolderError, match="evaluation 1 is not the one that this recipe asks for"):
        search(tiny_run.recipe, out, resume=True, progress=False)


def test_a_run_that_is_being_searched_is_left_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    out = cut(tiny_run, tmp_path / "run", 5)
    with FolderLock(out), pytest.raises(RunFolderError, match="is in use by process"):
        search(tiny_run.recipe, out, resume=True, progress=False)


@pytest.mark.parametrize(
    "setting",
    [
        {"surrogate": "none"},
        {"dtype": "bfloat16"},
        {"preset": "fast"},
        pytest.param({"initial": "random"}, marks=pytest.mark.slow),
    ],
)
def test_the_baselines_are_options_of_the_same_search(
    tiny_run: TinyRun, tmp_path: Path, setting: dict[str, str]
) -> None:
    document = tiny_run.document | {"search": {**SEARCH, "evaluations": 6, **setting}}
    front = search(Recipe.parse(document, "test"), tmp_path / "run", progress=False)
    assert front.history[-1][0] == 6


@pytest.mark.parametrize(
    "granularity",
    ["type-stage", *(pytest.param(name, marks=pytest.mark.slow) for name in ("model", "layer", "type-layer"))],
)
def test_every_granularity_is_searched(tiny_run: TinyRun, tmp_path: Path, granularity: str) -> None:
    document = tiny_run.document | {
        "search": {**SEARCH, "evaluations": 5, "validation_rows": 8},
        "merge": {"granularity": granularity, "stages": 2},
    }
    front = search(Recipe.parse(document, "test"), tmp_path / "run", progress=False)
    assert front.granularity == granularity
