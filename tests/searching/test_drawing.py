"""Drawing rows: order, limits, and that sets drawn one after another share no content."""

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hf_merge.errors import DatasetError
from hf_merge.searching.drawing import Draw, draw, report_doubles, search_share


class Split:
    """A split of letters that counts how many rows were read."""

    def __init__(self, letters: str) -> None:
        self.letters, self.read_rows = letters, 0

    def read(self, rows: NDArray[np.int64]) -> list[tuple[str, str]]:
        self.read_rows += len(rows)
        return [(self.letters[row], f"row {self.letters[row]}") for row in rows]


def test_drawn_rows_come_in_the_order_of_the_split() -> None:
    drawn = draw(Split("abcdef").read, np.array([4, 0, 3, 5, 1, 2]), 3)
    assert dict(drawn.items) == {0: "row a", 3: "row d", 4: "row e"}
    assert list(drawn.items) == [0, 3, 4]
    assert drawn.keys == {"a", "d", "e"}
    assert drawn.unseen.tolist() == [5, 1, 2]
    assert drawn.doubles == 0


def test_taken_content_is_replaced_by_later_rows_and_counted() -> None:
    split = Split("abacadae")
    drawn = draw(split.read, np.arange(8), 3, frozenset("a"))
    assert list(drawn.items.values()) == ["row b", "row c", "row d"]
    assert drawn.doubles == 3
    assert drawn.unseen.tolist() == [6, 7]
    assert split.read_rows == 6


def test_no_more_rows_are_read_than_needed() -> None:
    split = Split("abcdefgh" * 100)
    draw(split.read, np.arange(800), 5)
    assert split.read_rows == 5


@given(st.text("abcdef", max_size=30), st.text("abcdef", max_size=30), st.integers(0, 9), st.randoms())
def test_second_draw_shares_no_content_with_the_first(first: str, second: str, limit: int, random: Any) -> None:
    order = np.array(random.sample(range(len(second)), len(second)), dtype=np.int64)
    one = draw(Split(first).read, np.arange(len(first)), limit)
    two = draw(Split(second).read, order, limit, one.keys)
    assert not one.keys & two.keys
    assert len(two.items) == min(limit, sum(letter not in one.keys for letter in second))
    assert len(two.items) + two.doubles + len(two.unseen) == len(second)


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(2, 1200))
def test_a_shared_split_leaves_the_router_its_part(rows: int, validation_rows: int, router_rows: int) -> None:
    search = search_share(rows, validation_rows, router_rows)
    router = rows - search
    assert 1 <= search <= validation_rows
    assert router >= min(router_rows, rows // 4)


@pytest.mark.parametrize(
    ("rows", "validation_rows", "router_rows", "expected"),
    [(2000, 512, 1000, 512), (100, 60, 1000, 60), (100, 512, 1000, 50), (513, 512, 1000, 257), (520, 512, 5, 512)],
)
def test_share_of_the_search(rows: int, validation_rows: int, router_rows: int, expected: int) -> None:
    assert search_share(rows, validation_rows, router_rows) == expected


def test_doubles_are_logged_and_nothing_left_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    report_doubles(Draw({0: "a"}, frozenset("a"), 0, np.arange(0)), "sst2", "router", "a test row")
    assert not caplog.records
    report_doubles(Draw({0: "a"}, frozenset("a"), 2, np.arange(0)), "sst2", "router", "a test row")
    assert caplog.record_tuples[0][1:] == (
        logging.WARNING,
        "Task 'sst2': left out 2 router rows that equal a test row.",
    )
    with pytest.raises(
        DatasetError, match=r"'sst2': no router rows are left \(2 were looked at, and each equals a test"
    ):
        report_doubles(Draw({}, frozenset(), 2, np.arange(0)), "sst2", "router", "a test row")
