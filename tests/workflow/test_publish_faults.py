"""A family push that is disturbed or killed at any request: the same command finishes it, and nobody loads a mixture.

On the Hub lies the family of an earlier push, whose members have the same ids and other bytes. Whatever happens to
the next push, a reader who comes by finds the old family whole or the new one whole.
"""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from hf_merge.serving.selection import open_member
from hf_merge.storing.hub import Access
from hf_merge.workflow.build import build
from hf_merge.workflow.publish import push
from tests import killing
from tests.hub_server import HubServer
from tests.tiny_runs import TinyRun


pytestmark = pytest.mark.slow
TOKEN, FAMILY, POINTS = "hf_alice", "alice/tiny", 30
MOMENTS: tuple[Literal["request", "answer", "body"], ...] = ("request", "answer", "body")
FAULTS: tuple[dict[str, Any], ...] = (
    {"status": 500},
    {"status": 503},
    {"status": 429, "headers": {"RateLimit": '"api";r=0;t=2'}},
    {"drop": "request"},
    {"drop": "answer"},
    {"drop": "body"},
)


def access_to(endpoint: str, cache: Path) -> Access:
    return Access(token=TOKEN, endpoint=endpoint, cache_dir=cache, sleep=lambda _: None)


def push_family(run: Path, configs: list[str], endpoint: str, cache: Path) -> None:
    push(run, FAMILY, configs=configs, progress=False, access=access_to(endpoint, cache))


@dataclass
class Scene:
    """A Hub that holds the old family, and the run whose push is to replace it.

    Attributes:
        old: What a reader of the old family gets: the digests of its best member's files.
        new: The same of the new one.
        final: The files of every repo after an undisturbed push.
        requests: How many requests that push made.
    """

    hub: HubServer
    run: Path
    configs: list[str]
    old: dict[str, str]
    new: dict[str, str]
    final: dict[str, dict[str, bytes]]
    requests: int
    state: tuple[Any, Any, frozenset[Path]]

    def restore(self) -> None:
        """Sets the Hub back to the old family."""
        self.hub.repos, self.hub.collections = deepcopy(self.state[0]), deepcopy(self.state[1])
        for path in set(large_files(self.hub)) - self.state[2]:
            path.unlink()
        self.hub.faults.clear()
        self.hub.log.clear()


def large_files(hub: HubServer) -> frozenset[Path]:
    return frozenset(path for path in hub.root.rglob("*") if path.is_file())


def contents(hub: HubServer) -> dict[str, dict[str, bytes]]:
    """Returns the files of every repo, but for the commits that the front names: those hold their times."""
    return {
        repo.id: {
            path: hub.read(blob)
            for path, blob in repo.resolve("main").tree.items()
            if path not in ("front.json", "README.md")
        }
        for repo in hub.repos.values()
    }


def loaded(hub: HubServer, cache: Path) -> dict[str, str]:
    """Returns the digests of what a reader gets, every file compared with the map and the map with the front."""
    member = open_member(FAMILY, access=access_to(hub.endpoint, cache))
    member.check_all()
    return {name: entry.sha256 for name, entry in member.chain_map.files.items()}


def rebuilt(run: TinyRun, folder: Path, configs: list[str]) -> Path:
    """Returns the same search with another router, which lies in every member."""
    folder.mkdir()
    for name in ("front.json", "journal.jsonl"):
        shutil.copy(run.folder / name, folder)
    recipe = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    recipe["router"]["epochs"] += 1
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    build(folder, configs=configs, progress=False)
    return folder


@pytest.fixture(scope="module")
def scene(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    killing.preload("hf_merge.workflow.publish")
    folder = tmp_path_factory.mktemp("scene")
    configs = [tiny_run.front.points[0].id, tiny_run.front.points[-1].id]
    run = rebuilt(tiny_run, folder / "new", configs)
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        settle_client(patch)
        hub.add_user("alice", TOKEN)
        push_family(tiny_run.folder, configs, hub.endpoint, folder / "first")
        old = loaded(hub, folder / "old")
        state = (deepcopy(hub.repos), deepcopy(hub.collections), large_files(hub))
        hub.log.clear()
        push_family(run, configs, hub.endpoint, folder / "second")
        requests = len(hub.log)
        new = loaded(hub, folder / "new-cache")
        yield Scene(hub, run, configs, old, new, contents(hub), requests, state)


def settle_client(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


@pytest.fixture
def ready(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    settle_client(monkeypatch)
    scene.restore()
    return scene


def test_the_two_families_differ_in_bytes_and_not_in_names(scene: Scene) -> None:
    assert scene.old.keys() == scene.new.keys()
    assert scene.old != scene.new
    assert scene.requests >= POINTS


@pytest.mark.parametrize("point", range(POINTS))
def test_killed_anywhere_it_is_finished_by_the_same_command_and_no_mixture_is_ever_seen(
    ready: Scene, tmp_path: Path, point: int
) -> None:
    moment = MOMENTS[point % len(MOMENTS)]
    request = point * ready.requests // POINTS
    arguments = (ready.run, ready.configs, ready.hub.endpoint, tmp_path / "cache")
    assert killing.kill_at(ready.hub, request, push_family, *arguments, drop=moment)
    assert loaded(ready.hub, tmp_path / "between") in (ready.old, ready.new)
    push_family(*arguments)
    assert contents(ready.hub) == ready.final
    assert loaded(ready.hub, tmp_path / "after") == ready.new
    for repo in ready.hub.repos.values():
        if repo.id != FAMILY:
            tag = next(identifier for identifier in ready.configs if repo.id.endswith(identifier.split("-")[0]))
            assert repo.resolve(tag).oid == repo.resolve("main").oid


@pytest.mark.parametrize("point", range(2 * POINTS))
def test_disturbed_anywhere_once_it_recovers_by_itself(ready: Scene, tmp_path: Path, point: int) -> None:
    ready.hub.fault("*", "", skip=point * ready.requests // (2 * POINTS), **FAULTS[point % len(FAULTS)])
    push_family(ready.run, ready.configs, ready.hub.endpoint, tmp_path / "cache")
    assert contents(ready.hub) == ready.final
    assert loaded(ready.hub, tmp_path / "after") == ready.new
    stored = [entry.path.split("?")[0] for entry in ready.hub.requests("PUT /cdn") if entry.status == 200]
    assert len(stored) == len(set(stored))
