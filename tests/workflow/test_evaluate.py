"""A member measured through the loaded model: what the report says, and what its card says."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import HubError, InputError
from hf_merge.storing.hub import Access, Resolved
from hf_merge.storing.results import Report
from hf_merge.workflow.evaluate import TOLERANCE, evaluate
from hf_merge.workflow.publish import push
from hf_merge.workflow.report import report
from tests.hub_server import HubServer
from tests.tiny_runs import TinyRun, write_recipe


@pytest.fixture(scope="module")
def measured(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return folder, report(folder, progress=False)


@pytest.fixture
def access(hub: HubServer, tmp_path: Path) -> Access:
    return Access(token="hf_alice", endpoint=hub.endpoint, cache_dir=tmp_path / "cache", sleep=lambda _: None)


def test_a_loaded_member_scores_what_the_report_says(tiny_run: TinyRun, measured: tuple[Path, Report]) -> None:
    rows = {row.id: row for row in measured[1].rows}
    for member in tiny_run.members:
        found = evaluate(member, progress=False)
        expected = rows[found.scores.id]
        assert dict(found.scores.oracle_scores) == pytest.approx(dict(expected.oracle_scores), abs=1e-6)
        assert dict(found.scores.routed_scores) == pytest.approx(dict(expected.routed_scores), abs=1e-6)
        assert found.router_accuracy == pytest.approx(dict(measured[1].router_accuracy))
        assert found.scores.validation == pytest.approx(expected.validation)


def test_a_member_is_found_from_within_its_family(
    tiny_run: TinyRun, measured: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    member = tiny_run.members[0].resolve()
    monkeypatch.chdir(member.parent)
    found = evaluate(Path(member.name), progress=False)
    expected = next(row for row in measured[1].rows if row.id == found.scores.id)
    assert dict(found.scores.oracle_scores) == pytest.approx(dict(expected.oracle_scores), abs=1e-6)


def test_what_was_pushed_is_measured_again_and_agrees_with_its_card(
    measured: tuple[Path, Report], access: Access, tiny_run: TinyRun
) -> None:
    push(measured[0], "alice/tiny", max_configs=2, progress=False, access=access)
    found = evaluate("alice/tiny", 1.0, recipe=tiny_run.recipe_file, progress=False, access=access)
    assert set(found.recorded) == {"oracle", "routed"}
    assert found.recorded["oracle"] == pytest.approx(dict(found.scores.oracle_scores), abs=1e-3)
    assert found.differences == ()


def test_a_card_that_says_otherwise_is_reported(
    measured: tuple[Path, Report], access: Access, tiny_run: TinyRun, hub: HubServer, tmp_path: Path
) -> None:
    done = push(measured[0], "alice/tiny", max_configs=1, progress=False, access=access)
    ((identifier, pushed),) = done.members.items()
    member = tmp_path / "member"
    shutil.copytree(measured[0] / "members" / identifier, member)
    tree = hub.repo(pushed.repo).resolve("main").tree
    card = hub.read(tree["README.md"]).decode()
    values = re.findall(r"value: ([0-9.]+)", card)
    assert values
    raised = re.sub(r"value: [0-9.]+", lambda _: f"value: {float(values[0]) + 2 * TOLERANCE}", card)
    (member / "README.md").write_text(raised)
    found = evaluate(member, recipe=tiny_run.recipe_file, progress=False)
    assert found.differences
    assert all("the card says" in line for line in found.differences)


def test_a_test_split_is_all_that_the_data_need(
    tiny_run: TinyRun, measured: tuple[Path, Report], tmp_path: Path
) -> None:
    document = copy.deepcopy(tiny_run.document)
    for task in document["tasks"]:
        task["data"]["data_files"] = {"test": task["data"]["data_files"]["test"]}
    found = evaluate(measured[0], recipe=write_recipe(tmp_path / "test.yaml", document), progress=False)
    assert found.scores == evaluate(measured[0], recipe=tiny_run.recipe_file, progress=False).scores


def test_without_a_recipe_there_are_no_test_rows(
    measured: tuple[Path, Report], access: Access, tmp_path: Path
) -> None:
    done = push(measured[0], "alice/tiny", max_configs=1, progress=False, access=access)
    (pushed,) = done.members.values()
    with pytest.raises(InputError, match="--recipe"):
        evaluate(pushed.repo, progress=False, access=access)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"path": "parquet", "data_files": {"test": "/etc/passwd"}}, "/etc/passwd"),
        ({"path": "json", "data_files": {"test": "http://10.0.0.1/x"}}, "http://10.0.0.1/x"),
        ({"path": "someone/rows", "data_files": {"test": "/etc/passwd"}}, "/etc/passwd"),
        ({"path": "/srv/rows"}, "/srv/rows"),
        ({"path": "imagefolder"}, "imagefolder"),
        ({"path": "own/rows"}, "own/rows"),
    ],
)
def test_a_recipe_from_the_hub_has_no_file_of_this_machine_read(
    tiny_run: TinyRun, measured: tuple[Path, Report], access: Access, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    data: dict[str, Any], said: str,
) -> None:  # fmt: skip
    (tmp_path / "own" / "rows").mkdir(parents=True)
    push(measured[0], "alice/tiny", max_configs=1, progress=False, access=access)
    document = copy.deepcopy(tiny_run.document)
    document["tasks"][0]["data"] = {"text": "text", **data}
    theirs = write_recipe(tmp_path / "recipe.yaml", document)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_merge.storing.hub.pull_files", lambda *_, **__: Resolved("", theirs.parent, "0" * 40))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("read all the same"))
    with pytest.raises(InputError, match=f"{re.escape(said)}.*only a data set on the Hub.*--recipe"):
        evaluate("alice/tiny", progress=False, access=access)


def test_a_recipe_from_the_hub_may_name_data_sets_there(
    tiny_run: TinyRun, measured: tuple[Path, Report], access: Access, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push(measured[0], "alice/tiny", max_configs=1, progress=False, access=access)
    document = copy.deepcopy(tiny_run.document)
    for task in document["tasks"]:
        task["data"] = {"text": "text", "path": "someone/rows", "name": task["name"]}
    theirs = write_recipe(tmp_path / "recipe.yaml", document)
    monkeypatch.setattr("hf_merge.storing.hub.pull_files", lambda *_, **__: Resolved("", theirs.parent, "0" * 40))
    asked = []

    def refuse(path: str, name: str, **_: object) -> None:
        asked.append((path, name))
        raise ConnectionError("not here")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(HubError, match="someone/rows"):
        evaluate("alice/tiny", progress=False, access=access)
    assert asked == [("someone/rows", tiny_run.document["tasks"][0]["name"])]
