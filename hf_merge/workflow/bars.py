"""Progress bars on a terminal, for work that nothing needs to be told of afterwards."""

import os
import sys
from typing import Any

from tqdm import tqdm


def on_terminal() -> bool:
    """Returns whether stderr is a terminal with a width; some that containers give have none, and no bar fits."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False


def waiting(shown: bool, name: str, total: int, unit: str) -> "tqdm[Any]":
    """Returns a bar for work of known length; only a terminal shows it, and it is wiped at its end."""
    hidden = not (shown and on_terminal())
    return tqdm(total=total, desc=name, unit=unit, unit_scale=total > 1e6, leave=False, disable=hidden)
