"""Rows are cut into batches once each, none too large, and no other cut of them costs less."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.modeling.batching import BATCH_TOKENS, cut


LENGTHS = st.lists(st.integers(1, 512), max_size=60).map(sorted)


def cost(lengths: Sequence[int], batches: Sequence[tuple[int, int]]) -> int:
    return sum(BATCH_TOKENS + (stop - start) * lengths[stop - 1] for start, stop in batches)


@given(LENGTHS, st.integers(1, 32))
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], batch_size: int) -> None:
    batches = cut(np.array(lengths, dtype=np.int64), batch_size)
    assert [row for start, stop in batches for row in range(start, stop)] == list(range(len(lengths)))
    assert all(0 < stop - start <= batch_size for start, stop in batches)


@given(LENGTHS, st.integers(1, 32))
def test_no_batches_of_one_size_cost_less(lengths: list[int], batch_size: int) -> None:
    found = cost(lengths, cut(np.array(lengths, dtype=np.int64), batch_size))
    for size in range(1, batch_size + 1):
        even = [(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]
        assert found <= cost(lengths, even)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=9).map(sorted), st.integers(1, 9))
def test_no_other_cut_costs_less(lengths: list[int], batch_size: int) -> None:
    rows = len(lengths)
    found = cost(lengths, cut(np.array(lengths, dtype=np.int64), batch_size))
    for mask in range(1 << (rows - 1)):
        stops = [row + 1 for row in range(rows - 1) if mask >> row & 1] + [rows]
        batches = list(zip([0, *stops[:-1]], stops, strict=True))
        if all(stop - start <= batch_size for start, stop in batches):
            assert found <= cost(lengths, batches)


def test_rows_of_one_length_take_as_few_batches_as_can_hold_them() -> None:
    assert len(cut(np.full(70, 40, dtype=np.int64), 32)) == 3


def test_a_long_row_stands_alone_beside_short_ones() -> None:
    assert cut(np.array([5, 5, 5, 400]), 32) == [(0, 3), (3, 4)]
