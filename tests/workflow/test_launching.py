"""A search in several processes: the same bytes whatever their number, and an end in time if one dies or hangs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_merge.errors import InputError, WorkerError
from hf_merge.recipe import Recipe
from hf_merge.searching.ranks import Ranks
from hf_merge.storing.hub import Access
from hf_merge.workflow.launching import handed_access, joined_ranks
from hf_merge.workflow.search import search
from tests.tiny_runs import ROUTER, SEARCH, TinyRun, write_recipe


ROOT = Path(__file__).parents[2]
SETTINGS = {**SEARCH, "evaluations": 24}
DIES_WITHIN_SECONDS, DEADLINE_SECONDS = 30.0, 10.0


def test_one_process_is_rank_0_of_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    with joined_ranks(tiny_run.recipe, tmp_path, 1, 60) as ranks:
        assert ranks == Ranks(0, 1)


@pytest.mark.parametrize(
    ("processes", "launched", "said"), [(0, "1", "at least 1"), (-3, "1", "at least 1"), (2, "4", "leave out one")]
)
def test_impossible_numbers_of_processes_are_refused(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, launched: str, said: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", launched)
    with pytest.raises(InputError, match=said), joined_ranks(tiny_run.recipe, tmp_path, processes, 60):
        pytest.fail("started all the same")


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_impossible_deadlines_are_refused(tiny_run: TinyRun, tmp_path: Path, deadline: float) -> None:
    with pytest.raises(InputError, match="--deadline is"), joined_ranks(tiny_run.recipe, tmp_path, 1, deadline):
        pytest.fail("started all the same")


def test_a_rank_that_is_still_dying_when_its_connection_is_gone_is_named(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying:
        """A process of which the system says only after a while that it has ended."""

        def __init__(self, *_: object, **__: object) -> None:
            self.asked = 0

        def poll(self) -> int | None:
            self.asked += 1
            return -signal.SIGKILL if self.asked > 3 else None

        def wait(self, _: float) -> int:
            return -signal.SIGKILL

    def in_vain(_: float) -> Ranks:
        raise WorkerError("in vain")

    monkeypatch.setattr("subprocess.Popen", Dying)
    monkeypatch.setattr(Ranks, "join", in_vain)
    said = r"^in vain Rank 1 was killed by signal 9\.$"
    with pytest.raises(WorkerError, match=said), joined_ranks(tiny_run.recipe, tmp_path, 2, 60):
        pytest.fail("joined all the same")


def test_all_ranks_wait_as_long_and_compute_with_as_many_threads(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], str]] = []

    class Noted:
        """A process that is only asked for."""

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            started.append((command, env["OMP_NUM_THREADS"]))

        def wait(self, _: float) -> int:
            return 0

    threads: list[int] = []

    def joined(_: float) -> Ranks:
        threads.append(torch.get_num_threads())
        return Ranks()

    monkeypatch.setattr("subprocess.Popen", Noted)
    monkeypatch.setattr(Ranks, "join", joined)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    with joined_ranks(tiny_run.recipe, tmp_path, 3, 14400.5):
        pass
    assert [command[command.index("--deadline") + 1] for command, _ in started] == ["14400.5"] * 2
    assert [count for _, count in started] == ["3"] * 2 and threads == [3]
    assert torch.get_num_threads() == before


def test_ranks_reach_the_hub_as_who_starts_them_and_no_command_line_tells_the_token(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    class Noted:
        """A process that is only asked for."""

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            started.append((command, env))

        def wait(self, _: float) -> int:
            return 0

    monkeypatch.setattr("subprocess.Popen", Noted)
    monkeypatch.setattr(Ranks, "join", lambda _: Ranks())
    for given in (
        Access(token="hf_secret", cache_dir=tmp_path / "cache", local_files_only=True, endpoint="https://hub.example"),
        Access(token=False),
        Access(),
    ):
        with joined_ranks(tiny_run.recipe, tmp_path, 2, 60, access=given):
            assert handed_access(given) is given  # rank 0 needs no telling
        command, environment = started.pop()
        assert "hf_secret" not in " ".join(command)
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", environment)
            found = handed_access(Access())
        cache = None if given.cache_dir is None else str(given.cache_dir)
        assert found == replace(given, cache_dir=cache)


def test_a_search_hands_its_access_on_and_its_workers_take_it(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, used = Access(token="hf_secret", endpoint="https://hub.example"), []

    class Inside:
        """A process that does here what it is to do there."""

        def __init__(self, _: list[str], env: dict[str, str], **__: object) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(os, "environ", env)
                patch.setattr("hf_merge.workflow.search.joined_ranks", lambda *_: nullcontext(Ranks(1, 2)))
                search(tiny_run.recipe, tmp_path, progress=False)

        def poll(self) -> int:
            return 0

        def wait(self, _: float) -> int:
            return 0

    def in_vain(_: float) -> Ranks:
        raise WorkerError("in vain")

    monkeypatch.setattr("subprocess.Popen", Inside)
    monkeypatch.setattr(Ranks, "join", in_vain)
    monkeypatch.setattr("hf_merge.workflow.search._work", lambda ranks, place, access: used.append(access))
    with pytest.raises(WorkerError, match="in vain"):
        search(tiny_run.recipe, tmp_path, processes=2, progress=False, access=given)
    assert used == [given]


def test_ranks_that_were_started_are_ended_where_a_later_one_cannot_be(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living: list[object] = []

    class Scarce:
        """A process of which the system has two."""

        def __init__(self, *_: object, **__: object) -> None:
            if len(living) == 2:
                raise OSError(12, "Cannot allocate memory")
            living.append(self)

        def wait(self, _: float | None = None) -> int:
            living.remove(self)
            return 0

    monkeypatch.setattr("subprocess.Popen", Scarce)
    with pytest.raises(OSError, match="allocate"), joined_ranks(tiny_run.recipe, tmp_path, 4, 60):
        pytest.fail("joined all the same")
    assert living == []


@pytest.fixture(scope="module")
def alone(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Returns a recipe and the front that one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = write_recipe(folder / "recipe.yaml", tiny_run.family.recipe(search=SETTINGS, router=ROUTER))
    search(Recipe.load(recipe), folder / "run", progress=False)
    return recipe, (folder / "run" / "front.json").read_bytes()


class Command:
    """A search as its user starts it, in a process of its own."""

    def __init__(self, recipe: Path, out: Path, *options: object) -> None:
        words = ["search", recipe, "--out", out, "--deadline", DEADLINE_SECONDS, *options]
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_merge", *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_lines(self, count: int) -> None:
        """Returns when the journal holds so many lines, or the search has ended."""
        journal = self.out / "journal.jsonl"
        while self.process.poll() is None:
            if journal.is_file() and journal.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.01)

    def workers(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        found = [int(child) for child in children.read_text().split()]
        return [child for child in found if b"--out" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def end(self, seconds: float) -> tuple[int, str]:
        """Returns exit code and stderr."""
        try:
            _, said = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        return self.process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_the_front_is_the_same_bytes_for_any_number_of_processes(
    alone: tuple[Path, bytes], tmp_path: Path, processes: int
) -> None:
    code, said = Command(alone[0], tmp_path / "run", "--num-processes", processes).end(300)
    assert code == 0, said
    assert (tmp_path / "run" / "front.json").read_bytes() == alone[1]


@pytest.mark.slow
def test_a_launcher_of_torch_is_joined(alone: tuple[Path, bytes], tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "hf_merge", "search", str(alone[0]), "--out", str(tmp_path / "run"), "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "front.json").read_bytes() == alone[1]
    assert done.stdout.count('"hypervolume":') == 1 + done.stdout.count('"evaluations":')


def finish(alone: tuple[Path, bytes], out: Path) -> bytes:
    """Returns the front of a run that is continued by one process."""
    search(Recipe.load(alone[0]), out, resume=(out / "recipe.yaml").exists(), progress=False)
    return (out / "front.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("lines", [4, *(pytest.param(lines, marks=pytest.mark.soak) for lines in (0, 1, 11, 20))])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_and_loses_nothing(
    alone: tuple[Path, bytes], tmp_path: Path, rank: int, lines: int
) -> None:
    command = Command(alone[0], tmp_path / "run", "--num-processes", 2)
    command.wait_for_lines(lines)
    while not command.workers() and command.process.poll() is None:
        time.sleep(0.01)
    (worker,) = command.workers()
    os.kill(command.process.pid if rank == 0 else worker, signal.SIGKILL)
    start = time.monotonic()
    code, said = command.end(DIES_WITHIN_SECONDS)
    while Path(f"/proc/{worker}").exists() and b"hf_merge" in Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() - start < DIES_WITHIN_SECONDS, "the other rank lives on"
        time.sleep(0.05)
    if rank == 0:
        assert code == -signal.SIGKILL
    else:
        assert code == WorkerError.exit_code, said
        assert "--resume" in said and "Rank 1 was killed by signal 9" in said
    assert finish(alone, tmp_path / "run") == alone[1]


@pytest.mark.slow
@pytest.mark.parametrize("lines", [8, *(pytest.param(lines, marks=pytest.mark.soak) for lines in (2, 16))])
def test_a_rank_that_hangs_ends_the_run_at_the_deadline(alone: tuple[Path, bytes], tmp_path: Path, lines: int) -> None:
    command = Command(alone[0], tmp_path / "run", "--num-processes", 2)
    command.wait_for_lines(lines)
    (worker,) = command.workers()
    os.kill(worker, signal.SIGSTOP)
    code, said = command.end(DEADLINE_SECONDS + DIES_WITHIN_SECONDS)
    assert code == WorkerError.exit_code, said
    assert f"within {DEADLINE_SECONDS:g} s" in said
    assert not Path(f"/proc/{worker}").exists()
    assert finish(alone, tmp_path / "run") == alone[1]
