"""Takes a picture of a card as a browser shows it, to look for what text alone does not tell: overflow, pale plots.

    python cards/screenshot.py cards/demo/README.md card.png [--dark] [--width 1000]

It needs Chromium (`apt-get install chromium`), and turns the card's Markdown into HTML by markdown-it, in a page with
the measures of a model page on the Hub.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt
from PIL import Image, ImageChops


HEIGHT = 12_000  # more than any card has; what is left over is cut off
COLOURS = {
    False: ("#ffffff", "#1f2937", "#f3f4f6", "#e5e7eb"),
    True: ("#0b0f19", "#d1d5db", "#1f2937", "#374151"),
}  # paper, ink, code, lines
STYLE = """
body {{ background: {paper}; color: {ink}; font: 16px/1.6 sans-serif; max-width: 860px; margin: 30px auto; }}
h1, h2 {{ border-bottom: 1px solid {line}; }}
table {{ border-collapse: collapse; font-size: 14px; }}
td, th {{ border: 1px solid {line}; padding: 4px 10px; }}
pre, code {{ background: {code}; font-size: 13px; }}
pre {{ padding: 12px; overflow-x: auto; }}
img {{ max-width: 100%; }}
a {{ color: inherit; }}
"""


def page(card: Path, dark: bool) -> str:
    """Returns a card as a page of HTML."""
    head, _, body = card.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    paper, ink, code, line = COLOURS[dark]
    style = STYLE.format(paper=paper, ink=ink, code=code, line=line)
    content = MarkdownIt("commonmark", {"html": True}).enable("table").render(body or head)
    base = card.resolve().parent.as_uri()
    return f'<!doctype html><meta charset="utf-8"><base href="{base}/"><style>{style}</style>{content}'


def screenshot(card: Path, picture: Path, *, dark: bool, width: int) -> None:
    """Writes the picture of a card."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as scratch:
        html, raw = Path(scratch) / "card.html", Path(scratch) / "card.png"
        html.write_text(page(card, dark), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{HEIGHT}"]
        command = [browser, *options, f"--screenshot={raw}", html.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        image = Image.open(raw).convert("RGB")
        paper = Image.new("RGB", image.size, COLOURS[dark][0])
        _, _, _, bottom = ImageChops.difference(image, paper).getbbox() or (0, 0, 0, HEIGHT)
        image.crop((0, 0, width, bottom + 30)).quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1000)
    arguments = parser.parse_args()
    screenshot(arguments.card, arguments.picture, dark=arguments.dark, width=arguments.width)
