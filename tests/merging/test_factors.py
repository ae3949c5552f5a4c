"""Low-rank updates: whatever is done to the factors, the product is what it should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_merge.merging import factors


sizes = st.integers(1, 7)


def pair(seed: int, rank: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Returns random factors A [rank, columns] and B [rows, rank]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


def best(update: Tensor, rank: int) -> Tensor:
    """Returns the nearest matrix of a rank, by an independent decomposition."""
    u, s, v = torch.linalg.svd(update.double(), full_matrices=False)
    found: Tensor = ((u[:, :rank] * s[:rank]) @ v[:rank]).float()
    return found


@given(seed=st.integers(0, 99), rank=sizes, rows=sizes, columns=sizes)
def test_a_balanced_pair_is_the_same_update_with_its_singular_values_shared(
    seed: int, rank: int, rows: int, columns: int
) -> None:
    a, b = pair(seed, rank, rows, columns)
    even_a, even_b = factors.balanced(a, b)
    assert even_a.shape == a.shape and even_b.shape == b.shape
    torch.testing.assert_close(even_b @ even_a, b @ a, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(even_a @ even_a.T, even_b.T @ even_b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(factors.balanced(7 * a, b / 7), (even_a, even_b), atol=1e-4, rtol=1e-3)


@given(seed=st.integers(0, 99), rank=sizes, rows=sizes, columns=sizes)
def test_a_combination_of_one_update_with_weight_one_is_that_update(
    seed: int, rank: int, rows: int, columns: int
) -> None:
    a, b = pair(seed, rank, rows, columns)
    merged_a, merged_b = factors.combined([(a, b)], [1.0], rank)
    torch.testing.assert_close(merged_b @ merged_a, b @ a, atol=1e-4, rtol=1e-4)


@given(
    seed=st.integers(0, 99), rank=sizes, rows=st.integers(4, 7), columns=st.integers(4, 7), members=st.integers(1, 4)
)
def test_a_combination_is_the_nearest_update_of_its_rank_to_the_whole_sum(
    seed: int, rank: int, rows: int, columns: int, members: int
) -> None:
    pairs = [pair(100 * seed + index, rank, rows, columns) for index in range(members)]
    weights = [0.5 + index for index in range(members)]
    whole = torch.stack([weight * (b @ a) for weight, (a, b) in zip(weights, pairs, strict=True)]).sum(0)
    a, b = factors.combined(pairs, weights, rank)
    assert a.shape == (rank, columns) and b.shape == (rows, rank)
    lost, least = float((b @ a - whole).norm()), float((best(whole, rank) - whole).norm())
    assert lost == pytest.approx(least, rel=1e-3, abs=1e-3)


@given(seed=st.integers(0, 99), rank=sizes, rows=sizes, columns=sizes)
def test_a_whole_update_is_factored_as_well_as_its_rank_allows(seed: int, rank: int, rows: int, columns: int) -> None:
    update = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    a, b = factors.factored(update, rank)
    assert a.shape == (rank, columns) and b.shape == (rows, rank)
    lost, least = float((b @ a - update).norm()), float((best(update, rank) - update).norm())
    assert lost == pytest.approx(least, rel=1e-3, abs=1e-3)


def test_an_update_of_nothing_stays_nothing() -> None:
    a, b = factors.balanced(torch.zeros(3, 5), torch.zeros(4, 3))
    assert not a.any() and not b.any()


@given(seed=st.integers(0, 99), members=st.integers(1, 4))
def test_inner_products_are_those_of_the_whole_updates(seed: int, members: int) -> None:
    pairs = [pair(100 * seed + index, 2, 5, 6) for index in range(members)]
    whole = torch.stack([(b @ a).reshape(-1) for a, b in pairs]).double()
    torch.testing.assert_close(factors.inner_products(pairs), whole @ whole.T, atol=1e-4, rtol=1e-4)


def test_factors_are_kept_together_and_everything_else_alone() -> None:
    names = ("a.bias", "a.lora_A.weight", "a.lora_B.weight", "b.ia3_l", "c.lora_B.weight")
    assert factors.units(names) == [
        ("a.bias",), ("a.lora_A.weight", "a.lora_B.weight"), ("b.ia3_l",), ("c.lora_B.weight",),
    ]  # fmt: skip
    assert [factors.is_pair(unit) for unit in factors.units(names)] == [False, True, False, False]


@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_equal_updates_have_equal_bytes_on_any_number_of_threads(tall: bool) -> None:
    # Large enough that torch would share out the work.
    update = torch.randn(640, 320 if tall else 768, generator=torch.Generator().manual_seed(0))
    pairs = [pair(seed, 64, 768, 768) for seed in range(3)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append([*factors.combined(pairs, [0.5, 0.3, 0.2], 64), *factors.factored(update, 32)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
