"""The committed cards are what the code writes today: text to the byte, pictures to the eye."""

import importlib.util
import re
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hf_merge.recipe import Recipe


CARDS = Path(__file__).parent.parent / "cards"
# Another release of FreeType or matplotlib draws the edges of letters a little differently: few pixels, and a little.
SHARE, DIFFERENCE = 0.02, 64


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_cards", CARDS / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(data: bytes) -> NDArray[np.int16]:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_no_card_is_stale(render: ModuleType) -> None:
    stale = []
    for name, data in render.rendered(render.DEMO).items():
        path = render.DEMO / name
        committed = path.read_bytes() if path.is_file() else b""
        same = committed == data if path.suffix != ".png" else committed != b"" and alike(committed, data)
        stale += [] if same else [name]
    assert not stale, f"these are not what the code writes; run `python cards/render.py`: {', '.join(stale)}"


def test_nothing_lies_there_that_is_not_rendered_or_needed(render: ModuleType) -> None:
    there = {path.relative_to(render.DEMO).as_posix() for path in render.DEMO.rglob("*") if path.is_file()}
    inputs = {name for name in there if name.endswith(("front.json", "report.json", "recipe.yaml", "chains.json"))}
    assert there - inputs == set(render.rendered(render.DEMO))


def test_a_changed_card_is_noticed(render: ModuleType) -> None:
    plot = (render.DEMO / "pareto.png").read_bytes()
    other = (render.DEMO / "grouping.png").read_bytes()
    assert alike(plot, plot)
    assert not alike(plot, other)
    moved = np.roll(pixels(plot), 40, axis=1).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(moved).save(buffer, format="PNG")
    assert not alike(plot, buffer.getvalue())


def test_every_link_leads_somewhere(render: ModuleType) -> None:
    members = {path.name for path in (render.DEMO / "members").iterdir()}
    for card in render.DEMO.rglob("README.md"):
        for address in re.findall(r"\]\(([^)]*)\)", card.read_text()):
            if address.startswith("https://huggingface.co/USER/"):
                assert address.removeprefix("https://huggingface.co/USER/") in members | {"demo"}, card
            elif not address.startswith("https://arxiv.org/abs/"):
                assert (card.parent / address).is_file(), card


def test_the_recipe_names_no_place_and_is_a_recipe(render: ModuleType) -> None:
    text = (render.DEMO / "recipe.yaml").read_text()
    assert not re.search(r"(?m)(?:^|\s)/\w", text)
    assert Recipe.load(render.DEMO / "recipe.yaml").base.model == f"./{render.BASE}"


def alike(first: bytes, second: bytes) -> bool:
    """Returns whether two pictures look the same: equal in size, and nearly all pixels nearly equal."""
    one, two = pixels(first), pixels(second)
    if one.shape != two.shape:
        return False
    return float((np.abs(one - two).max(axis=2) > DIFFERENCE).mean()) <= SHARE
