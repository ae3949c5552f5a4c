"""What a family tells of its sources: licences from their cards, and no path of the machine that merged them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_merge.recipe import Recipe
from hf_merge.storing.hub import Access
from hf_merge.workflow.origin import published_recipe, read_licence, read_origin
from tests.hub_server import HubServer


COMMIT = "0123456789" * 4


def recipe(base: dict[str, Any], **data: Any) -> Recipe:
    task = {"name": "travel", "model": "/models/checkpoints/travel", "data": {"text": "text", **data}}
    return Recipe.parse({"base": base, "tasks": [task]}, "test")


def local(**data: Any) -> Recipe:
    files = {"train": "/models/data/travel/train.parquet", "test": "test.parquet"}
    return recipe({"model": "/models/models/base"}, path="parquet", data_files=files, **data)


def test_local_paths_are_published_by_their_last_names() -> None:
    text = published_recipe(local())
    assert "/models" not in text
    assert text.startswith("# ")
    told = Recipe.parse(yaml.safe_load(text), "test")
    assert (told.base.model, told.tasks[0].model) == ("./base", "./travel")
    assert told.tasks[0].data.data_files == {"train": "travel/train.parquet", "test": "test.parquet"}


@pytest.mark.parametrize(
    "address",
    [
        "https://user:word@host/acme/train.csv",
        "https://host/acme/train.csv?X-Signature=f00d",
        "s3://key:word@b/train.csv",
    ],
)
def test_of_an_address_the_file_alone_is_published(address: str) -> None:
    for path in ("csv", "org/data"):
        told = published_recipe(
            recipe({"model": "org/base", "revision": COMMIT}, path=path, data_files={"train": address})
        )
        assert Recipe.parse(yaml.safe_load(told), "test").tasks[0].data.data_files == {"train": "train.csv"}


@pytest.mark.parametrize(
    "data", [{"data_files": {"test": "/srv/alice/client/data/test.csv"}}, {"revision": "main"}, {}]
)
def test_a_local_folder_of_data_is_published_by_its_name(data: dict[str, Any], tmp_path: Path) -> None:
    wanted = recipe({"model": "org/base", "revision": COMMIT}, path="/srv/alice/client/data", **data)
    assert "alice" not in published_recipe(wanted)
    assert Recipe.parse(yaml.safe_load(published_recipe(wanted)), "test").tasks[0].data.path == "./data"


def test_what_is_on_the_hub_is_published_as_it_is() -> None:
    task = {"name": "sst2", "model": "org/sst2", "revision": COMMIT}
    data = {"path": "org/data", "revision": COMMIT, "text": "text"}
    pinned = Recipe.parse(
        {"base": {"model": "org/base", "revision": COMMIT}, "tasks": [{**task, "data": data}]}, "test"
    )
    assert published_recipe(pinned) == pinned.dump()


@pytest.fixture
def card(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "README.md").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: [apache-2.0]\n---\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: mine-1.0\n---\n", "mine-1.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: [x]\n---\n", None),
        ("---\nlicense: 3\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [exit]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# license: mit", None),
        ("", None),
    ],
)
def test_the_licence_is_what_the_front_matter_names(
    card: Callable[[str], Path], text: str, licence: str | None
) -> None:
    assert read_licence(card(text)) == licence


def test_without_a_card_there_is_no_licence(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None


def test_offline_a_card_that_was_never_fetched_says_nothing_wherever_the_command_runs(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)  # where a card lies that is none of the source's
    pinned = recipe({"model": "alice/base", "revision": COMMIT}, path="parquet", data_files={"test": "test.parquet"})
    access = Access(endpoint=hub.endpoint, cache_dir=tmp_path / "cache", local_files_only=True)
    assert read_origin(pinned, access).base.licence is None


def test_of_a_source_on_the_hub_only_its_card_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    card = b"---\nlicense: mit\n---\n"
    commit = hub.publish("alice/base", {"README.md": card, "config.json": b"{}", "model.safetensors": b"w" * 999})
    pinned = recipe(
        {"model": "alice/base", "revision": commit}, path="parquet", data_files={"test": "/x/test.parquet"}
    )
    access = Access(endpoint=hub.endpoint, cache_dir=tmp_path, sleep=lambda _: None)
    origin = read_origin(pinned, access)
    assert (origin.base.repo, origin.base.revision, origin.base.licence) == ("alice/base", commit, "mit")
    assert (origin.tasks["travel"].name, origin.tasks["travel"].repo) == ("travel", None)
    assert origin.datasets == ()
    assert not hub.requests(r"resolve/.*(config\.json|safetensors)")
