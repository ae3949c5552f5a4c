"""The paper of the pictures: as large as asked for, opaque, and without a word of who drew it."""

from io import BytesIO

from PIL import Image

from hf_merge.storing.canvas import new_figure, png


def test_a_figure_is_as_large_as_asked_for_in_points() -> None:
    with Image.open(BytesIO(png(new_figure(144, 72)))) as image:
        assert image.size == (288, 144)


def test_the_paper_is_white_and_opaque_and_names_no_software() -> None:
    with Image.open(BytesIO(png(new_figure(72, 72)))) as image:
        assert image.convert("RGBA").getextrema() == ((255, 255),) * 4
        assert "Software" not in image.info
