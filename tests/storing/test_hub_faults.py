"""Every request of a push and of a pull goes wrong once, in every way that passes: all recovered, little repeated.

What is expected of each case: the same end as undisturbed, whole; one commit of ours; every large file stored once;
the Hub's wish to wait obeyed; and at most so many requests more than undisturbed as the repeated step has.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import HubError
from hf_merge.storing.hub import Access, Pushed, Resolved, make_collection, pull_files, push_files, whoami
from tests.hub_server import HubServer


REPO, TAG, WAIT = "alice/glue-c0359", "c0359-2f9a1c", 3
FILES = {
    "chains.json": b'{"format_version": 1}',
    "README.md": b"---\nlibrary_name: hf-merge\n---\n# A card\n",
    "experts-00001-of-00002.safetensors": bytes(range(256)) * 20,
    "experts-00002-of-00002.safetensors": bytes(range(255, -1, -1)) * 20,
}
PAGE = {"Content-Type": "text/html"}
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "520, which the client does not know": {"status": 520},
    "503 with a page": {"status": 503, "headers": PAGE, "body": b"<html>down</html>"},
    "429 with a wait": {"status": 429, "headers": {"RateLimit": f'"api";r=0;t={WAIT}'}},
    "503 with a wait": {"status": 503, "headers": {"Retry-After": str(WAIT)}},
    "a reset at the request": {"drop": "request"},
    "a close at the request": {"drop": "request", "reset": False},
    "a cut in the request": {"drop_after": 0},
    "a lost answer": {"drop": "answer"},
    "a reset in the answer": {"drop": "body"},
    "a close in the answer": {"drop": "body", "reset": False},
}
# Beyond the undisturbed requests, a push repeats at most: look-up, check of the card, modes, batch, commit.
PUSH_REPEATS = 5
# And a pull at most: head and body of one file, each with its redirect.
PULL_REPEATS = 4
CREATED = ("/api/repos/create", "/commit/", "/tag/")


@dataclass(frozen=True)
class Visitor:
    """Pushes and pulls; `naps` holds the waits of ours and of the client's."""

    hub: HubServer
    cache: Path
    naps: list[float] = field(default_factory=list)

    @property
    def access(self) -> Access:
        return Access(token="hf_alice", endpoint=self.hub.endpoint, cache_dir=self.cache, sleep=self.naps.append)

    def push(self, files: Mapping[str, bytes] = FILES, **options: Any) -> Pushed:
        contents: dict[str, Path | bytes] = dict(files)
        options = {"tag": TAG} | options
        return push_files(REPO, contents, message="Push", access=self.access, **options)

    def pull(self) -> Resolved:
        return pull_files(REPO, tuple(FILES), access=self.access)

    def tree(self, revision: str = "main") -> dict[str, bytes]:
        tree = self.hub.repo(REPO).resolve(revision).tree
        return {path: self.hub.read(blob) for path, blob in tree.items() if path != ".gitattributes"}


@pytest.fixture
def visit(
    tmp_path_factory: pytest.TempPathFactory, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Visitor]]:
    """Returns a function that makes a new Hub and a visitor to it."""
    servers: list[HubServer] = []

    def start() -> Visitor:
        server = HubServer()
        servers.append(server.__enter__())
        server.add_user("alice", "hf_alice")
        visitor = Visitor(server, tmp_path_factory.mktemp("cache"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", visitor.naps.append)
        return visitor

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def disturbed(visit: Callable[[], Visitor], count: int, fault: Mapping[str, Any]) -> Iterator[tuple[int, Visitor]]:
    for number in range(count):
        visitor = visit()
        visitor.hub.fault("*", "", skip=number, **fault)
        yield number, visitor


def stored_twice(hub: HubServer) -> list[str]:
    """Returns the large files that were sent again although the Hub had said that it has them."""
    done = [request.path for request in hub.requests("PUT /cdn/") if request.status == 200]
    return sorted({path for path in done if done.count(path) > 1})


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_push_outlasts_one_fault_at_every_request(visit: Callable[[], Visitor], kind: str) -> None:
    plain = visit()
    plain.push()
    count, cases = len(plain.hub.log), 0
    for number, visitor in disturbed(visit, count, FAULTS[kind]):
        pushed, hub = visitor.push(), visitor.hub
        repo = hub.repo(REPO)
        where = f"{kind} at {number}: {[(entry.method, entry.path, entry.status) for entry in hub.log]}"
        assert visitor.tree() == FILES, where
        assert pushed.revision == repo.resolve("main").oid == repo.resolve(TAG).oid, where
        assert pushed.sent == tuple(FILES), where
        assert len(repo.commits) == 2 and len(repo.refs) == 2, where
        assert not stored_twice(hub), where
        assert len(hub.log) <= count + PUSH_REPEATS, where
        assert sum(visitor.naps) <= (2 * (WAIT + 1)), where
        assert "wait" not in kind or max(visitor.naps) >= WAIT, where
        cases += any(fault.times == 0 for fault in hub.faults)
    assert cases == count >= 12


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind != "a cut in the request"])
def test_a_pull_outlasts_one_fault_at_every_request(visit: Callable[[], Visitor], kind: str) -> None:
    plain = visit()
    commit = plain.hub.publish(REPO, FILES)
    plain.pull()
    count, cases = len(plain.hub.log), 0
    for number, visitor in disturbed(visit, count, FAULTS[kind]):
        commit = visitor.hub.publish(REPO, FILES)
        pulled = visitor.pull()
        where = f"{kind} at {number}: {[(entry.method, entry.path, entry.status) for entry in visitor.hub.log]}"
        assert {path.name: path.read_bytes() for path in pulled.folder.iterdir()} == FILES, where
        assert pulled.revision == commit, where
        assert len(visitor.hub.log) <= count + PULL_REPEATS, where
        assert sum(visitor.naps) <= (2 * (WAIT + 1)), where
        cases += any(fault.times == 0 for fault in visitor.hub.faults)
    assert cases == count >= 12


@pytest.mark.parametrize("path", CREATED)
@pytest.mark.parametrize("drop", ["answer", "body"])
def test_what_was_done_although_the_answer_got_lost_is_not_done_again(
    visit: Callable[[], Visitor], path: str, drop: str
) -> None:
    visitor = visit()
    visitor.hub.fault("POST", path, drop=drop)
    visitor.push()
    done = [request for request in visitor.hub.requests(f"POST .*{path}") if request.status != 409]
    assert len(done) == 1
    assert len(visitor.hub.repo(REPO).commits) == 2


def test_an_answer_lost_with_a_pull_request_opens_no_second_one(visit: Callable[[], Visitor]) -> None:
    visitor = visit()
    visitor.hub.fault("POST", "/commit/", drop="answer")
    pushed = visitor.push(create_pr=True)
    assert len(visitor.hub.repo(REPO).discussions) == 1
    assert visitor.tree("refs/pr/1") == FILES
    assert (pushed.sent, pushed.url) == (tuple(FILES), f"{visitor.hub.endpoint}/{REPO}/discussions/1")


def test_a_tag_whose_removal_was_not_answered_is_set_all_the_same(visit: Callable[[], Visitor]) -> None:
    visitor = visit()
    visitor.push()
    visitor.hub.fault("DELETE", "/tag/", drop="answer")
    pushed = visitor.push({**FILES, "chains.json": b"{}"})
    assert visitor.hub.repo(REPO).resolve(TAG).oid == pushed.revision


def test_a_branch_whose_making_was_not_answered_is_used(visit: Callable[[], Visitor]) -> None:
    visitor = visit()
    visitor.hub.fault("POST", "/branch/", drop="answer")
    visitor.push(branch="v2")
    assert visitor.tree("v2") == FILES


@pytest.mark.parametrize("drop", ["request", "answer"])
def test_a_collection_outlasts_one_fault_at_every_request(visit: Callable[[], Visitor], drop: str) -> None:
    def collect(visitor: Visitor, note: str) -> str:
        return make_collection("Glue", "alice", {REPO: note}, private=False, access=visitor.access)

    def twice(visitor: Visitor) -> str:
        visitor.hub.publish(REPO, FILES)
        collect(visitor, "old")
        return collect(visitor, "new")

    plain = visit()
    twice(plain)
    for number, visitor in disturbed(visit, len(plain.hub.log), {"drop": drop}):
        slug = twice(visitor)
        assert len(visitor.hub.collections) == 1, number
        items = visitor.hub.collections[slug]["items"]
        assert [(item["id"], item["note"]["text"]) for item in items] == [(REPO, "new")], number


@pytest.mark.parametrize("kind", FAULTS)
def test_the_question_who_is_logged_in_outlasts_one_fault(visit: Callable[[], Visitor], kind: str) -> None:
    visitor = visit()
    visitor.hub.fault("GET", "/api/whoami-v2", **FAULTS[kind])
    assert whoami(visitor.access) == "alice"
    assert len(visitor.hub.log) <= 2


# What does not pass


@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"drop": "request"}])
def test_a_fault_that_stays_ends_in_one_clear_error_and_no_storm(
    visit: Callable[[], Visitor], fault: dict[str, Any]
) -> None:
    plain = visit()
    plain.push()
    plain.pull()
    for method, path in sorted({(request.method, request.path.split("?")[0]) for request in plain.hub.log}):
        steady = path.rsplit("/", 1)[0] if any(part in path for part in ("/tag/", "/tree/", "resolve")) else path
        steady = steady.replace(plain.hub.repo(REPO).resolve("main").oid, "[0-9a-f]{40}")
        visitor = visit()
        visitor.hub.fault(method, steady, times=10_000, **fault)
        with pytest.raises(HubError, match=r"^'alice/glue-c0359' cannot be (pushed|pulled)"):
            visitor.push()
            visitor.pull()
            pytest.fail(f"{method} {steady} was not needed")
        asked = Counter((request.method, request.path) for request in visitor.hub.log)
        assert max(asked.values()) <= 7, f"{method} {path}: {asked}"


def test_a_hub_that_is_gone_is_told_at_once(hub: HubServer, tmp_path: Path) -> None:
    with HubServer() as gone:
        visitor = Visitor(gone, tmp_path)
    with pytest.raises(HubError, match=rf"'{REPO}' cannot be pushed to {gone.endpoint} \(ConnectError.*push again"):
        visitor.push()
    assert not visitor.naps


def test_a_long_wait_is_told_and_not_waited_for(visit: Callable[[], Visitor]) -> None:
    visitor = visit()
    visitor.hub.fault("POST", "/commit/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match=r"too many requests \(429\)\. Try again in 3600 s"):
        visitor.push()
    assert not visitor.naps
    assert visitor.push().sent == tuple(FILES)
    assert len(visitor.hub.requests("PUT")) == 2, "the large files had arrived"
