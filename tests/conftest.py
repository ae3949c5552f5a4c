"""What every test gets: an environment without network, one thread, and families of tiny models."""

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings


# A busy machine is no failure. In CI the examples are the same every time; elsewhere every run looks further.
settings.register_profile("patient", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("patient")

# Read by torch, huggingface_hub and datasets while they are imported, so it must stand before the imports below.
_HOME = tempfile.mkdtemp(prefix="hf-merge-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ |= {
    "HF_HOME": _HOME,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # tests compare bits, and an accelerator has other ones
}
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_ASSETS_CACHE",
):
    os.environ.pop(_name, None)

from huggingface_hub import constants  # noqa: E402

from tests.hub_server import HubServer  # noqa: E402
from tests.shared import made_once  # noqa: E402
from tests.tiny_adapters import build_adapters  # noqa: E402
from tests.tiny_models import TinyFamily, build_family  # noqa: E402
from tests.tiny_runs import TinyRun, build_run, copied_run  # noqa: E402
from tests.tiny_speakers import SpeakingFamily, build_speakers  # noqa: E402


_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::")
_connect = socket.socket.connect


def _connect_to_loopback(self: socket.socket, address: Any) -> None:
    host = str(address[0]) if self.family in (socket.AF_INET, socket.AF_INET6) else "localhost"
    if not host.startswith(_LOOPBACK):
        raise OSError(f"a test tried to reach {host}; tests talk to loopback only")
    _connect(self, address)


socket.socket.connect = _connect_to_loopback  # type: ignore[assignment, method-assign]


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyFamily]:
    """Returns a function from a layout (`tests.tiny_models.LAYOUTS`) to its family: built once, not to be changed."""

    @cache
    def build(layout: str) -> TinyFamily:
        return made_once(tmp_path_factory, f"{layout}-family", lambda folder: build_family(layout, folder))

    return build


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], TinyFamily]:
    """Returns a function from a layout and a kind (`ia3`, `lora`) to a family of adapters, built once."""

    @cache
    def build(layout: str, kind: str) -> TinyFamily:
        name = f"{layout}-{kind}-family"
        return made_once(tmp_path_factory, name, lambda folder: build_adapters(layout, kind, folder))

    return build


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Returns a Hub of its own for one test, to which the real client talks by plain LFS and without waiting.

    HF_ENDPOINT was read when huggingface_hub was imported: hand `endpoint=hub.endpoint` to whatever is called.
    """
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "stored-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # Else the client asks the real Hub which agents there are.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with HubServer() as server:
        server.add_user("alice", "hf_alice")
        yield server


@pytest.fixture(scope="session")
def tiny_run(tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Returns a search over the `bert` family with all its members: run once, not to be changed."""
    made = made_once(tmp_path_factory, "run", lambda folder: build_run(tiny_family("bert"), folder))
    return copied_run(made, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def tiny_speakers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SpeakingFamily]:
    """Returns a function from a layout (`tests.tiny_speakers.SPEAKERS`) to its family: built once, left as it is."""

    @cache
    def build(layout: str) -> SpeakingFamily:
        return made_once(tmp_path_factory, f"{layout}-speakers", lambda folder: build_speakers(layout, folder))

    return build


@pytest.fixture(scope="session")
def speaking_run(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TinyRun]:
    """Returns a function from a layout to a search of four evaluations with its members: run once, left as it is."""

    @cache
    def run(layout: str) -> TinyRun:
        speakers = tiny_speakers(layout)
        made = made_once(tmp_path_factory, f"{layout}-run", lambda folder: build_run(speakers, folder, evaluations=4))
        return copied_run(made, tmp_path_factory.mktemp(f"{layout}-run"))

    return run
