"""What a front tells: every number against one worked out by hand or by counting."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hf_merge.merging.grouping import canonical
from hf_merge.searching.insight import associations, marginal_utilities, rank_correlation


GROUPINGS = st.lists(
    st.tuples(*[st.lists(st.integers(0, 3), min_size=4, max_size=4).map(canonical)] * 2), min_size=1, max_size=6
)


def test_what_a_step_buys_is_its_slope_at_its_middle() -> None:
    steps = marginal_utilities([(1.0, 0.9), (0.25, 0.4), (0.5, 0.8)])
    assert steps == [pytest.approx((0.375, 1.6)), pytest.approx((0.75, 0.2))]


def test_a_step_that_loses_on_test_rows_is_negative() -> None:
    assert marginal_utilities([(0.2, 0.5), (0.4, 0.4)]) == [pytest.approx((0.3, -0.5))]


def test_a_step_between_equal_costs_has_no_slope() -> None:
    assert marginal_utilities([(0.2, 0.5), (0.2, 0.6), (0.4, 0.8)]) == [pytest.approx((0.3, 1.0))]
    assert marginal_utilities([(0.2, 0.5)]) == marginal_utilities([]) == []


@pytest.mark.parametrize("pairs", [[], [(0.1, 2.0)], [(0.1, 2.0), (0.2, 1.0)]])
def test_of_fewer_than_three_pairs_there_is_no_number(pairs: list[tuple[float, float]]) -> None:
    found = rank_correlation(pairs)
    assert (found.pairs, found.rho, found.p) == (len(pairs), None, None)
    assert found.note == f"{len(pairs)} steps: at least 3 are needed"


def test_of_equal_utilities_there_is_no_number() -> None:
    found = rank_correlation([(0.1, 2.0), (0.2, 2.0), (0.3, 2.0)])
    assert (found.rho, found.p, found.note) == (None, None, "all are equal")


def test_three_pairs_in_order_are_no_proof() -> None:
    found = rank_correlation([(0.1, 3.0), (0.2, 2.0), (0.3, 1.0)])
    assert found.rho == pytest.approx(-1.0)
    assert found.p == pytest.approx(2 / 6)  # of six orders two are as extreme


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=6))
def test_the_p_of_few_pairs_counts_every_order(pairs: list[tuple[int, int]]) -> None:
    found = rank_correlation(pairs)
    first, second = (stats.rankdata(column) for column in zip(*pairs, strict=True))
    if found.rho is None:
        assert len(set(first)) == 1 or len(set(second)) == 1
        return
    assert found.rho == pytest.approx(np.corrcoef(first, second)[0, 1])
    products = np.array([np.dot(order, second) for order in permutations(first)])
    own = float(np.dot(first, second))
    tail = min(np.mean(products >= own - 1e-9), np.mean(products <= own + 1e-9))
    assert found.p == pytest.approx(min(1.0, 2 * tail))


def test_the_p_of_many_pairs_is_that_of_students_t() -> None:
    rng = np.random.default_rng(0)
    pairs = list(zip(range(12), rng.normal(size=12).tolist(), strict=True))
    found = rank_correlation(pairs)
    rho = np.corrcoef(stats.rankdata([x for x, _ in pairs]), stats.rankdata([y for _, y in pairs]))[0, 1]
    student = abs(rho) * np.sqrt(10 / (1 - rho**2))
    assert found.rho == pytest.approx(rho)
    assert found.p == pytest.approx(2 * stats.t.sf(student, 10))


@given(GROUPINGS)
def test_an_association_is_the_share_of_configurations_with_both_in_one_group(
    groupings: list[tuple[tuple[int, ...], ...]],
) -> None:
    found = associations(groupings)
    assert found.shape == (2, 4, 4)
    for component in range(2):
        for one in range(4):
            for other in range(4):
                together = [grouping[component][one] == grouping[component][other] for grouping in groupings]
                assert found[component, one, other] == pytest.approx(sum(together) / len(groupings))
