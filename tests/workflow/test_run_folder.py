"""Run folders: only what is new, empty or the very same run is written to."""

from pathlib import Path

import pytest

from hf_merge.errors import RunFolderError
from hf_merge.workflow.run_folder import JOURNAL_FILE, read_run, require_free, unfinished
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


def test_a_finished_run_gives_front_and_recipe(tiny_run: TinyRun) -> None:
    assert read_run(tiny_run.folder) == (tiny_run.front, tiny_run.recipe)


def test_the_advice_for_an_unfinished_run_is_a_command(tmp_path: Path) -> None:
    assert f"hf-merge search {tmp_path}/recipe.yaml --out {tmp_path} --resume" in unfinished(tmp_path)
