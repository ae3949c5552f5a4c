"""`hf-merge refine` as its user meets it."""

import shutil
from pathlib import Path

from tests.test_cli import document, refuse, run
from tests.tiny_runs import TinyRun


def test_the_table_says_what_was_kept_and_json_is_one_document(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    shown = run("refine", folder, "--set", "rows=2")
    assert shown.exit_code == 0, shown.stderr
    assert all(point.id in shown.stdout for point in tiny_run.front.points)
    assert "P refined" in shown.stdout and "hypervolume" in shown.stdout
    told = document(run("refine", folder, "--set", "rows=2", "--json"))
    assert told["method"]["name"] == "expert_merging" and told["method"]["rows"] == 2


def test_a_method_that_fits_nothing_is_refused(tiny_run: TinyRun) -> None:
    refuse(run("refine", tiny_run.folder, "--method", "ties"), "Choose expert_merging or expert_merging_plus")
