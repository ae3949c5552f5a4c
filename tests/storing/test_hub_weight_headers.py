"""Headers by range request: the same shapes as from the whole checkpoint, for kilobytes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hf_merge.errors import CheckpointDamaged, PickleRefused
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.hub import Access, pull_checkpoint, pull_headers
from tests.hub_server import HubServer
from tests.tiny_models import TinyFamily


@pytest.fixture
def access(hub: HubServer, tmp_path: Path) -> Access:
    return Access(endpoint=hub.endpoint, cache_dir=tmp_path / "cache", sleep=lambda _: None)


@pytest.fixture
def commit(hub: HubServer, tiny_family: Callable[[str], TinyFamily]) -> str:
    folder = tiny_family("bert").base
    return hub.publish("alice/base", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})


def test_headers_say_what_the_whole_checkpoint_says(
    hub: HubServer, access: Access, commit: str, tmp_path: Path
) -> None:
    hub.log.clear()
    headers = pull_headers("alice/base", None, tmp_path / "headers", access=access)
    fetched = [entry for entry in hub.requests("GET ") if "safetensors" in entry.path]
    whole = pull_checkpoint("alice/base", access=replace(access, cache_dir=tmp_path / "whole"))
    assert headers.revision == whole.revision == commit
    assert all(entry.range for entry in fetched)
    with (
        Checkpoint("alice/base", headers.folder, headers.revision, headers_only=True) as seen,
        Checkpoint("alice/base", whole.folder, whole.revision) as expected,
    ):
        assert {name: (spec.dtype, spec.shape) for name, spec in seen.specs.items()} == {
            name: (spec.dtype, spec.shape) for name, spec in expected.specs.items()
        }
        assert (seen.config, seen.trunk) == (expected.config, expected.trunk)
        with pytest.raises(RuntimeError, match="headers alone"):
            seen.read(next(iter(seen.specs)))


def test_holes_take_no_room(access: Access, commit: str, tmp_path: Path) -> None:
    folder = pull_headers("alice/base", None, tmp_path / "headers", access=access).folder
    status = (folder / "model.safetensors").stat()
    assert status.st_blocks * 512 < status.st_size / 2


def test_weights_that_were_pulled_before_are_not_copied(access: Access, commit: str, tmp_path: Path) -> None:
    alone = pull_headers("alice/base", None, tmp_path / "alone", access=access).folder
    pull_checkpoint("alice/base", access=access)
    folder = pull_headers("alice/base", None, tmp_path / "headers", access=access).folder
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    status = (folder / "model.safetensors").stat()
    assert status.st_blocks * 512 < status.st_size / 2


def test_a_local_folder_passes_through(hub: HubServer, access: Access, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    found = pull_headers(tmp_path / "model", None, tmp_path / "headers", access=access)
    assert (found.folder, found.revision) == (tmp_path / "model", None)
    assert not hub.log


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 500}, {"reset": True, "drop_after": 0}])
def test_a_fault_on_the_way_is_outlasted(
    hub: HubServer, access: Access, commit: str, tmp_path: Path, fault: dict[str, int]
) -> None:
    hub.fault("GET", "safetensors", **fault)
    assert pull_headers("alice/base", None, tmp_path / "headers", access=access).revision == commit


def test_what_is_no_safetensors_file_is_refused(hub: HubServer, access: Access, tmp_path: Path) -> None:
    hub.publish("alice/odd", {"config.json": b"{}", "model.safetensors": b"\xff" * 300_000})
    with pytest.raises(CheckpointDamaged, match=r"'alice/odd'.*model\.safetensors"):
        pull_headers("alice/odd", None, tmp_path / "headers", access=access)


def test_pickles_are_refused(hub: HubServer, access: Access, tmp_path: Path) -> None:
    hub.publish("alice/old", {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(PickleRefused, match="alice/old"):
        pull_headers("alice/old", None, tmp_path / "headers", access=access)
