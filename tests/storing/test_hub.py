"""The real client against the loopback Hub of `tests/hub_server`.

HF_ENDPOINT is read when huggingface_hub is imported, and other tests import it earlier, so the address goes in as an
argument. Nothing has to switch Xet off: the client takes a file by Xet only where the Hub offers a Xet hash, which
this one does not.
"""

import io
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from hf_merge.errors import CheckpointDamaged, HubError, InputError, PickleRefused, ResourceError
from hf_merge.storing.hub import (
    MEMBER_FILES,
    Access,
    Repo,
    Resolved,
    pin_dataset,
    pull_checkpoint,
    pull_files,
    read_file,
)
from tests.hub_server import HubServer


WEIGHTS = bytes(range(256)) * 600
MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"raise SystemExit",
    "consolidated.00.safetensors": WEIGHTS,
    "onnx/model.safetensors": WEIGHTS,
    "README.md": b"# A model",
}
PULLED = {"config.json", "tokenizer.json", "model.safetensors"}
DOWNLOADS = r"GET (/cdn/|/api/resolve-cache/)"


@dataclass(frozen=True)
class Puller:
    """Pulls from the loopback Hub into an empty cache; `naps` holds the waits that were asked for."""

    hub: HubServer
    cache: Path
    naps: list[float] = field(default_factory=list)

    def access(self, **changes: Any) -> Access:
        asked: dict[str, Any] = {"endpoint": self.hub.endpoint, "cache_dir": self.cache, "sleep": self.naps.append}
        return Access(**asked | changes)

    def __call__(self, source: str, revision: str | None = None, *, weights: bool = True, **changes: Any) -> Resolved:
        return pull_checkpoint(source, revision, access=self.access(**changes), weights=weights)


@pytest.fixture
def hub(hub: HubServer) -> HubServer:
    hub.add_user("bob", "hf_bob")
    return hub


@pytest.fixture
def pull(hub: HubServer, tmp_path: Path) -> Puller:
    return Puller(hub, tmp_path / "cache")


def names(pulled: Resolved) -> set[str]:
    return {path.relative_to(pulled.folder).as_posix() for path in pulled.folder.rglob("*") if path.is_file()}


# What travels


def test_a_checkpoint_brings_settings_and_safetensors_and_nothing_else(hub: HubServer, pull: Puller) -> None:
    commit = hub.publish("alice/base", MODEL)
    pulled = pull("alice/base")
    assert (pulled.source, pulled.revision) == ("alice/base", commit)
    assert names(pulled) == PULLED
    assert (pulled.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.requests(DOWNLOADS)) == len(PULLED)


def test_without_weights_only_settings_travel(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    assert names(pull("alice/base", weights=False)) == PULLED - {"model.safetensors"}
    assert names(pull("alice/base")) == PULLED


def test_shards_come_with_their_index(hub: HubServer, pull: Puller) -> None:
    shards = {f"model-0000{number}-of-00002.safetensors": WEIGHTS[number:] for number in (1, 2)}
    files = {"config.json": b"{}", "model.safetensors.index.json": b"{}", **shards}
    hub.publish("alice/large", {**files, "pytorch_model.bin.index.json": b"{}"})
    assert names(pull("alice/large")) == set(files)


def test_an_adapter_is_a_checkpoint_too(hub: HubServer, pull: Puller) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    hub.publish("alice/ia3", {**files, "adapter_model.bin": b"a pickle", "training_args.bin": b"a pickle"})
    assert names(pull("alice/ia3")) == set(files)


def test_a_member_brings_what_the_format_names(hub: HubServer, pull: Puller) -> None:
    files = dict.fromkeys(
        ("chains.json", "config.json", "tokenizer.json", "README.md", "experts-00001-of-00001.safetensors"), b"{}"
    )
    files |= {"router.safetensors": WEIGHTS}
    commit = hub.publish("alice/member", {**files, "model.safetensors": WEIGHTS, "evil.py": b"", "pareto.png": b"png"})
    pulled = pull_files("alice/member", MEMBER_FILES, access=pull.access())
    assert names(pulled) == set(files)
    assert pulled.revision == commit


def test_a_front_is_pulled_like_a_member(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/family", {"front.json": b"{}", "recipe.yaml": b"", "README.md": b"", "pareto.png": b"png"})
    pulled = pull_files("alice/family", MEMBER_FILES, access=pull.access())
    assert names(pulled) == {"front.json", "recipe.yaml", "README.md"}


def test_a_repo_of_pickles_is_refused_and_none_is_fetched(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/old", {"config.json": b"{}", "pytorch_model.bin": b"a pickle", "tf_model.h5": b"a pickle"})
    with pytest.raises(PickleRefused, match=r"'alice/old'.*pytorch_model\.bin.*save_pretrained") as refused:
        pull("alice/old")
    assert "refs/pr/N" in str(refused.value)
    assert not hub.requests(r"/cdn/|resolve/.*(bin|h5)")


def test_a_repo_without_weights_is_refused(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/empty", {"config.json": b"{}", "checkpoint-5/model.safetensors": WEIGHTS})
    with pytest.raises(CheckpointDamaged, match=r"'alice/empty'.* no \*\.safetensors"):
        pull("alice/empty")


def test_a_local_folder_passes_through(hub: HubServer, pull: Puller, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    there = Resolved(str(folder), folder, None)
    assert pull_checkpoint(folder, "main", access=pull.access()) == there
    assert pull_files(folder, MEMBER_FILES, "main", access=pull.access()) == there
    assert not hub.log


def test_only_what_is_named_travels(hub: HubServer, pull: Puller) -> None:
    commit = hub.publish("alice/base", MODEL)
    repo = Repo("alice/base", access=pull.access())
    assert not hub.log, "nothing is asked before it is needed"
    folder = repo.pull(("config.json", "lost.json"))
    assert (repo.name, repo.revision, repo.listing()) == ("alice/base", commit, sorted(MODEL))
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    hub.log.clear()
    repo.pull(("model.safetensors",))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert not hub.requests("/api/models/|config"), "revision and listing are known by now"


def test_a_repo_is_never_a_local_folder(hub: HubServer, pull: Puller, tmp_path: Path) -> None:
    for name in (str(tmp_path), ".", "../x", "~/x", "https://x.example/a", "a/b/c", ""):
        with pytest.raises(InputError, match="cannot be a repo on the Hub"):
            Repo(name, access=pull.access())
    assert not hub.log


def test_one_file_is_read_or_said_not_to_be_there(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    hub.publish("alice/secret", MODEL, private=True)
    access = pull.access()
    assert read_file("alice/base", "config.json", access=access) == MODEL["config.json"]
    assert read_file("alice/base", "front.json", access=access) is None
    assert read_file("alice/base", "config.json", "no-such-branch", access=access) is None
    assert read_file("alice/nothing", "config.json", access=access) is None
    assert read_file("alice/secret", "config.json", access=access) is None
    hub.repo("alice/base").gated = True
    with pytest.raises(HubError, match="is gated"):
        read_file("alice/base", "tokenizer.json", access=pull.access(cache_dir=pull.cache / "other"))


def test_a_data_set_is_pinned_to_its_commit(hub: HubServer, pull: Puller) -> None:
    commit = hub.publish("alice/reviews", {"train.parquet": b"PAR1"}, repo_type="dataset")
    hub.publish("alice/base", MODEL)
    assert pin_dataset("alice/reviews", None, pull.access()) == commit
    assert pin_dataset("alice/reviews", "main", pull.access()) == commit
    with pytest.raises(HubError, match=r"'alice/base' is a model, not a data set\. Models belong under `base`"):
        pin_dataset("alice/base", None, pull.access())
    with pytest.raises(HubError, match=r"No data set 'alice/nothing' on"):
        pin_dataset("alice/nothing", None, pull.access())
    with pytest.raises(HubError, match=r"'alice/reviews' has no revision 'v9'"):
        pin_dataset("alice/reviews", "v9", pull.access())


# One commit


def test_a_pinned_commit_is_used_although_the_branch_moved(hub: HubServer, pull: Puller) -> None:
    first = hub.publish("alice/base", MODEL)
    second = hub.publish("alice/base", MODEL | {"model.safetensors": WEIGHTS[::-1]})
    pinned, latest = pull("alice/base", first), pull("alice/base")
    assert (pinned.revision, latest.revision) == (first, second)
    assert (pinned.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (latest.folder / "model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_a_push_in_mid_pull_mixes_nothing(hub: HubServer, pull: Puller) -> None:
    first = hub.publish("alice/base", MODEL)
    hub.fault("GET", "/cdn/", status=503)
    pulled = pull("alice/base", sleep=lambda _: hub.publish("alice/base", {"config.json": b"new"}))
    assert hub.repo("alice/base").resolve("main").oid != first
    assert pulled.revision == first
    assert names(pulled) == PULLED


def test_a_branch_is_a_revision(hub: HubServer, pull: Puller) -> None:
    commit = hub.publish("alice/base", MODEL)
    hub.publish("alice/base", {"config.json": b"new"})
    hub.repo("alice/base").refs["refs/pr/1"] = commit
    assert pull("alice/base", "refs/pr/1").revision == commit


def test_a_second_pull_downloads_nothing(hub: HubServer, pull: Puller) -> None:
    commit = hub.publish("alice/base", MODEL)
    first = pull("alice/base")
    hub.log.clear()
    assert pull("alice/base") == first
    assert len(hub.log) == 1, "one look-up of the branch"
    hub.log.clear()
    assert pull("alice/base", commit) == first
    assert not hub.log, "a commit needs no look-up"


@pytest.mark.parametrize("revision", ["nowhere", "f" * 40])
def test_an_unknown_revision_is_named(hub: HubServer, pull: Puller, revision: str) -> None:
    hub.publish("alice/base", MODEL)
    with pytest.raises(HubError, match=f"'alice/base' has no revision '{revision}'"):
        pull("alice/base", revision)


@pytest.mark.parametrize("revision", ["../../elsewhere", "/etc", "", "a b", "-x"])
def test_a_revision_that_git_would_refuse_never_leaves(hub: HubServer, pull: Puller, revision: str) -> None:
    with pytest.raises(InputError, match="cannot be a revision of 'alice/base'"):
        pull("alice/base", revision)
    assert not hub.log


def test_a_commit_that_is_none_is_not_believed(hub: HubServer, pull: Puller) -> None:
    oid = hub.publish("alice/base", MODEL)
    repo = hub.repo("alice/base")
    repo.commits[oid] = replace(repo.commits[oid], oid="../../elsewhere")
    with pytest.raises(HubError, match=r"calls '\.\./\.\./elsewhere' a commit of 'alice/base'"):
        pull("alice/base")


# Rights


def test_a_private_repo_opens_to_its_owner_alone(
    hub: HubServer, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("alice/secret", MODEL, private=True)
    for token in (None, "hf_bob"):
        with pytest.raises(HubError, match=r"No model 'alice/secret'.*private.*hf auth login") as refused:
            pull("alice/secret", token=token)
        assert "hf_bob" not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert names(pull("alice/secret")) == PULLED
    monkeypatch.delenv("HF_TOKEN")
    assert names(pull("alice/secret", token="hf_alice", cache_dir=pull.cache / "other")) == PULLED


def test_a_token_stays_with_the_hub_that_it_was_given_for(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    Path(constants.HF_TOKEN_PATH).write_text("hf_stored_for_the_real_hub")
    pull("alice/base")
    assert not any(request.authorized for request in hub.log), "a stored token is not for this address"
    hub.log.clear()
    pull("alice/base", token="hf_alice", cache_dir=pull.cache / "other")
    storage, rest = hub.requests("/cdn/"), hub.requests("/alice/base")
    assert storage and not any(request.authorized for request in storage), "storage lies on another host"
    assert all(request.authorized for request in rest)


def test_an_unknown_token_is_said_to_be_unknown_but_not_shown(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    with pytest.raises(HubError, match=r"does not know the token \(401\)") as refused:
        pull("alice/base", token="hf_mallory")
    assert "mallory" not in str(refused.value)


def test_a_gated_repo_says_where_to_ask(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/gated", MODEL)
    hub.repo("alice/gated").gated = True
    with pytest.raises(HubError, match=rf"'alice/gated' is gated\. Ask for access at {hub.endpoint}/alice/gated"):
        pull("alice/gated", token="hf_bob")


def test_a_missing_repo_is_named_with_what_to_check(pull: Puller) -> None:
    with pytest.raises(HubError, match=r"No model 'alice/bsae'.*Check the spelling, or the path if it is a folder"):
        pull("alice/bsae")
    assert not pull.naps


def test_a_data_set_is_told_from_a_missing_repo(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/reviews", {"train.parquet": b"PAR1"}, repo_type="dataset")
    with pytest.raises(HubError, match="'alice/reviews' is a data set, not a model"):
        pull("alice/reviews")


def test_a_refusal_without_a_known_reason_is_quoted(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    for status, words in ((403, r"lacks the right to read it \(403\)"), (418, r"answered 418: '.*short and stout")):
        hub.fault("GET", "/api/models/", status=status, headers={"X-Error-Message": "short and stout\x1b[31m"})
        with pytest.raises(HubError, match=words) as refused:
            pull("alice/base")
        assert "\x1b" not in str(refused.value)


def test_an_address_that_anyone_could_change_is_refused(pull: Puller) -> None:
    with pytest.raises(InputError, match=r"'http://hub\.example' is not https.*HF_ENDPOINT"):
        pull("alice/base", endpoint="http://hub.example")


# Faults


@pytest.mark.parametrize(
    ("method", "path", "fault", "why"),
    [
        ("GET", "/api/models/", {"status": 503}, "a look-up"),
        ("GET", "/cdn/", {"status": 503}, "a large file"),
        ("GET", "/api/resolve-cache/", {"status": 500}, "a small file"),
        ("GET", "/cdn/", {"drop_after": 70_000}, "a reset in mid-file"),
    ],
)
def test_one_fault_is_outlasted(
    hub: HubServer, pull: Puller, method: str, path: str, fault: dict[str, Any], why: str
) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault(method, path, **fault)
    pulled = pull("alice/base")
    assert names(pulled) == PULLED
    assert (pulled.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert pull.naps == [1.0]


def test_files_that_have_arrived_are_not_fetched_again(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault("GET", "/cdn/", status=503, times=2, delay=0.2)
    pull("alice/base")
    assert len(hub.requests("GET /api/resolve-cache/")) == 2
    assert len(hub.requests("GET /cdn/")) == 3
    assert pull.naps == [1.0, 2.0]


@pytest.mark.parametrize("path", ["/api/models/", "/cdn/"])
def test_a_hub_that_is_down_is_asked_five_times(hub: HubServer, pull: Puller, path: str) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault("GET", path, status=503, times=1000)
    with pytest.raises(HubError, match="'alice/base' cannot be pulled: the Hub keeps answering 503"):
        pull("alice/base")
    assert len(hub.requests(f"GET {path}")) == 5
    assert pull.naps == [1.0, 2.0, 4.0, 8.0]


def test_the_hub_says_how_long_to_wait(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault("GET", "/api/models/", status=429, headers={"RateLimit": '"api";r=0;t=30'})
    hub.fault("GET", "/api/models/", status=503, headers={"Retry-After": "7"})
    pull("alice/base")
    assert pull.naps == [31.0, 7.0]


def test_nobody_waits_for_an_hour(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault("GET", "/api/models/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match=r"too many requests \(429\)\. Try again in 3600 s"):
        pull("alice/base")
    assert not pull.naps


def test_what_the_client_has_retried_is_not_retried_again(
    hub: HubServer, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault("GET", "/cdn/", status=429, times=1000)
    with pytest.raises(HubError, match=r"too many requests \(429\)"):
        pull("alice/base")
    assert len(hub.requests("GET /cdn/")) == 6
    assert not pull.naps


def test_neither_messages_nor_logs_hold_signed_addresses(
    hub: HubServer, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("alice/base", MODEL)
    hub.fault("GET", "/cdn/", drop_after=10, reset=False)  # the client logs this one, with the whole address
    hub.fault("GET", "/cdn/", status=404)
    said = logging.StreamHandler(io.StringIO())
    library = logging.getLogger("huggingface_hub")
    library.addHandler(said)
    try:
        with pytest.raises(HubError, match="answered 404") as refused:
            pull("alice/base", token="hf_alice")
    finally:
        library.removeHandler(said)
    text = said.stream.getvalue() + str(refused.value)
    assert "/cdn/" in text
    assert "sig=" not in text and "hf_alice" not in text
    assert refused.value.__suppress_context__ and refused.value.__cause__ is None
    assert not said.filters


def test_a_full_disk_is_no_fault_of_the_hub(hub: HubServer, pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("alice/base", MODEL)

    def full(*args: object, **kwargs: object) -> str:
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(HfApi, "snapshot_download", full)
    with pytest.raises(ResourceError, match="'alice/base' cannot be written to the cache: No space left"):
        pull("alice/base")
    assert not pull.naps


# Offline


def go_offline(monkeypatch: pytest.MonkeyPatch, how: str) -> dict[str, Any]:
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, how, True)
        return {}
    return {how: True}


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
def test_offline_the_cache_serves(hub: HubServer, pull: Puller, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    commit, online = hub.publish("alice/base", MODEL), pull("alice/base")
    hub.log.clear()
    offline = go_offline(monkeypatch, how)
    assert pull("alice/base", **offline) == online
    assert pull("alice/base", commit, **offline) == online
    assert not hub.log


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "local_files_only"])
@pytest.mark.parametrize("revision", [None, "f" * 40])
def test_offline_what_is_not_cached_is_named(
    hub: HubServer, pull: Puller, monkeypatch: pytest.MonkeyPatch, how: str, revision: str | None
) -> None:
    hub.publish("alice/base", MODEL)
    named = (
        rf"There is no folder 'alice/base' here\. This run is offline, and the cache holds nothing of 'alice/base' at "
        rf"revision '{revision or 'main'}'\. Pull it once online: without HF_HUB_OFFLINE"
    )
    with pytest.raises(HubError, match=named):
        pull("alice/base", revision, **go_offline(monkeypatch, how))
    assert not hub.log


def test_offline_a_file_that_is_not_cached_is_named(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    pull("alice/base", weights=False)
    with pytest.raises(HubError, match=r"the cache holds no 'model\.safetensors' of 'alice/base'"):
        pull("alice/base", local_files_only=True)


def test_a_hub_out_of_reach_falls_back_to_the_cache_at_once(tmp_path: Path, pull: Puller) -> None:
    with HubServer() as gone:
        gone.publish("alice/base", MODEL)
        online = pull("alice/base", endpoint=gone.endpoint)
    assert pull("alice/base", endpoint=gone.endpoint) == online
    with pytest.raises(HubError, match=rf"cannot be pulled from {gone.endpoint} \(ConnectError.*HF_HUB_OFFLINE=1"):
        pull("alice/base", endpoint=gone.endpoint, cache_dir=tmp_path / "elsewhere")
    assert not pull.naps


def test_a_hub_that_is_down_falls_back_to_the_cache_in_the_end(hub: HubServer, pull: Puller) -> None:
    hub.publish("alice/base", MODEL)
    online = pull("alice/base")
    hub.fault("GET", "/api/", status=503, times=1000)
    assert pull("alice/base") == online
    assert pull.naps == [1.0, 2.0, 4.0, 8.0]


def test_a_cache_that_another_program_filled_will_do(hub: HubServer, pull: Puller, tmp_path: Path) -> None:
    hub.publish("alice/base", MODEL)
    pull("alice/base")
    copy = tmp_path / "copy"
    shutil.copytree(pull.cache, copy, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    assert names(pull("alice/base", cache_dir=copy, local_files_only=True)) == PULLED


# The environment


def test_the_environment_of_huggingface_hub_is_obeyed(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.publish("alice/secret", MODEL, private=True)
    code = (
        "import sys\n"
        "from hf_merge.storing.hub import pull_checkpoint\n"
        "pulled = pull_checkpoint('alice/secret')\n"
        "assert pulled.folder.is_relative_to(sys.argv[1]) and 'torch' not in sys.modules\n"
        "print(pulled.revision)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = inherited | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_alice"}
    for extra in ({}, {"HF_HUB_OFFLINE": "1"}):
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment | extra, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.stdout.split() == [commit], run.stderr
    assert "hf-merge/" in str(hub.log[-1].user_agent)
