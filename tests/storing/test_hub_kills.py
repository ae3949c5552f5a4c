"""`kill -9` at every request of a push: the repo shows the old state or the new one; the same push again ends it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from hf_merge.storing.hub import Access, Pushed, push_files
from tests.hub_server import HubServer
from tests.killing import kill_at, run


REPO, TAG = "alice/glue-c0359", "c0359-2f9a1c"
CARD = b"---\nlibrary_name: hf-merge\n---\n# A card\n"
OLD: dict[str, Path | bytes] = {
    "chains.json": b'{"id": "old"}',
    "README.md": CARD,
    "experts-00001-of-00003.safetensors": b"\0old one" * 500,
    "experts-00002-of-00003.safetensors": b"\0both" * 500,
    "experts-00003-of-00003.safetensors": b"\0old three" * 500,
}
NEW: dict[str, Path | bytes] = {
    "chains.json": b'{"id": "new"}',
    "README.md": CARD + b"Better.\n",
    "experts-00001-of-00002.safetensors": b"\0new one" * 500,
    "experts-00002-of-00002.safetensors": b"\0new two" * 500,
}


def push(endpoint: str, files: dict[str, Path | bytes], branch: str | None = None) -> Pushed:
    """Runs in the process that is killed, too."""
    access = Access(token="hf_alice", endpoint=endpoint, sleep=lambda _: None)
    owned = ("chains.json", "README.md", "experts-*.safetensors")
    return push_files(REPO, files, message="Push", tag=TAG, owned=owned, branch=branch, access=access)


@pytest.fixture
def hubs() -> Iterator[list[HubServer]]:
    servers: list[HubServer] = []
    yield servers
    for server in servers:
        server.__exit__(None, None, None)


def prepare(hubs: list[HubServer], old: bool) -> HubServer:
    hub = HubServer().__enter__()
    hubs.append(hub)
    hub.add_user("alice", "hf_alice")
    if old:
        push(hub.endpoint, OLD)
    hub.log.clear()
    return hub


def tree(hub: HubServer, revision: str = "main") -> dict[str, bytes]:
    return {
        path: hub.read(blob)
        for path, blob in hub.repo(REPO).resolve(revision).tree.items()
        if path != ".gitattributes"
    }


def state(hub: HubServer, branch: str = "main") -> dict[str, object]:
    """Returns all that somebody can see of the repo, but for the names of commits, which are drawn."""
    repo = hub.repo(REPO)
    refs = {ref: tree(hub, oid) for ref, oid in repo.refs.items()}
    return {"refs": refs, "commits": len(repo.commits), "private": repo.private, "head": tree(hub, branch)}


@pytest.mark.usefixtures("hub")  # the client as the tests want it
@pytest.mark.parametrize("drop", ["request", "answer", pytest.param("body", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "start",
    [
        "an older push",
        pytest.param("no repo", marks=pytest.mark.slow),
        pytest.param("a new branch", marks=pytest.mark.slow),
    ],
)
def test_a_push_killed_at_every_request_is_seen_whole_or_not_at_all(
    hubs: list[HubServer], start: str, drop: Literal["request", "answer", "body"]
) -> None:
    old, branch = start != "no repo", "v2" if start == "a new branch" else None
    plain = prepare(hubs, old)
    push(plain.endpoint, NEW, branch)
    kills, count = 0, len(plain.log)
    for number in range(count):
        hub = prepare(hubs, old)
        kills += kill_at(hub, number, push, hub.endpoint, NEW, branch, drop=drop)
        if ("model", REPO) in hub.repos:
            for ref in hub.repo(REPO).refs.values():
                assert tree(hub, ref) in ({}, OLD, NEW), f"{number}: a mixture"
            assert tree(hub) in ((OLD,) if branch else (OLD, NEW) if old else ({}, NEW)), number
            tagged = hub.repo(REPO).refs.get(f"refs/tags/{TAG}")
            assert tagged is None or tree(hub, tagged) in (OLD, NEW), number
        again = push(hub.endpoint, NEW, branch)
        assert state(hub, branch or "main") == state(plain, branch or "main"), number
        assert again.revision == hub.repo(REPO).resolve(TAG).oid, number
        assert push(hub.endpoint, NEW, branch).sent == (), number
    assert kills == count >= 12


@pytest.mark.usefixtures("hub")
def test_what_had_arrived_before_the_kill_is_not_sent_again(hubs: list[HubServer]) -> None:
    hub = prepare(hubs, old=False)
    plain = prepare(hubs, old=False)
    push(plain.endpoint, NEW)
    commit = next(number for number, entry in enumerate(plain.log) if "/commit/" in entry.path)
    assert kill_at(hub, commit, push, hub.endpoint, NEW, drop="request")
    hub.log.clear()
    push(hub.endpoint, NEW)
    assert not hub.requests("PUT /cdn/")


@pytest.mark.usefixtures("hub")
def test_a_process_that_is_not_killed_ends_by_itself(hubs: list[HubServer]) -> None:
    hub = prepare(hubs, old=False)
    assert not kill_at(hub, 1000, push, hub.endpoint, NEW, drop="request")
    assert run(push, hub.endpoint, NEW) == 0
    assert tree(hub) == NEW
