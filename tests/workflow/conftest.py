"""What several tests of the workflow begin with."""

import shutil
from pathlib import Path

import pytest

from hf_merge.workflow.report import report
from tests.tiny_runs import TinyRun


@pytest.fixture(scope="session")
def measured(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the run that was measured on test rows."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(tiny_run.folder, folder)
    report(folder, progress=False)
    return folder
