"""Members loaded from the loopback Hub by the real client: bit for bit, no more than needed, and one clear error."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from hf_merge.errors import (
    BudgetTooSmall,
    CheckpointDamaged,
    DigestMismatch,
    HfMergeError,
    HubError,
    InputError,
    MalformedChainMap,
    PickleRefused,
    UnknownFormatVersion,
    UnsafeName,
)
from hf_merge.serving.model import MergeModel
from hf_merge.storing.front import FrontPoint
from tests.hub_server import HubServer
from tests.serving.members import MERGED, MIXED, SEPARATE, rows_of, write_family
from tests.serving.published import FAMILY, Visitor, content, fetched, member_repo, publish, republish
from tests.tiny_models import TinyFamily


Family = tuple[Path, list[FrontPoint]]


@pytest.fixture(scope="module")
def family(tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A family of three routed members; the dearer, the better. Not to be changed."""
    folder = tmp_path_factory.mktemp("family")
    return folder, write_family(tiny_family("bert"), folder, [SEPARATE, MERGED, MIXED], routed=True)


@pytest.fixture
def visitor(hub: HubServer, tmp_path: Path) -> Visitor:
    hub.add_user("bob", "hf_bob")
    return Visitor(hub, tmp_path / "cache")


@pytest.fixture
def points(hub: HubServer, family: Family) -> list[FrontPoint]:
    """The family on the Hub: its points by rising cost, as published."""
    return list(publish(hub, family[0]).values())


# The same model


def test_a_budget_brings_the_member_that_the_local_family_gives(
    hub: HubServer,
    visitor: Visitor,
    points: list[FrontPoint],
    family: Family,
    tiny_family: Callable[[str], TinyFamily],
) -> None:
    texts = [text for task in ("animals", "colours", "sizes") for text in rows_of(tiny_family("bert"), task)[:10]]
    for point in points:
        local = MergeModel.from_pretrained(family[0], budget=point.cost)
        there = MergeModel(visitor.open(budget=point.cost))
        assert there.chain_map == local.chain_map
        expected, found = local.outputs(texts), there.outputs(texts)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.task_ids, expected.task_ids)


def use(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a Hub the one that the client talks to by itself."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_from_pretrained_takes_what_the_client_takes(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hub, monkeypatch)
    options: dict[str, Any] = {"cache_dir": visitor.cache, "token": "hf_alice"}
    model = MergeModel.from_pretrained(FAMILY, budget=points[0].cost, tasks=["sizes"], revision="main", **options)
    assert (model.chain_map.id, model.tasks) == (points[0].id, ("sizes",))
    hub.log.clear()
    again = MergeModel.from_pretrained(
        FAMILY, budget=points[0].cost, tasks=["sizes"], local_files_only=True, **options
    )
    assert again.chain_map == model.chain_map
    assert not hub.log


def test_a_member_repo_is_loaded_by_itself(hub: HubServer, visitor: Visitor, points: list[FrontPoint]) -> None:
    for point in points:
        assert visitor.open(member_repo(point)).chain_map.id == point.id
    hub.repo(member_repo(points[0])).refs[f"refs/tags/{points[0].id}"] = str(points[0].revision)
    hub.publish(member_repo(points[0]), content(Path(__file__).parent))
    assert visitor.open(member_repo(points[0]), revision=points[0].id).chain_map.id == points[0].id
    with pytest.raises(BudgetTooSmall):
        visitor.open(member_repo(points[1]), points[0].cost)


def test_a_downloaded_family_folder_leads_to_the_same_members(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], family: Family, tmp_path: Path
) -> None:
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded" / "front.json").write_bytes(hub.read(hub.repo(FAMILY).resolve("main").tree["front.json"]))
    assert visitor.open(tmp_path / "downloaded", points[1].cost).chain_map.id == points[1].id
    hub.log.clear()
    shutil.copytree(family[0] / "members", tmp_path / "downloaded" / "members")
    assert visitor.open(tmp_path / "downloaded", points[0].cost).folder.is_relative_to(tmp_path / "downloaded")
    assert not hub.log, "what lies beside the front is not fetched"
    changed = tmp_path / "downloaded" / "members" / points[0].id / "chains.json"
    changed.write_bytes(changed.read_bytes() + b"\n")
    with pytest.raises(DigestMismatch, match="not the member that was published"):
        visitor.open(tmp_path / "downloaded", points[0].cost)


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # the card of these tests has none
def test_a_model_from_the_hub_is_saved_and_pushed_whole(
    hub: HubServer,
    visitor: Visitor,
    points: list[FrontPoint],
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(hub, monkeypatch)
    model, local = MergeModel(visitor.open()), content(family[0] / "members" / points[-1].id)
    model.save_pretrained(tmp_path / "saved")
    assert content(tmp_path / "saved") == local
    address = model.push_to_hub("copied", token="hf_alice", private=True)
    assert address == f"{hub.endpoint}/alice/copied"
    commit = hub.repo("alice/copied").resolve(points[-1].id)
    assert {name: hub.read(blob) for name, blob in commit.tree.items() if name != ".gitattributes"} == local
    sent = len(hub.requests("PUT /cdn/"))
    model.push_to_hub("copied", token="hf_alice", private=True)
    assert len(hub.requests("PUT /cdn/")) == sent
    assert hub.repo("alice/copied").resolve("main").oid == commit.oid
    assert visitor.open("alice/copied", token="hf_alice").chain_map == model.chain_map


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")
def test_another_configurations_repo_is_not_pushed_over(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hub, monkeypatch)
    model = MergeModel(visitor.open())
    taken = member_repo(points[0])
    with pytest.raises(HubError, match=rf"'{taken}' holds {points[0].id}, not {points[-1].id}"):
        model.push_to_hub(taken, token="hf_alice")


def test_a_family_whose_first_push_has_not_ended_says_so(hub: HubServer, visitor: Visitor) -> None:
    hub.publish("alice/begun", {".gitattributes": b""})
    with pytest.raises(CheckpointDamaged, match=r"'alice/begun' at .* is empty: its push has not ended"):
        visitor.open("alice/begun")


# One commit, and nothing else


def test_only_the_chosen_member_is_fetched(hub: HubServer, visitor: Visitor, points: list[FrontPoint]) -> None:
    hub.publish(
        member_repo(points[0]),
        dict.fromkeys(("chains.json", "config.json", "evil.py", "model.safetensors"), b"later"),
    )
    member = visitor.open(budget=points[0].cost)
    repo = member_repo(points[0])
    names = {*member.chain_map.files, "chains.json", "README.md"}
    assert set(fetched(hub)) == {f"{FAMILY}/front.json", *(f"{repo}/{name}" for name in names)}
    hub.log.clear()
    visitor.open(budget=points[0].cost)
    assert len(hub.log) == 1, "one look-up of the family's branch"


def test_a_push_in_mid_load_mixes_nothing(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], family: Family
) -> None:
    def push() -> None:
        for point in points:
            hub.publish(member_repo(point), {"chains.json": b"of another search", "config.json": b"{}"})
        hub.publish(FAMILY, {"front.json": b"another front"})

    hub.fault("GET", "/chains.json", drop="request", call=push)
    member = visitor.open(budget=points[1].cost)
    assert content(member.folder) == content(family[0] / "members" / points[1].id)


def test_a_repo_is_never_taken_for_a_local_folder(
    hub: HubServer,
    visitor: Visitor,
    points: list[FrontPoint],
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(family[0] / "members" / points[1].id, tmp_path / member_repo(points[0]))
    member = visitor.open(budget=points[0].cost)
    assert member.chain_map.id == points[0].id
    assert member.folder.is_relative_to(visitor.cache)
    assert visitor.open(member_repo(points[0])).folder == Path(member_repo(points[0])), "but the user may name one"


# Some of the tasks


def test_of_one_task_only_its_own_files_are_fetched(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint]
) -> None:
    member = visitor.open(tasks=["sizes"])
    assert member.tasks == ("sizes",)
    assert {name.rpartition("/")[2] for name in fetched(hub)} == {"front.json", "chains.json", *member.files}
    assert "router.safetensors" not in member.files
    both = visitor.open(tasks=["sizes", "animals"])
    assert "router.safetensors" in both.files
    assert {name.rpartition("/")[2] for name in fetched(hub)} == {"front.json", "chains.json", *both.files}
    assert "README.md" not in both.files


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["size"], r"Unknown task 'size'\. Did you mean 'sizes'\?"),
        (["sizes"] * 2, "chosen twice"),
        ([], "give a list"),
    ],
)
def test_choices_of_tasks_that_are_none_cost_no_more_than_maps(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], tasks: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        visitor.open(tasks=tasks)
    assert {name.rpartition("/")[2] for name in fetched(hub)} == {"front.json", "chains.json"}


# Rights


def test_a_private_family_opens_to_those_who_may(hub: HubServer, visitor: Visitor, family: Family) -> None:
    publish(hub, family[0], private=True)
    assert visitor.open(token="hf_alice")
    assert all(request.authorized for request in hub.requests("/api/models/"))
    for token in (False, "hf_bob"):
        with pytest.raises(HubError, match=rf"No model '{FAMILY}'.*log in with `hf auth login`") as refused:
            Visitor(hub, visitor.cache.with_name("other")).open(token=token)
        assert "hf_bob" not in str(refused.value)
    with pytest.raises(HubError, match=r"does not know the token \(401\)"):
        Visitor(hub, visitor.cache.with_name("third")).open(token="hf_mallory")


def test_a_private_member_of_a_public_family_is_named(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint]
) -> None:
    hub.repo(member_repo(points[-1])).private = True
    with pytest.raises(HubError, match=f"The family '{FAMILY}' at .* keeps {points[-1].id} in '{FAMILY}-") as refused:
        visitor.open(token="hf_bob")
    assert "log in with `hf auth login`" in str(refused.value)
    assert visitor.open(token="hf_alice")


def test_a_gated_family_says_where_to_ask(hub: HubServer, visitor: Visitor, points: list[FrontPoint]) -> None:
    hub.repo(FAMILY).gated = True
    with pytest.raises(HubError, match=rf"'{FAMILY}' is gated\. Ask for access at {hub.endpoint}/{FAMILY}"):
        visitor.open(token="hf_bob")
    hub.repo(FAMILY).gated, hub.repo(member_repo(points[-1])).gated = False, True
    with pytest.raises(HubError, match=rf"keeps {points[-1].id} in .* is gated\. Ask for access at") as refused:
        visitor.open(token="hf_bob")
    assert "deleted" not in str(refused.value)
    hub.repo(member_repo(points[-1])).allowed.add("bob")
    assert visitor.open(token="hf_bob")


# Errors


def test_an_unknown_revision_is_named(visitor: Visitor, points: list[FrontPoint]) -> None:
    for revision in ("nowhere", "f" * 40):
        with pytest.raises(HubError, match=f"'{FAMILY}' has no revision '{revision}'"):
            visitor.open(revision=revision)


def test_a_deleted_member_is_named_and_the_others_still_load(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint]
) -> None:
    del hub.repos["model", member_repo(points[-1])]
    said = (
        rf"keeps {points[-1].id} in '{member_repo(points[-1])}' at .*No model .*another budget.*hf-merge push restores"
    )
    with pytest.raises(HubError, match=said):
        visitor.open()
    assert visitor.open(budget=points[1].cost).chain_map.id == points[1].id


def test_a_commit_that_was_forced_away_is_named(hub: HubServer, visitor: Visitor, points: list[FrontPoint]) -> None:
    republish(hub, {"revision": "0" * 40}, only=points[-1].id)
    with pytest.raises(HubError, match=f"keeps {points[-1].id} in .*no revision '{'0' * 40}'.*If it was deleted"):
        visitor.open()


def test_a_member_that_the_front_does_not_promise_is_refused(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint]
) -> None:
    republish(hub, {"map_sha256": "0" * 64}, only=points[-1].id)
    with pytest.raises(
        DigestMismatch, match=rf"'{member_repo(points[-1])}' at .*chains\.json has SHA-256 .*0000\.\.\."
    ):
        visitor.open()
    assert set(fetched(hub)) == {f"{FAMILY}/front.json", f"{member_repo(points[-1])}/chains.json"}
    other = {key: getattr(points[0], key) for key in ("repo", "revision", "map_sha256")}
    republish(hub, other, only=points[-1].id)
    with pytest.raises(MalformedChainMap, match=f"holds {points[0].id} .* speaks of {points[-1].id}"):
        visitor.open()


@pytest.mark.parametrize("damage", ["missing", "exchanged", "no map"])
def test_files_that_are_not_those_of_the_map_are_refused(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], family: Family, damage: str
) -> None:
    files = content(family[0] / "members" / points[-1].id)
    if damage == "exchanged":
        files["config.json"] = files["config.json"].replace(b"bert", b"gpt2")
    else:
        del files["chains.json" if damage == "no map" else "router.safetensors"]
    republish(hub, {"revision": hub.publish(member_repo(points[-1]), files)}, only=points[-1].id)
    words = {
        "missing": r"router\.safetensors is missing",
        "exchanged": r"config\.json has",
        "no map": r"holds no chains",
    }
    with pytest.raises(
        (DigestMismatch, CheckpointDamaged), match=rf"'{member_repo(points[-1])}' at .*{words[damage]}"
    ):
        visitor.open()


def test_a_file_that_was_damaged_in_the_cache_is_said_to_be_and_can_be_fetched_again(
    visitor: Visitor, points: list[FrontPoint]
) -> None:
    path = visitor.open().folder / "config.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(DigestMismatch, match=rf"config\.json has .*Delete {path.resolve()} and fetch it again\."):
        visitor.open()
    path.resolve().unlink()
    assert visitor.open().folder == path.parent


def test_a_front_that_names_no_repo_says_how_to_publish(hub: HubServer, visitor: Visitor, family: Family) -> None:
    hub.publish(FAMILY, {"front.json": (family[0] / "front.json").read_bytes()})
    with pytest.raises(CheckpointDamaged, match=rf"names no member repo.*hf-merge push RUN {FAMILY}"):
        visitor.open()


def test_only_what_was_published_is_chosen(hub: HubServer, visitor: Visitor, points: list[FrontPoint]) -> None:
    republish(hub, {"repo": None, "revision": None, "map_sha256": None}, only=points[-1].id)
    assert visitor.open().chain_map.id == points[1].id


def test_a_budget_below_the_cheapest_fetches_no_member(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint]
) -> None:
    with pytest.raises(BudgetTooSmall, match=f"the cheapest, {points[0].id}, costs"):
        visitor.open(budget=0.01)
    assert set(fetched(hub)) == {f"{FAMILY}/front.json"}
    with pytest.raises(BudgetTooSmall):
        visitor.open(member_repo(points[0]), "1KB")
    assert f"{member_repo(points[0])}/chains.json" in fetched(hub)
    assert not [name for name in fetched(hub) if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (
            {"config.json": b'{"architectures": ["BertForSequenceClassification"]}', "model.safetensors": b"x"},
            CheckpointDamaged,
            r"'alice/other' at .* ordinary model: .*AutoModelForSequenceClassification\.from_pretrained\.$",
        ),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, CheckpointDamaged, "AutoPeftModel"),
        (
            {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
            PickleRefused,
            r"AutoModel\.from_pretrained\. Its weights are pickles \(pytorch_model\.bin\)",
        ),
        ({"pytorch_model.bin": b"a pickle"}, PickleRefused, r"did not write it\. Its weights are pickles"),
        ({"notes.txt": b"x"}, CheckpointDamaged, r"holds neither chains\.json nor front\.json.*did not write it\.$"),
    ],
)
def test_what_hf_merge_did_not_write_names_its_loader(
    hub: HubServer, visitor: Visitor, files: dict[str, bytes], error: type[HfMergeError], message: str
) -> None:
    hub.publish("alice/other", files)
    with pytest.raises(error, match=message):
        visitor.open("alice/other")
    assert not hub.requests("/cdn/|pytorch_model")


def test_a_data_set_and_a_missing_repo_are_named(hub: HubServer, visitor: Visitor) -> None:
    hub.publish("alice/rows", {"train.parquet": b"PAR1"}, repo_type="dataset")
    with pytest.raises(HubError, match="'alice/rows' is a data set, not a model"):
        visitor.open("alice/rows")
    with pytest.raises(HubError, match=r"No model 'alice/tyny'.*Check the spelling"):
        visitor.open("alice/tyny")
    with pytest.raises(InputError, match="No folder"):
        visitor.open("./alice/tiny")


def edited(hub: HubServer, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(hub.read(hub.repo(FAMILY).resolve("main").tree["front.json"]))
    edit(document)
    hub.publish(FAMILY, {"front.json": json.dumps(document).encode()})


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "members", ".", "alice/../bob", "alice\\x", "a/b/c", ""])
def test_a_front_that_names_a_path_is_refused(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], name: str
) -> None:
    edited(hub, lambda front: front["points"][-1].update(repo=name))
    hub.log.clear()
    with pytest.raises(UnsafeName, match=r"points\[2\]\.repo"):
        visitor.open()
    assert set(fetched(hub)) == {f"{FAMILY}/front.json"}


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda front: front.update(format_version=2), UnknownFormatVersion),
        (lambda front: front["points"][0].update(revision="main"), MalformedChainMap),
        (lambda front: front["points"][0].update(map_sha256=None), MalformedChainMap),
        (lambda front: front["points"][0].update(cost=1e400), MalformedChainMap),
        (lambda front: front["points"][0].update(cost="cheap"), MalformedChainMap),
        (lambda front: front.update(extra=1), MalformedChainMap),
    ],
)
def test_fronts_that_break_the_format_are_refused(
    hub: HubServer,
    visitor: Visitor,
    points: list[FrontPoint],
    edit: Callable[[dict[str, Any]], object],
    error: type[HfMergeError],
) -> None:
    edited(hub, edit)
    with pytest.raises(error, match=r"front\.json"):
        visitor.open()


def test_a_member_of_a_newer_format_is_refused(hub: HubServer, visitor: Visitor, points: list[FrontPoint]) -> None:
    hub.publish(member_repo(points[0]), {"chains.json": b'{"format_version": 2}'})
    with pytest.raises(UnknownFormatVersion, match=r"reads version 1\. Update hf-merge"):
        visitor.open(member_repo(points[0]))


# Offline


def go_offline(monkeypatch: pytest.MonkeyPatch, how: str) -> dict[str, Any]:
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, how, True)
        return {}
    return {how: True}


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_a_warm_cache_serves_and_a_cold_one_says_what_it_lacks(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    visitor.open(budget=points[1].cost)
    visitor.open(tasks=["sizes"])
    hub.log.clear()
    offline = go_offline(monkeypatch, how)
    assert visitor.open(budget=points[1].cost, **offline).chain_map.id == points[1].id
    assert visitor.open(tasks=["sizes"], **offline).tasks == ("sizes",)
    with pytest.raises(HubError, match=rf"keeps {points[-1].id} in .*cache holds no 'router\.safetensors'") as refused:
        visitor.open(**offline)
    assert "deleted" not in str(refused.value)
    with pytest.raises(HubError, match=rf"keeps {points[0].id} in .*offline, and the cache holds nothing of"):
        visitor.open(budget=points[0].cost, **offline)
    with pytest.raises(HubError, match=f"offline, and the cache holds nothing of '{FAMILY}' at revision 'main'"):
        Visitor(hub, visitor.cache.with_name("cold")).open(**offline)
    assert not hub.log


@pytest.mark.usefixtures("hub")
def test_a_hub_out_of_reach_falls_back_to_the_cache(family: Family, tmp_path: Path) -> None:
    with HubServer() as gone:
        publish(gone, family[0])
        visitor = Visitor(gone, tmp_path / "cache")
        online = visitor.open()
    assert visitor.open().chain_map == online.chain_map


# Faults


WAIT = 3
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "429 with a wait": {"status": 429, "headers": {"RateLimit": f'"api";r=0;t={WAIT}'}},
    "a reset": {"drop": "request"},
    "a cut in mid-body": {"drop": "body"},
}
MOST_REPEATS = 8


@pytest.fixture
def visit(family: Family, tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Callable[[], Visitor]]:
    """Returns a function that makes a new Hub with the family, and a visitor to it."""
    servers: list[HubServer] = []

    def start() -> Visitor:
        servers.append(HubServer().__enter__())
        publish(servers[-1], family[0])
        return Visitor(servers[-1], tmp_path_factory.mktemp("cache"))

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_load_outlasts_one_fault_at_every_request(
    visit: Callable[[], Visitor], family: Family, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, points = family
    plain = visit()
    plain.open(budget=points[1].cost)
    count = len(plain.hub.log)
    expected = content(folder / "members" / points[1].id)
    for number in range(count):
        visitor = visit()
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", visitor.naps.append)
        visitor.hub.fault("*", "", skip=number, **FAULTS[kind])
        member = visitor.open(budget=points[1].cost)
        where = f"{kind} at {number}: {[(entry.method, entry.path, entry.status) for entry in visitor.hub.log]}"
        assert content(member.folder) == expected, where
        assert [fault.times for fault in visitor.hub.faults] == [0], where
        assert len(visitor.hub.log) <= count + MOST_REPEATS, where
        assert sum(visitor.naps) <= 2 * (WAIT + 1), where
    assert count >= 12


def test_what_keeps_failing_is_said_with_the_member_it_concerns(
    hub: HubServer, visitor: Visitor, points: list[FrontPoint]
) -> None:
    hub.fault("GET", "/cdn/", status=503, times=1000)
    with pytest.raises(HubError, match=f"keeps {points[-1].id} in .*the Hub keeps answering 503") as refused:
        visitor.open()
    assert "deleted" not in str(refused.value)
    hub.faults.clear()
    assert visitor.open()
