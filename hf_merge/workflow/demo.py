"""`hf-merge demo`: runs the demonstration that lies in the repository's `examples/`, which ships its data."""

import runpy
import sys
from pathlib import Path

from hf_merge.errors import InputError


def run_demo(out: Path) -> None:
    """Runs `examples/demo.py` of the repository that this package is installed from.

    Args:
        out: Where checkpoints, run and plot land.

    Raises:
        InputError: The package is not installed from a checkout, so that there are no examples.
    """
    script = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
    if not script.is_file():
        raise InputError(
            "The demo ships with the repository, not with the package: clone it and run `make demo` there."
        )
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script))["main"](out)
    finally:
        sys.path.remove(str(script.parent))
