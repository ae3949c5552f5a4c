"""Rows: their digest tells contents, answers and order apart, and nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_merge.searching.rows import Rows
from hf_merge.storing.sounds import Sound


LABELS = np.array([0, 1])


def image(colour: int, size: tuple[int, int] = (4, 2)) -> Image.Image:
    return Image.new("RGB", size, (colour, 0, 0))


def sound(first: float, rate: int = 16000) -> Sound:
    return Sound(np.array([first, 0.5], dtype=np.float32), rate, "here")


TEXTS = Rows(("ab", "c"), None, None, LABELS)
IMAGES = Rows(None, None, (image(1), image(2)), LABELS)
SOUNDS = Rows(None, None, None, LABELS, sounds=(sound(0.0), sound(1.0)))


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (TEXTS, {"texts": ("a", "bc")}),
        (TEXTS, {"texts": ("c", "ab")}),
        (TEXTS, {"pairs": ("ab", "c")}),
        (TEXTS, {"pairs": ("ab", "c"), "texts": None}),
        (TEXTS, {"targets": ("ab", "c")}),
        (TEXTS, {"labels": np.array([1, 0])}),
        (TEXTS, {"labels": np.array([0, 1], dtype=np.float32)}),
        (IMAGES, {"images": (image(1), image(3))}),
        (IMAGES, {"images": (image(2), image(1))}),
        (IMAGES, {"images": (image(1), image(2, (2, 4)))}),
        (SOUNDS, {"sounds": (sound(0.0), sound(0.75))}),
        (SOUNDS, {"sounds": (sound(0.0), sound(1.0, 8000))}),
    ],
)
def test_other_rows_have_another_digest(rows: Rows, changes: dict[str, Any]) -> None:
    assert replace(rows, **changes).digest() != rows.digest()


@pytest.mark.parametrize("rows", [TEXTS, IMAGES, SOUNDS], ids=["texts", "images", "sounds"])
def test_equal_rows_have_one_digest(rows: Rows) -> None:
    assert rows.digest() == replace(rows, labels=rows.labels.copy()).digest()
    assert rows.first(1).digest() == rows.first(1).digest() != rows.digest()


def test_how_an_image_was_stored_and_where_a_sound_lay_do_not_count() -> None:
    grey = Image.new("L", (4, 2), 7)
    assert replace(IMAGES, images=(grey,) * 2).digest() == replace(IMAGES, images=(grey.convert("RGB"),) * 2).digest()
    assert replace(SOUNDS, sounds=(sound(0.0), replace(sound(1.0), origin="there"))).digest() == SOUNDS.digest()
