"""The demo is the repository's: found beside the package, or refused where only the package is installed."""

import sys
from pathlib import Path

import pytest

from hf_merge.errors import InputError
from hf_merge.workflow import demo


def test_the_demo_of_a_checkout_is_run_with_its_neighbours_in_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "neighbour_of_demo.py").write_text("WORD = 'found'")
    (examples / "demo.py").write_text(
        "from neighbour_of_demo import WORD\ndef main(out):\n    (out / 'said').write_text(WORD)\n"
    )
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "hf_merge" / "workflow" / "demo.py"))
    before = list(sys.path)
    demo.run_demo(tmp_path)
    assert (tmp_path / "said").read_text() == "found"
    assert sys.path == before


def test_without_a_checkout_there_is_no_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "hf_merge" / "workflow" / "demo.py"))
    with pytest.raises(InputError, match="make demo"):
        demo.run_demo(tmp_path)


def test_the_repository_has_the_demo() -> None:
    assert (Path(demo.__file__).parents[2] / "examples" / "demo.py").is_file()
