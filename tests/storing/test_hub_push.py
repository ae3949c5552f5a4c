"""The real client pushing to the loopback Hub: what is sent, what stays, who may, and what the messages say."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from hf_merge.errors import HubError, InputError, ResourceError
from hf_merge.storing.hub import (
    Access,
    Pushed,
    claim_repo,
    find_collection,
    full_name,
    make_collection,
    pull_files,
    push_files,
    whoami,
)
from tests.hub_server import HubServer


# Checking a card changes nothing, although it is a POST.
WRITES = r"^(POST|PUT|DELETE|PATCH) (?!/api/validate-yaml)"
CARD = b"---\nlibrary_name: hf-merge\n---\n# A card\n"
DATA = {
    "chains.json": b'{"format_version": 1}',
    "README.md": CARD,
    "empty.txt": b"",
    "experts-00001-of-00002.safetensors": bytes(range(256)) * 500,
    "experts-00002-of-00002.safetensors": bytes(range(255, -1, -1)) * 500,
}
FILES: dict[str, Path | bytes] = dict(DATA)
BYTES = sum(map(len, DATA.values()))
OWNED = ("chains.json", "README.md", "experts-*.safetensors")
REPO = "alice/glue-c0359"
TAG = "c0359-2f9a1c"


@dataclass(frozen=True)
class Pusher:
    """Pushes to the loopback Hub as alice; `naps` holds the waits that were asked for."""

    hub: HubServer
    cache: Path
    naps: list[float] = field(default_factory=list)

    def access(self, **changes: Any) -> Access:
        asked: dict[str, Any] = {"token": "hf_alice", "endpoint": self.hub.endpoint, "cache_dir": self.cache}
        return Access(**asked | {"sleep": self.naps.append} | changes)

    def __call__(self, files: Mapping[str, Path | bytes] = FILES, repo: str = REPO, **options: Any) -> Pushed:
        usual: dict[str, Any] = {"message": "Push a member", "owned": OWNED, "access": self.access()}
        return push_files(repo, files, **usual | options)

    def tree(self, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
        """Returns what the repo holds, but for what the Hub itself put there."""
        tree = self.hub.repo(repo).resolve(revision).tree
        return {path: self.hub.read(blob) for path, blob in tree.items() if path != ".gitattributes"}


@pytest.fixture
def push(hub: HubServer, tmp_path: Path) -> Pusher:
    hub.add_user("alice", "hf_alice", orgs=["acme"])
    hub.add_user("bob", "hf_bob")
    hub.add_user("alice", "hf_reader", role="read")
    return Pusher(hub, tmp_path / "cache")


# What is sent


def test_files_arrive_in_one_commit_and_are_tagged(hub: HubServer, push: Pusher) -> None:
    pushed = push(tag=TAG)
    repo = hub.repo(REPO)
    assert push.tree() == FILES
    assert pushed == Pushed(REPO, repo.resolve(TAG).oid, f"{hub.endpoint}/{REPO}", tuple(FILES), BYTES)
    assert len(repo.commits) == 2, "the Hub's own and ours"
    assert repo.resolve("main").title == "Push a member"
    assert not repo.private


def test_what_is_pushed_is_what_is_pulled(push: Pusher) -> None:
    pushed = push()
    pulled = pull_files(REPO, ("*",), access=push.access())
    assert pulled.revision == pushed.revision
    assert {path.name: path.read_bytes() for path in pulled.folder.iterdir() if path.name in FILES} == FILES


def test_local_files_are_pushed_as_they_are(push: Pusher, tmp_path: Path) -> None:
    for name, data in DATA.items():
        (tmp_path / name).write_bytes(data)
    push({name: tmp_path / name for name in FILES})
    assert push.tree() == FILES


def test_the_same_push_again_sends_nothing(hub: HubServer, push: Pusher) -> None:
    first = push(tag=TAG)
    hub.log.clear()
    again = push(tag=TAG)
    assert not hub.requests(WRITES)
    assert len(hub.log) == 2, "the head and the tags are looked up"
    assert (again.revision, again.sent, again.bytes_sent) == (first.revision, (), 0)


def test_only_what_changed_is_sent(hub: HubServer, push: Pusher) -> None:
    first = push(tag=TAG)
    hub.log.clear()
    second = push({**FILES, "chains.json": b"{}"}, tag=TAG)
    assert (second.sent, second.bytes_sent) == (("chains.json",), 2)
    assert not hub.requests("PUT|lfs")
    assert first.revision != second.revision == hub.repo(REPO).resolve(TAG).oid, "the tag has moved"


def test_stale_files_of_ours_go_and_others_stay(hub: HubServer, push: Pusher) -> None:
    hub.publish(
        REPO,
        {"LICENSE": b"mine", "experts-00009-of-00009.safetensors": b"stale", "experts-old/x.safetensors": b"deep"},
    )
    pushed = push()
    assert push.tree() == {**FILES, "LICENSE": b"mine", "experts-old/x.safetensors": b"deep"}
    assert pushed.deleted == ("experts-00009-of-00009.safetensors",)


def test_a_push_that_only_deletes_is_a_commit_too(hub: HubServer, push: Pusher) -> None:
    first = push()
    fewer = {name: data for name, data in FILES.items() if name != "experts-00002-of-00002.safetensors"}
    second = push(fewer)
    assert push.tree() == fewer
    assert (second.sent, second.deleted) == ((), ("experts-00002-of-00002.safetensors",))
    assert second.revision != first.revision


def test_a_tag_that_is_elsewhere_moves(hub: HubServer, push: Pusher) -> None:
    hub.publish(REPO, {"LICENSE": b"mine"})
    repo = hub.repo(REPO)
    repo.refs[f"refs/tags/{TAG}"] = repo.resolve("main").oid
    pushed = push(tag=TAG)
    assert repo.resolve(TAG).oid == pushed.revision


def test_a_missing_tag_is_set_although_nothing_is_sent(hub: HubServer, push: Pusher) -> None:
    pushed = push()
    hub.log.clear()
    assert push(tag=TAG).sent == ()
    assert [request.path for request in hub.requests(WRITES)] == [f"/api/models/{REPO}/tag/{pushed.revision}"]


def test_a_branch_is_made_and_the_default_one_stays(hub: HubServer, push: Pusher) -> None:
    pushed = push(branch="v2", tag=TAG)
    assert push.tree() == {}
    assert push.tree("v2") == FILES
    assert hub.repo(REPO).resolve(TAG).oid == hub.repo(REPO).resolve("v2").oid == pushed.revision
    assert pushed.url == f"{hub.endpoint}/{REPO}/tree/v2"
    hub.log.clear()
    assert push(branch="v2", tag=TAG).sent == ()
    assert not hub.requests(WRITES)


def test_a_bare_name_is_the_users_own(push: Pusher) -> None:
    assert push(repo="glue").repo == "alice/glue"
    assert whoami(push.access()) == "alice"
    assert full_name("acme/glue", push.access()) == "acme/glue"


def test_a_large_file_goes_in_parts(tmp_path: Path, hub: HubServer) -> None:
    with HubServer(part_size=50_000) as parts:
        parts.add_user("alice", "hf_alice")
        push = Pusher(parts, tmp_path / "cache")
        parts.fault("PUT", "/cdn/.*/2", status=500)
        push()
        assert push.tree() == FILES
        assert len(parts.requests("PUT /cdn/")) == 7, "two files in three parts, one of them twice"


def test_xet_carries_the_files_where_the_hub_offers_it(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(tmp_path / "xet"), raising=False)
    with HubServer(xet=True) as xet:
        xet.add_user("alice", "hf_alice")
        push = Pusher(xet, tmp_path / "cache")
        pushed = push(tag=TAG)
        assert not xet.requests("PUT /cdn/") and xet.requests("xet-write-token")
        pulled = pull_files(REPO, ("*.safetensors",), pushed.revision, access=push.access())
        for path in pulled.folder.glob("*.safetensors"):
            assert path.read_bytes() == FILES[path.name]
        xet.log.clear()
        assert push(tag=TAG).sent == ()
        assert not xet.requests(WRITES)


# Pull requests


def test_a_pull_request_holds_the_files_and_is_opened_once(hub: HubServer, push: Pusher) -> None:
    hub.publish(REPO, {"LICENSE": b"mine"})
    first = push(create_pr=True, tag=TAG)
    repo = hub.repo(REPO)
    assert push.tree() == {"LICENSE": b"mine"}
    assert push.tree("refs/pr/1") == {"LICENSE": b"mine", **FILES}
    assert first.revision == repo.resolve("refs/pr/1").oid
    assert first.url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert f"refs/tags/{TAG}" not in repo.refs
    hub.log.clear()
    again = push(create_pr=True)
    assert (again.revision, again.url, again.sent) == (first.revision, first.url, ())
    assert not hub.requests(WRITES)


@pytest.mark.parametrize("change", [{"status": "closed"}, {"title": "Something else"}, {"isPullRequest": False}])
def test_a_pull_request_that_is_not_ours_or_closed_does_not_count(
    hub: HubServer, push: Pusher, change: dict[str, Any]
) -> None:
    push(create_pr=True)
    hub.repo(REPO).discussions[0] |= change
    assert push(create_pr=True).url.endswith("/discussions/2")


def test_a_pull_request_with_other_content_does_not_count(push: Pusher) -> None:
    push(create_pr=True)
    assert push({**FILES, "chains.json": b"{}"}, create_pr=True).url.endswith("/discussions/2")


def test_who_may_only_read_can_still_propose(hub: HubServer, push: Pusher) -> None:
    hub.publish(REPO, {"LICENSE": b"mine"})
    assert push(create_pr=True, access=push.access(token="hf_bob")).url.endswith("/discussions/1")


def test_no_pull_request_where_the_default_branch_holds_all(hub: HubServer, push: Pusher) -> None:
    pushed = push()
    assert push(create_pr=True).revision == pushed.revision
    assert not hub.repo(REPO).discussions


def test_a_pull_request_to_a_branch_is_refused(hub: HubServer, push: Pusher) -> None:
    with pytest.raises(InputError, match="goes to the default branch, not to 'v2'"):
        push(create_pr=True, branch="v2")
    assert not hub.log


# Dry runs


def test_a_dry_run_of_a_new_repo_tells_and_sends_nothing(hub: HubServer, push: Pusher) -> None:
    planned = push(dry_run=True, tag=TAG, private=True)
    assert (planned.revision, planned.sent) == ("", tuple(FILES))
    assert planned.bytes_sent == BYTES
    assert not hub.requests(WRITES) and not hub.repos


def test_a_dry_run_compares_with_what_is_there(hub: HubServer, push: Pusher) -> None:
    pushed = push(tag=TAG)
    hub.log.clear()
    assert push(dry_run=True).revision == pushed.revision
    changed = push({"chains.json": b"{}", "README.md": CARD}, dry_run=True)
    assert (changed.revision, changed.sent, changed.bytes_sent) == ("", ("chains.json",), 2)
    assert sorted(changed.deleted) == ["experts-00001-of-00002.safetensors", "experts-00002-of-00002.safetensors"]
    assert push(dry_run=True, branch="v2").revision == ""
    assert not hub.requests(WRITES)


# Rights, visibility, names


def test_private_makes_new_repos_private(hub: HubServer, push: Pusher) -> None:
    push(private=True)
    assert hub.repo(REPO).private
    assert push(private=True).sent == ()
    assert push(private=None).sent == ()


@pytest.mark.parametrize(("there", "asked"), [(False, True), (True, False)])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_repo_of_the_other_visibility_is_left_alone(
    hub: HubServer, push: Pusher, there: bool, asked: bool, dry_run: bool
) -> None:
    hub.publish(REPO, {"LICENSE": b"mine"}, private=there)
    words = ("private", "public") if there else ("public", "private")
    named = rf"'{REPO}' exists and is {words[0]}, and {words[1]} was asked for; nothing was sent.*/{REPO}/settings"
    with pytest.raises(HubError, match=named):
        push(private=asked, dry_run=dry_run)
    with pytest.raises(HubError, match=named):
        claim_repo(REPO, private=asked, access=push.access())
    assert not hub.requests(WRITES)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_repo_that_is_something_else_is_left_alone(hub: HubServer, push: Pusher, dry_run: bool) -> None:
    hub.publish(REPO, {"README.md": CARD, "model.safetensors": b"theirs"})
    named = rf"'{REPO}' holds 'model\.safetensors' and no chains\.json, so it is something else; nothing was sent"
    with pytest.raises(HubError, match=named):
        push(marker="chains.json", dry_run=dry_run)
    with pytest.raises(HubError, match=named):
        claim_repo(REPO, private=None, marker="chains.json", access=push.access())
    assert not hub.requests(WRITES)
    hub.publish(REPO, {"README.md": b"# New", "LICENSE": b"mine"})
    push(marker="chains.json")
    assert push(marker="chains.json").sent == ()


def test_a_claimed_repo_is_there_and_empty(hub: HubServer, push: Pusher) -> None:
    claim_repo("glue", private=True, access=push.access())
    assert hub.repo("alice/glue").private and push.tree(repo="alice/glue") == {}
    hub.log.clear()
    claim_repo("alice/glue", private=True, access=push.access())
    assert not hub.requests(WRITES)


def test_no_message_holds_a_password_of_the_address(hub: HubServer) -> None:
    access = Access(token=False, endpoint=hub.endpoint.replace("://", "://alice:s3cret@"))
    with pytest.raises(HubError, match="Nobody is logged in to") as caught:
        access.connect_to_write()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("repo", [REPO, "glue"])
def test_without_a_login_the_message_says_what_to_run(hub: HubServer, push: Pusher, repo: str) -> None:
    for token in (None, False):
        with pytest.raises(HubError, match=r"Nobody is logged in to http.*`hf auth login`, or set HF_TOKEN"):
            push(repo=repo, access=push.access(token=token))
    assert not hub.log


@pytest.mark.parametrize("repo", [REPO, "glue"])
def test_an_unknown_token_is_told_but_not_shown(push: Pusher, repo: str) -> None:
    with pytest.raises(HubError, match=r"does not know the token \(401\)\. Log in again") as refused:
        push(repo=repo, access=push.access(token="hf_mallory"))
    assert "mallory" not in str(refused.value) and refused.value.__cause__ is None


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(("token", "repo"), [("hf_reader", REPO), ("hf_bob", REPO), ("hf_alice", "bob/glue")])
def test_a_token_that_may_not_write_sends_no_bytes(
    hub: HubServer, push: Pusher, token: str, repo: str, exists: bool
) -> None:
    if exists:
        hub.publish(repo, {"LICENSE": b"theirs"})
    with pytest.raises(
        HubError, match=rf"'{repo}' cannot be pushed: the token lacks the right to write to it \(403\)"
    ):
        push(repo=repo, access=push.access(token=token))
    assert not hub.requests("PUT|/commit/")


def test_a_private_repo_of_somebody_else_is_told_like_one_without_right(hub: HubServer, push: Pusher) -> None:
    hub.publish("bob/secret", {"LICENSE": b"theirs"}, private=True)
    with pytest.raises(HubError, match=r"'bob/secret' cannot be pushed: the token lacks the right"):
        push(repo="bob/secret")


@pytest.mark.parametrize(
    "repo", ["a b", "alice/x.git", "alice//x", "-x", "a/b/c", "alice/x--y", "../x", "alice/" + "x" * 97]
)
def test_a_name_that_the_hub_refuses_never_leaves(hub: HubServer, push: Pusher, repo: str) -> None:
    with pytest.raises(InputError, match="cannot be a repo on the Hub"):
        push(repo=repo)
    assert not hub.log


@pytest.mark.parametrize("option", ["branch", "tag"])
def test_a_ref_that_git_refuses_never_leaves(hub: HubServer, push: Pusher, option: str) -> None:
    with pytest.raises(InputError, match=f"'a b' cannot be a revision of '{REPO}'"):
        push(FILES, REPO, **{option: "a b"})
    assert not hub.log


def test_a_name_that_only_the_hub_refuses_is_quoted(hub: HubServer, push: Pusher) -> None:
    hub.fault("POST", "/api/repos/create", status=400, headers={"X-Error-Message": "Reserved name"})
    with pytest.raises(HubError, match=rf"'{REPO}' cannot be pushed: the Hub answered 400: 'Reserved name"):
        push()
    assert not push.naps


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/preupload/", 403, "Private repository storage limit reached"),
        ("/commit/", 402, "Payment required"),
        ("/lfs/objects/batch", 413, "Too large"),
        ("/cdn/", 507, "Full"),
    ],
)
def test_a_full_account_is_told(hub: HubServer, push: Pusher, path: str, status: int, words: str) -> None:
    hub.fault("*", path, status=status, headers={"X-Error-Message": words}, times=100)
    with pytest.raises(HubError, match=rf"no room for it \({status}: '{words}.*enlarge the plan"):
        push()


def test_a_card_that_the_hub_refuses_is_told_before_anything_is_sent(hub: HubServer, push: Pusher) -> None:
    with pytest.raises(HubError, match=rf"'{REPO}' cannot be pushed: 'Invalid metadata in README\.md"):
        push({**FILES, "README.md": b"---\nlicense: [unclosed\n---\n"})
    assert not hub.requests("PUT|/commit/|/preupload/")


def test_a_refused_large_file_is_told(hub: HubServer, push: Pusher) -> None:
    hub.fault(
        "POST", "/lfs/objects/batch", status=200, headers={"Content-Type": "application/json"},
        body=b'{"objects": [{"oid": "00", "size": 1, "error": {"code": 422, "message": "no such hash"}}]}',
    )  # fmt: skip
    with pytest.raises(HubError, match=r"cannot be pushed: 'LFS batch API returned errors.*no such hash"):
        push()


def test_a_local_file_that_is_gone_is_named(push: Pusher, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"lost\.safetensors"):
        push({"README.md": CARD, "experts-1.safetensors": tmp_path / "lost.safetensors"})


def test_offline_nothing_is_pushed(hub: HubServer, push: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="This run is offline, so nothing can be pushed"):
        push(access=push.access(local_files_only=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="This run is offline, so nothing can be pushed"):
        push()
    assert not hub.log


def test_a_stored_token_is_not_for_an_address_without_encryption(hub: HubServer, push: Pusher) -> None:
    Path(constants.HF_TOKEN_PATH).write_text("hf_stored_for_the_real_hub")
    with pytest.raises(HubError, match="Nobody is logged in"):
        push(access=push.access(token=None))
    assert not hub.log


# Two at once


def test_a_commit_in_between_is_read_and_built_upon(hub: HubServer, push: Pusher) -> None:
    push()

    def meddle() -> None:
        hub.publish(REPO, {**push.tree(), "LICENSE": b"theirs"})

    hub.fault("POST", "/preupload/", call=meddle, drop="answer")
    push({**FILES, "chains.json": b"{}"}, tag=TAG)
    assert push.tree() == {**FILES, "chains.json": b"{}", "LICENSE": b"theirs"}
    assert [request.status for request in hub.requests("/commit/")][1:] == [412, 200]
    assert not push.naps


def test_two_pushes_at_once_never_mix(hub: HubServer, push: Pusher) -> None:
    claim_repo(REPO, private=None, access=push.access())
    two = [{**DATA, "chains.json": data, f"experts-0000{data[0]}-of-00009.safetensors": data} for data in (b"1", b"2")]
    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(push, dict(files)) for files in two]
        # Who lost twice is told so; whoever was not told has pushed.
        told = [error for end in ends if (error := end.exception()) is not None]
        assert len(told) < 2 and all("at the same time" in str(error) for error in told)
        assert push.tree() in two
    trees = [push.tree(oid) for oid in hub.repo(REPO).commits]
    assert all(tree in (*two, {}) for tree in trees) and len(trees) > 5


def test_a_second_commit_in_between_is_a_conflict(hub: HubServer, push: Pusher) -> None:
    pushed = push()
    hub.fault("POST", "/commit/", status=412, times=2)
    with pytest.raises(HubError, match=f"Somebody else pushes to '{REPO}' at the same time"):
        push({**FILES, "chains.json": b"{}"})
    assert hub.repo(REPO).resolve("main").oid == pushed.revision
    assert len(hub.requests("/commit/")) == 3


def test_a_repo_that_is_deleted_in_between_is_told(hub: HubServer, push: Pusher) -> None:
    push()
    hub.fault("POST", "/commit/", drop="request", call=lambda: hub.repos.clear())
    with pytest.raises(HubError, match=f"'{REPO}' was deleted while it was pushed to"):
        push({**FILES, "chains.json": b"{}"})


def test_a_repo_that_may_be_written_but_not_seen_is_told(hub: HubServer, push: Pusher) -> None:
    hub.publish(REPO, {"LICENSE": b"mine"})
    hub.fault("GET", "/api/models/", status=404, headers={"X-Error-Code": "RepoNotFound"}, times=2)
    with pytest.raises(HubError, match=f"'{REPO}' exists, but {hub.endpoint} does not show it to this token"):
        push()


def test_a_hub_that_names_no_commit_is_not_believed(hub: HubServer, push: Pusher) -> None:
    hub.fault("GET", "/api/models/", status=200, body=b'{"id": "alice/glue-c0359", "sha": "../../x"}')
    with pytest.raises(HubError, match=r"calls '\.\./\.\./x' a commit of"):
        push()


# Collections


ITEMS = {"alice/glue": "The family", "alice/glue-c0359": "C = 0.359"}


@pytest.fixture
def repos(hub: HubServer, push: Pusher) -> None:
    for name in ITEMS:
        hub.publish(name, {"README.md": CARD})


def collect(push: Pusher, items: Mapping[str, str] = ITEMS, **options: Any) -> str:
    usual: dict[str, Any] = {"private": False, "access": push.access()}
    return make_collection("Glue", "alice", items, **usual | options)


@pytest.mark.usefixtures("repos")
def test_a_collection_groups_the_repos_in_their_order(hub: HubServer, push: Pusher) -> None:
    slug = collect(push)
    collection = hub.collections[slug]
    assert (collection["title"], collection["private"]) == ("Glue", False)
    assert {item["id"]: item["note"]["text"] for item in collection["items"]} == ITEMS
    assert [item["id"] for item in collection["items"]] == list(ITEMS)


@pytest.mark.parametrize("private", [False, True])
def test_a_collection_is_as_private_as_its_first_repo(hub: HubServer, push: Pusher, private: bool) -> None:
    for name in ITEMS:
        hub.publish(name, {"README.md": CARD}, private=private)
    slug = collect(push, private=None)
    assert hub.collections[slug]["private"] == private
    hub.log.clear()
    assert collect(push, private=None) == slug
    assert not hub.requests(WRITES)


@pytest.mark.usefixtures("repos")
def test_the_same_collection_again_sends_nothing(hub: HubServer, push: Pusher) -> None:
    slug = collect(push)
    hub.log.clear()
    assert collect(push) == slug
    assert not hub.requests(WRITES)


@pytest.mark.usefixtures("repos")
def test_a_collection_is_completed_and_what_others_put_there_stays(hub: HubServer, push: Pusher) -> None:
    many = {f"alice/other-{number}": "Other" for number in range(6)}
    for name in many:
        hub.publish(name, {"README.md": CARD})
    slug = collect(push, {"alice/glue": "An older note", **many})
    assert collect(push) == slug
    notes = {item["id"]: item["note"]["text"] for item in hub.collections[slug]["items"]}
    assert notes == {**many, **ITEMS}
    assert len(hub.collections) == 1


@pytest.mark.usefixtures("repos")
def test_a_collection_without_our_items_is_found_by_its_title(hub: HubServer, push: Pusher) -> None:
    slug = collect(push, {})
    assert collect(push) == slug
    assert len(hub.collections[slug]["items"]) == 2


@pytest.mark.usefixtures("repos")
def test_a_collection_is_found_by_title_and_member(push: Pusher) -> None:
    access = push.access(token=None)
    assert find_collection("Glue", "alice", "alice/glue", access=access) is None
    slug = collect(push)
    assert find_collection("Glue", "alice", "alice/glue", access=access) == slug
    assert find_collection("Glue", "alice", "alice/nothing", access=access) is None
    assert find_collection("Other", "alice", "alice/glue", access=access) is None


@pytest.mark.usefixtures("repos")
def test_a_collection_of_the_other_visibility_is_left_alone(hub: HubServer, push: Pusher) -> None:
    slug = collect(push, private=True)
    assert hub.collections[slug]["private"]
    with pytest.raises(HubError, match=f"'Glue' exists and is private, but the repos are not.*/collections/{slug}"):
        collect(push)


@pytest.mark.usefixtures("repos")
def test_a_token_without_the_right_makes_no_collection(push: Pusher) -> None:
    with pytest.raises(HubError, match=r"The collection 'Glue' cannot be pushed: the token lacks the right.*\(403\)"):
        collect(push, access=push.access(token="hf_reader"))


# Secrets


def test_no_message_shows_the_token(hub: HubServer, push: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + hashlib.sha256(b"planted").hexdigest()[:34]
    hub.add_user("alice", secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    words = {"X-Error-Message": f"Bearer {secret} is no good, see https://x.example/?token={secret}"}
    for status in (400, 401, 402, 403, 404, 409, 410, 412, 422, 429, 500):
        for token in (None, secret):
            hub.fault("*", "", status=status, headers={**words, "Retry-After": "1000"}, times=1000)
            with pytest.raises(HubError) as refused:
                push(access=push.access(token=token))
            hub.faults.clear()
            assert secret not in str(refused.value) and "planted" not in str(refused.value)
    assert secret not in repr(push.access(token=secret))
    assert os.environ["HF_TOKEN"] == secret
