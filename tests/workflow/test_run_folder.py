"""Run folders: only what is new, empty or the very same run is written to."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hf_merge.errors import RunFolderError
from hf_merge.storing import front as fronts
from hf_merge.storing.durable import FolderLock
from hf_merge.workflow.run_folder import (
    FRONT_FILE,
    JOURNAL_FILE,
    LOCK_FILE,
    RECIPE_FILE,
    Claim,
    read_run,
    require_free,
    require_still,
    unfinished,
)
from tests.tiny_runs import TinyRun


@pytest.mark.parametrize(
    "names", [(), (".lock",), ("checkpoints",), (f".{'0' * 16}.part", ".lock"), (JOURNAL_FILE,)], ids=", ".join
)
def test_new_empty_and_barely_begun_folders_are_free(
    tiny_run: TinyRun, tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    require_free(tmp_path, tiny_run.recipe, resume=False)
    require_free(tmp_path, tiny_run.recipe, resume=True)
    require_free(tmp_path / "new", tiny_run.recipe, resume=False)


@pytest.mark.parametrize(
    "names", [("front.json",), ("recipe.yaml",), ("members",), ("a", JOURNAL_FILE)], ids=", ".join
)
def test_other_folders_are_not(tiny_run: TinyRun, tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match="is no run folder of hf-merge"):
        require_free(tmp_path, tiny_run.recipe, resume=False)


def test_a_run_is_free_for_itself_with_resume_only(tiny_run: TinyRun) -> None:
    require_free(tiny_run.folder, tiny_run.recipe, resume=True)
    with pytest.raises(RunFolderError, match="--resume"):
        require_free(tiny_run.folder, tiny_run.recipe, resume=False)


def test_a_run_that_was_begun_is_held_from_the_first_moment(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in (RECIPE_FILE, JOURNAL_FILE, LOCK_FILE):
        (tmp_path / name).write_text("")
    with Claim(tmp_path, resume=True):
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(RunFolderError, match="is in use by process"), Claim(tmp_path, resume=True):
            pytest.fail("both hold it")
    with Claim(tmp_path, resume=True):
        pass


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_without_a_run_is_left_as_it_is_until_the_input_is_known_to_be_right(
    tiny_run: TinyRun, tmp_path: Path, there: bool
) -> None:
    out = tmp_path / "a" / "run"
    if there:
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with Claim(out, resume=False) as claim:
        assert sorted(tmp_path.rglob("*")) == before
        claim.make(tiny_run.recipe)
        assert [path.name for path in out.iterdir()] == [LOCK_FILE]
        with pytest.raises(RunFolderError, match="is in use by process"), FolderLock(out):
            pytest.fail("both hold it")
    with FolderLock(out):
        pass


def test_the_lock_of_somebody_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"'thesis.tex' and is no run folder"), Claim(tmp_path, resume=True):
        pytest.fail("claimed")
    assert (tmp_path / LOCK_FILE).read_text() == "mine"


def test_a_finished_run_gives_front_and_recipe(tiny_run: TinyRun) -> None:
    assert read_run(tiny_run.folder) == (tiny_run.front, tiny_run.recipe)


def test_the_advice_for_an_unfinished_run_is_a_command(tmp_path: Path) -> None:
    assert f"hf-merge search {tmp_path}/recipe.yaml --out {tmp_path} --resume" in unfinished(tmp_path)


def test_a_front_that_was_replaced_meanwhile_is_noticed(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / FRONT_FILE).write_bytes(fronts.dump(tiny_run.front))
    require_still(tmp_path, tiny_run.front)
    (tmp_path / FRONT_FILE).write_bytes(fronts.dump(replace(tiny_run.front, points=tiny_run.front.points[:1])))
    with pytest.raises(RunFolderError, match="was replaced meanwhile"):
        require_still(tmp_path, tiny_run.front)
