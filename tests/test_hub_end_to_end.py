"""Everything on the Hub, by the command line alone: sources and data pulled, the front pushed, loaded elsewhere.

Each command is a process of its own that knows the Hub by HF_ENDPOINT, as a user's would be; `datasets`,
`transformers` and the `hf` command talk to the same Hub.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import HubServer
from tests.tiny_models import TinyFamily
from tests.tiny_runs import ROUTER, SEARCH, write_recipe


pytestmark = pytest.mark.slow
TOKEN = "hf_" + "canary" * 6
CONFIG = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
  - {split: validation, path: validation.parquet}
  - {split: test, path: test.parquet}
---
"""


class Machine:
    """A user's machine: a home with its own cache, and the Hub by its address."""

    def __init__(self, hub: HubServer, home: Path, token: str | None = TOKEN) -> None:
        home.mkdir()
        self.home, self.said = home, ""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environment = {
            **kept,
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        if token is not None:
            self.environment["HF_TOKEN"] = token

    def run(self, *words: object, code: int = 0, **environment: str) -> str:
        """Returns the stdout of a command line."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment | environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.said += done.stdout + done.stderr
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def merge(self, *words: object, code: int = 0, **environment: str) -> str:
        return self.run(sys.executable, "-m", "hf_merge", *words, code=code, **environment)

    def merge_json(self, *words: object) -> Any:
        return json.loads(self.merge(*words, "--json"))


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_user("alice", TOKEN)
        server.add_user("bob", "hf_bob")
        yield server


@pytest.fixture(scope="module")
def commits(hub: HubServer, tiny_family: Callable[[str], TinyFamily]) -> dict[str, str]:
    """Publishes a family of models and their data; returns the commit of each repo."""
    family = tiny_family("bert")
    card = b"---\nlicense: apache-2.0\n---\n"
    found = {"base": hub.publish("alice/base", files(family.base) | {"README.md": card})}
    for task in family.tasks.values():
        found[task.name] = hub.publish(f"alice/{task.name}", files(task.folder) | {"README.md": card})
        data = {f"{split}.parquet": file.read_bytes() for split, file in task.files.items()}
        rows = hub.publish(f"alice/{task.name}-data", data | {"README.md": CONFIG.encode()}, repo_type="dataset")
        found[f"{task.name}-data"] = rows
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def recipe(tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> Path:
    document = tiny_family("bert").recipe(search=SEARCH, router=ROUTER)
    document["base"]["model"] = "alice/base"
    for task in document["tasks"]:
        task["model"] = f"alice/{task['name']}"
        task["data"] = {"path": f"alice/{task['name']}-data", "text": "text", "label": "label"}
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", document)


@pytest.fixture(scope="module")
def owner(hub: HubServer, commits: dict[str, str], recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine that searched, built, measured and pushed to `alice/family`."""
    machine = Machine(hub, tmp_path_factory.mktemp("owner") / "home")
    for words in (
        ("search", recipe, "--out", "run"), ("build", "run"), ("report", "run"), ("push", "run", "alice/family"),
    ):  # fmt: skip
        machine.merge(*words)
    return machine


@pytest.fixture
def stranger(hub: HubServer, owner: Machine, tmp_path: Path) -> Machine:
    """A machine that never saw the run, of somebody who is not logged in."""
    return Machine(hub, tmp_path / "home", token=None)


def test_a_plan_fetches_headers_and_no_weights(
    hub: HubServer, commits: dict[str, str], recipe: Path, tmp_path: Path
) -> None:
    machine = Machine(hub, tmp_path / "home")
    hub.log.clear()
    assert machine.merge_json("plan", recipe)["components"]
    assert all(entry.range for entry in hub.requests("GET ") if "safetensors" in entry.path and "cdn" in entry.path)
    weights = (path for path in (machine.home / "hf").rglob("*.safetensors"))
    assert not list(weights)


def test_every_source_is_pinned_to_its_commit(owner: Machine, commits: dict[str, str]) -> None:
    text = (owner.home / "run" / "recipe.yaml").read_text()
    for name, commit in commits.items():
        assert commit in text, name
    front = json.loads((owner.home / "run" / "front.json").read_text())
    assert (front["base"], front["revision"]) == ("alice/base", commits["base"])
    chains = json.loads(next((owner.home / "run" / "members").glob("*/chains.json")).read_text())
    assert (chains["base"]["repo"], chains["base"]["revision"]) == ("alice/base", commits["base"])


def test_a_stranger_shows_predicts_and_measures_what_was_pushed(owner: Machine, stranger: Machine) -> None:
    front = stranger.merge_json("show", "alice/family")
    pushed = [point for point in front["points"] if point["repo"] is not None]
    assert pushed
    member = stranger.merge_json("show", pushed[-1]["repo"], "--revision", pushed[-1]["id"])
    assert member["id"] == pushed[-1]["id"]
    words = ("the small cat sleeps", "bright red wall")
    there = stranger.merge_json("predict", "alice/family", "--budget", "1.0", *words)
    assert there == owner.merge_json("predict", "run", "--budget", "1.0", *words)
    found = stranger.merge_json("eval", "alice/family", "--budget", "1.0")
    assert found["recorded"]["oracle"] and found["differences"] == []


def test_offline_a_warm_cache_serves_and_a_cold_one_says_what_it_lacks(owner: Machine, stranger: Machine) -> None:
    message = stranger.merge("predict", "alice/family", "a cat", code=4, HF_HUB_OFFLINE="1")
    assert "offline" in message and "alice/family" in message
    warm = stranger.merge("predict", "alice/family", "a cat")
    assert stranger.merge("predict", "alice/family", "a cat", HF_HUB_OFFLINE="1") == warm


def test_the_hf_command_downloads_and_shows_the_same_repos(owner: Machine, stranger: Machine) -> None:
    hf = Path(sys.executable).with_name("hf")
    front = stranger.merge_json("show", "alice/family")
    repo, commit = next((point["repo"], point["revision"]) for point in front["points"] if point["repo"])
    folder = stranger.home / "copy"
    stranger.run(hf, "download", repo, "--revision", commit, "--local-dir", folder)
    assert stranger.merge_json("show", folder)["id"] == stranger.merge_json("show", repo)["id"]
    assert stranger.merge("predict", folder, "a cat") == stranger.merge("predict", repo, "a cat")
    assert commit in stranger.run(hf, "models", "info", repo)


def test_the_token_is_nowhere(hub: HubServer, owner: Machine) -> None:
    assert TOKEN not in owner.said
    kept = [path for path in owner.home.rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    for repo in hub.repos.values():
        blobs = repo.resolve("main").tree.values()
        assert not [blob for blob in blobs if TOKEN.encode() in hub.read(blob)]


@pytest.mark.parametrize(
    ("words", "token", "code", "said"),
    [
        (("push", "{run}", "alice/family"), None, 4, "hf auth login"),
        (("push", "{run}", "alice/other"), "hf_bob", 4, "alice/other"),
        (("push", "{run}", "alice/family"), "hf_wrong", 4, "token"),
        (("push", "{run}", "alice/a b"), TOKEN, 2, "alice/a b"),
        (("show", "alice/nothing"), None, 4, "alice/nothing"),
        (("predict", "alice/base", "a cat"), None, 2, "transformers.AutoModel"),
        (("predict", "alice/animals-data", "a cat"), None, 4, "data set"),
        (("show", "alice/family", "--revision", "no-such"), None, 4, "no-such"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    hub: HubServer, owner: Machine, tmp_path: Path, words: tuple[str, ...], token: str | None, code: int, said: str
) -> None:
    machine = Machine(hub, tmp_path / "home", token)
    told = [word.format(run=owner.home / "run") for word in words]
    message = machine.merge(*told, code=code)
    assert message.count("Error: ") == 1 and said in message
    assert "Traceback" not in message
    assert token is None or token not in message
