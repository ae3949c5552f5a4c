"""The range of a unit, and the criterion of Eq. 6."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.errors import NonFiniteWeights
from hf_merge.merging.ranges import extremes, is_within


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40))
def test_the_extremes_are_the_smallest_and_the_largest_weight(values: list[float]) -> None:
    low, high = extremes("w", torch.tensor(values))
    assert (float(low), float(high)) == (min(values), max(values))


def test_by_row_every_row_has_its_own() -> None:
    low, high = extremes("w", torch.tensor([[1.0, -2.0], [0.5, 3.0]]), by_row=True)
    assert low.tolist() == [-2.0, 0.5]
    assert high.tolist() == [1.0, 3.0]


def test_nothing_has_extremes_zero() -> None:
    low, high = extremes("w", torch.empty(0))
    assert (float(low), float(high)) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("by_row", [False, True])
def test_what_is_not_finite_is_refused_by_name(bad: float, by_row: bool) -> None:
    with pytest.raises(NonFiniteWeights, match="'encoder_w'"):
        extremes("encoder_w", torch.tensor([[1.0, bad]]), by_row=by_row)


def test_a_range_may_equal_the_mean_of_its_sources_but_for_rounding() -> None:
    low, high, mean = torch.tensor(-1.0), torch.tensor(1.0), torch.tensor(2.0, dtype=torch.float64)
    assert is_within(low, high, mean)
    assert is_within(low, high * (1 + 5e-7), mean)
    assert not is_within(low, high * 1.001, mean)


def test_one_unit_too_wide_is_one_too_many() -> None:
    low, high = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.5])
    assert not is_within(low, high, torch.tensor([1.0, 1.0]))
