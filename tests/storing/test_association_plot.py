"""The networks of tasks: every pair drawn as strong as it is together, every name once each, none on another."""

from io import BytesIO
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from hf_merge.storing.association_plot import draw_associations, plot_associations
from tests.storing.test_plots import overlapping, texts


def weights(tasks: int, components: int) -> dict[str, list[list[float]]]:
    rng = np.random.default_rng(tasks)
    found = {}
    for index in range(components):
        labels = rng.integers(0, 3, size=(5, tasks))
        found[f"attention.{index}"] = (labels[:, :, None] == labels[:, None, :]).mean(axis=0).tolist()
    return found


def networks(figure: Any) -> list[Any]:
    return [part for part in figure.axes[0].collections if isinstance(part, LineCollection)]


@pytest.mark.parametrize(("tasks", "components"), [(2, 1), (3, 4), (8, 12), (20, 3), (64, 2), (8, 72)])
def test_every_network_is_legible(tasks: int, components: int) -> None:
    names = [f"small_talk{index}" for index in range(tasks)]
    shares = weights(tasks, components)
    figure: Any = draw_associations(names, shares, 5)
    assert overlapping(figure) == []
    shown = [text for text, _ in texts(figure)]
    assert all(shown.count(name) == components for name in names)
    assert all(shown.count(component) == 1 for component in shares)
    for text, box in texts(figure):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    assert max(figure.bbox.size) < 2**15  # the renderer's own limit is twice that


def test_a_long_name_of_a_component_does_not_lie_on_its_mean() -> None:
    figure = draw_associations(["a", "b"], {"text.decoder.cross_attention.12": [[1, 0.5], [0.5, 1]]}, 2)
    assert overlapping(figure) == []


def test_a_line_is_as_wide_and_as_dense_as_the_share_of_its_pair() -> None:
    shares = weights(5, 1)
    (network,) = networks(draw_associations(list("abcde"), shares, 5))
    (matrix,) = shares.values()
    expected = sorted(matrix[one][other] for one, other in combinations(range(5), 2) if matrix[one][other] > 0)
    opacity = [float(color[3]) for color in np.asarray(network.get_colors())]
    widths = [float(width) for width in network.get_linewidths()]
    assert opacity == pytest.approx(expected)
    assert widths == pytest.approx([4 * share for share in expected])


def test_tasks_that_never_share_have_no_line() -> None:
    (network,) = networks(draw_associations(["a", "b", "c"], {"mlp": [[1, 1, 0], [1, 1, 0], [0, 0, 1]]}, 1))
    assert len(network.get_segments()) == 1


def test_the_mean_over_pairs_stands_at_the_network() -> None:
    figure = draw_associations(["a", "b", "c"], {"mlp": [[1, 1, 0], [1, 1, 0.5], [0, 0.5, 1]]}, 2)
    assert "mean 0.50" in [text for text, _ in texts(figure)]


def test_the_bytes_are_the_same_every_time() -> None:
    first = plot_associations(["a", "b", "c"], weights(3, 2), 5)
    assert first == plot_associations(["a", "b", "c"], weights(3, 2), 5)
    with Image.open(BytesIO(first)) as image:
        assert image.format == "PNG"
        assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
