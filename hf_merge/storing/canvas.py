"""What the pictures share: their paper, their ink, and PNG bytes that depend on nothing but what is drawn.

The paper is opaque, so that a picture is as legible on a dark page as on a light one.
"""

from io import BytesIO
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER, FAINT = "#1f2430", "#ffffff", "#a3abb8"
TEXT, SMALL = 9.0, 8.0
INCH = 72.0  # points
_DPI = 144


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of a size in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / INCH, height / INCH), dpi=_DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def png(figure: "Figure") -> bytes:
    """Returns a figure as PNG bytes, the same for equal figures."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
