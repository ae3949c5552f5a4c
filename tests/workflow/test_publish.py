"""A front on the Hub: pushed with the real client, loaded by budget from an empty cache, the same bit for bit."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_merge.errors import DigestMismatch, HubError, InputError, RunFolderError
from hf_merge.serving.model import MergeModel
from hf_merge.serving.selection import open_member
from hf_merge.storing import front as fronts
from hf_merge.storing.hub import Access
from hf_merge.workflow import publish
from hf_merge.workflow.publish import SENSIBLE, Publication, member_repos, push
from hf_merge.workflow.report import report
from tests.hub_server import HubServer
from tests.tiny_runs import TinyRun


WRITES = r"^(POST|PUT|DELETE|PATCH) (?!/api/validate-yaml)"
TOKEN = "hf_alice_a_secret_of_forty_characters_xx"
DRAWN: dict[str, bytes] = {}


@pytest.fixture(autouse=True)
def each_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is half of the time of a push, and equal fronts are drawn to equal bytes (tests/storing/test_plots)."""

    def kept(name: str) -> Callable[..., bytes]:
        draw: Callable[..., bytes] = getattr(publish, name)

        def drawn(*what: object) -> bytes:
            key = f"{name}{what!r}"
            return DRAWN[key] if key in DRAWN else DRAWN.setdefault(key, draw(*what))

        return drawn

    for name in ("plot_front", "plot_grouping"):
        monkeypatch.setattr(publish, name, kept(name))


@pytest.fixture
def access(hub: HubServer, tmp_path: Path) -> Access:
    hub.add_user("alice", TOKEN)
    return Access(token=TOKEN, cache_dir=tmp_path / "cache", endpoint=hub.endpoint, sleep=lambda _: None)


@pytest.fixture
def elsewhere(access: Access, tmp_path: Path) -> Access:
    """The same Hub from another machine: another cache."""
    return replace(access, cache_dir=tmp_path / "elsewhere")


def pushed(run: Path, access: Access, repo: str = "alice/tiny", **options: Any) -> Publication:
    return push(run, repo, progress=False, access=access, **options)


def head(hub: HubServer, repo: str, revision: str = "main") -> dict[str, bytes]:
    """Returns the files of a repo."""
    return {path: hub.read(blob) for path, blob in hub.repo(repo).resolve(revision).tree.items()}


def test_every_configuration_gets_a_repo_and_the_family_names_its_commit(
    hub: HubServer, tiny_run: TinyRun, access: Access
) -> None:
    done = pushed(tiny_run.folder, access, everything=True)
    front = fronts.parse(head(hub, "alice/tiny")["front.json"])
    every = {point.id: point for point in (*front.points, *front.controls.values())}
    assert done.members.keys() == every.keys()
    for identifier, point in every.items():
        assert point.repo is not None
        commit = hub.repo(point.repo).resolve(identifier)  # the tag says that it is whole
        assert point.revision == commit.oid == hub.repo(point.repo).resolve("main").oid
        assert point.map_sha256 == hashlib.sha256(head(hub, point.repo)["chains.json"]).hexdigest()
        local = tiny_run.folder / "members" / identifier
        there = head(hub, point.repo)
        for name in (path.name for path in local.iterdir() if path.name != "README.md"):
            assert there[name] == (local / name).read_bytes()


def test_what_is_loaded_from_the_hub_answers_bit_for_bit_like_the_local_model(
    hub: HubServer, tiny_run: TinyRun, access: Access, elsewhere: Access
) -> None:
    pushed(tiny_run.folder, access, everything=True)
    texts = ["some words", "other words and more of them"]
    for point in tiny_run.front.points:
        local = MergeModel.from_pretrained(tiny_run.folder, budget=point.cost).outputs(texts)
        model = MergeModel(open_member("alice/tiny", point.cost, access=elsewhere))
        assert model.chain_map.id == point.id
        assert torch.equal(model.outputs(texts).logits, local.logits)
        assert torch.equal(model.outputs(texts).task_ids, local.task_ids)


def test_a_second_push_sends_nothing(hub: HubServer, tiny_run: TinyRun, access: Access) -> None:
    first = pushed(tiny_run.folder, access)
    before = len(hub.log)
    second = pushed(tiny_run.folder, access)
    assert second.family.revision == first.family.revision
    assert not any(item.sent for item in (second.family, *second.members.values()))
    later = hub.log[before:]
    assert not [entry for entry in later if entry.method == "PUT" or "/commit/" in entry.path or "/tag/" in entry.path]


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    hub: HubServer, tiny_run: TinyRun, access: Access
) -> None:
    would = pushed(tiny_run.folder, access, dry_run=True)
    assert not hub.repos
    done = pushed(tiny_run.folder, access)
    assert {name: set(item.sent) for name, item in would.members.items()} == {
        name: set(item.sent) for name, item in done.members.items()
    }
    assert sum(item.bytes_sent for item in would.members.values()) == sum(
        item.bytes_sent for item in done.members.values()
    )
    again = pushed(tiny_run.folder, access, dry_run=True)
    assert not any(item.sent for item in (again.family, *again.members.values()))


def test_a_push_of_one_more_keeps_what_the_family_names_already(
    hub: HubServer, tiny_run: TinyRun, access: Access
) -> None:
    first, second = (point.id for point in tiny_run.front.points[:2])
    pushed(tiny_run.folder, access, configs=[first])
    pushed(tiny_run.folder, access, configs=[second])
    front = fronts.parse(head(hub, "alice/tiny")["front.json"])
    assert [point.id for point in front.points if point.repo is not None] == [first, second]


def test_a_push_of_another_search_replaces_the_front(
    hub: HubServer, tiny_run: TinyRun, access: Access, tmp_path: Path
) -> None:
    pushed(tiny_run.folder, access, configs=[tiny_run.front.points[0].id])
    other = tmp_path / "other"
    shutil.copytree(tiny_run.folder, other)
    changed = replace(tiny_run.front, hypervolume=tiny_run.front.hypervolume / 2)
    (other / "front.json").write_bytes(fronts.dump(changed))
    pushed(other, access, configs=[tiny_run.front.points[1].id])
    front = fronts.parse(head(hub, "alice/tiny")["front.json"])
    assert [point.id for point in front.points if point.repo is not None] == [tiny_run.front.points[1].id]


def test_a_long_front_is_thinned_unless_all_is_asked_for(tiny_run: TinyRun, hub: HubServer, access: Access) -> None:
    would = pushed(tiny_run.folder, access, dry_run=True)
    assert len(would.members) == min(SENSIBLE, len(tiny_run.front.points))
    would = pushed(tiny_run.folder, access, dry_run=True, max_configs=2)
    ends = {tiny_run.front.points[0].id, max(tiny_run.front.points, key=lambda point: point.performance).id}
    assert would.members.keys() == ends
    for wrong in (0, -1):
        with pytest.raises(InputError, match="give at least 1"):
            pushed(tiny_run.folder, access, dry_run=True, max_configs=wrong)
    with pytest.raises(InputError, match="only one of --config, --max-configs and --all"):
        pushed(tiny_run.folder, access, max_configs=2, everything=True)


def test_a_collection_groups_the_family(hub: HubServer, tiny_run: TinyRun, access: Access) -> None:
    done = pushed(tiny_run.folder, access, max_configs=2)
    assert done.collection is not None
    items = {item["id"] for item in hub.collections[done.collection]["items"]}
    assert items == {"alice/tiny", *(item.repo for item in done.members.values())}


def test_without_the_right_to_collections_the_push_says_so_and_goes_on(
    hub: HubServer, tiny_run: TinyRun, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fault("*", "/api/collections", status=403, times=9)
    done = pushed(tiny_run.folder, access, max_configs=1)
    assert done.collection is None
    assert done.family.revision
    assert "No collection groups the repos" in caplog.text


def test_members_go_before_the_front_that_names_them(hub: HubServer, tiny_run: TinyRun, access: Access) -> None:
    pushed(tiny_run.folder, access, max_configs=2)
    commits = [entry.path for entry in hub.log if "/commit/" in entry.path]
    assert [path.split("/")[4] for path in commits][-1] == "tiny"
    assert all(path.split("/")[4].startswith("tiny-c") for path in commits[:-1])


def test_a_private_family_opens_for_its_owner_alone(
    hub: HubServer, tiny_run: TinyRun, access: Access, elsewhere: Access
) -> None:
    hub.add_user("bob", "hf_bob")
    pushed(tiny_run.folder, access, private=True, max_configs=1)
    assert all(repo.private for repo in hub.repos.values())
    assert open_member("alice/tiny", access=elsewhere).chain_map.id
    for token in (False, "hf_bob", "hf_nobody"):
        with pytest.raises(HubError, match="alice/tiny"):
            open_member("alice/tiny", access=replace(elsewhere, token=token, cache_dir=None))


def test_a_branch_and_a_pull_request_are_loadable_and_leave_main_alone(
    hub: HubServer, tiny_run: TinyRun, access: Access, elsewhere: Access
) -> None:
    pushed(tiny_run.folder, access, branch="next", max_configs=1)
    assert "front.json" not in hub.repo("alice/tiny").resolve("main").tree
    assert open_member("alice/tiny", revision="next", access=elsewhere).chain_map.id
    done = pushed(tiny_run.folder, access, "alice/asked", create_pr=True, max_configs=1)
    assert "front.json" not in hub.repo("alice/asked").resolve("main").tree
    assert open_member("alice/asked", revision=done.family.revision, access=elsewhere).chain_map.id
    again = pushed(tiny_run.folder, access, "alice/asked", create_pr=True, max_configs=1)
    assert again.family.revision == done.family.revision


def test_configurations_that_were_not_built_are_built_first(
    hub: HubServer, tiny_run: TinyRun, access: Access, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "front.json", "journal.jsonl"):
        shutil.copy(tiny_run.folder / name, run)
    identifier = tiny_run.front.points[0].id
    with pytest.raises(RunFolderError, match=r"is not built yet.*hf-merge build"):
        pushed(run, access, configs=[identifier], dry_run=True)
    assert not (run / "members").exists()
    pushed(run, access, configs=[identifier])
    assert [path.name for path in (run / "members").iterdir()] == [identifier]


def test_a_damaged_member_is_not_pushed(hub: HubServer, tiny_run: TinyRun, access: Access, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.folder, run)
    identifier = tiny_run.front.points[0].id
    shard = next((run / "members" / identifier).glob("experts-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DigestMismatch, match=identifier):
        pushed(run, access, configs=[identifier])
    assert not hub.requests("PUT")


def test_test_scores_reach_the_card_and_an_old_report_is_refused(
    hub: HubServer, tiny_run: TinyRun, access: Access, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.folder, run)
    report(run, progress=False)
    pushed(run, access, max_configs=1)
    assert b"model-index" in head(hub, "alice/tiny")["README.md"]
    document = json.loads((run / "report.json").read_bytes())
    document["rows"] = document["rows"][:2]
    (run / "report.json").write_text(json.dumps(document))
    with pytest.raises(RunFolderError, match=r"lacks .*hf-merge report"):
        pushed(run, access, max_configs=1)


def test_no_path_of_this_machine_and_no_token_is_published(
    hub: HubServer, tiny_run: TinyRun, access: Access, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pushed(tiny_run.folder, access, everything=True)
    places = [str(tiny_run.folder.parent), str(tiny_run.family.base.parents[1]), str(tmp_path)]
    for repo in ("alice/tiny", *(repo.id for repo in hub.repos.values())):
        for path, data in head(hub, repo).items():
            assert not [place for place in places if place.encode() in data], path
            assert TOKEN.encode() not in data, path
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("name", ["alice/-x", "a/b/c", "alice/x..y", "alice/" + "x" * 97, "https://hf.co/a/b", ""])
def test_a_name_that_the_hub_would_refuse_is_refused_before_anything_is_asked(
    hub: HubServer, tiny_run: TinyRun, access: Access, name: str
) -> None:
    with pytest.raises(InputError):
        pushed(tiny_run.folder, access, name)
    assert not hub.log


def test_a_repo_of_somebody_else_is_refused(hub: HubServer, tiny_run: TinyRun, access: Access) -> None:
    with pytest.raises(HubError, match="bob/tiny"):
        pushed(tiny_run.folder, access, "bob/tiny")


def test_a_repo_that_holds_something_else_is_left_alone(hub: HubServer, tiny_run: TinyRun, access: Access) -> None:
    hub.publish("alice/tiny", {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"mine"})
    with pytest.raises(HubError, match=r"'alice/tiny' holds '.*' and no front\.json.*another name"):
        pushed(tiny_run.folder, access)
    assert head(hub, "alice/tiny")["README.md"] == b"mine"
    assert [repo.id for repo in hub.repos.values()] == ["alice/tiny"]


def test_a_folder_without_a_finished_search_is_refused(hub: HubServer, access: Access, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        pushed(tmp_path, access)


def test_repos_take_the_short_id_and_the_whole_one_where_two_share_it(tiny_run: TinyRun) -> None:
    first = tiny_run.front.points[0]
    twins = tuple(replace(first, id=f"c0300-{letter * 6}") for letter in "ab")
    front = replace(tiny_run.front, points=(replace(first, id="c0200-cccccc"), *twins), controls={})
    assert member_repos("alice/x", front) == {
        "c0200-cccccc": "alice/x-c0200",
        "c0300-aaaaaa": "alice/x-c0300-aaaaaa",
        "c0300-bbbbbb": "alice/x-c0300-bbbbbb",
    }


def test_language_models_speak_from_the_hub_as_they_do_here(
    speaking_run: Callable[[str], TinyRun], tmp_path: Path, access: Access, elsewhere: Access
) -> None:
    shutil.copytree(speaking_run("t5").folder, tmp_path / "run")
    pushed(tmp_path / "run", access, "alice/talk")
    texts = ["the small old cat", "today tomorrow cold snow sky"]
    here = MergeModel.from_pretrained(tmp_path / "run")
    there = MergeModel(open_member("alice/talk", None, access=elsewhere))
    assert there.chain_map == here.chain_map
    assert torch.equal(there.outputs(texts).logits, here.outputs(texts).logits)
    assert there.generate(texts, max_new_tokens=4) == here.generate(texts, max_new_tokens=4)
    part = MergeModel(open_member("alice/talk", None, tasks=["weather"], access=elsewhere))
    assert part.generate(texts[1:], max_new_tokens=4) == here.generate(texts[1:], max_new_tokens=4)
