"""Statistics of batch normalisation are pooled: laws, and what they are of all inputs taken together."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component
from hf_merge.merging.experts import build_expert, expert_key
from hf_merge.merging.methods import MethodSpec, available
from hf_merge.merging.statistics import is_statistic, pooled, units_of
from hf_merge.merging.task_vectors import measure
from tests.merging.test_experts import Memory


NAMES = ("bn.running_mean", "bn.running_var")
COMPONENT = Component("norm", ("bn.bias", *NAMES, "bn.weight"))
SHAPES = dict.fromkeys(COMPONENT.tensors, (6,))
FULL = CodecSpec.resolve("full")
floats = st.floats(-1e3, 1e3, width=32)
variances = st.floats(0, 1e3, width=32)
member = st.tuples(st.lists(floats, min_size=3, max_size=3), st.lists(variances, min_size=3, max_size=3))


def flat(members: Sequence[tuple[list[float], list[float]]]) -> list[Tensor]:
    return [torch.tensor(means + spreads) for means, spreads in members]


@given(st.lists(member, min_size=1, max_size=5))
def test_a_variance_never_falls_below_that_of_any_mean_of_variances(
    members: list[tuple[list[float], list[float]]],
) -> None:
    result = pooled(NAMES, flat(members))
    average = torch.stack(flat(members)).double().mean(dim=0).float()
    assert torch.equal(result[:3], average[:3])
    assert bool((result[3:] >= 0).all())
    assert bool((result[3:] >= average[3:] * (1 - 1e-6)).all())


@given(member, st.integers(1, 5))
def test_members_that_are_alike_give_themselves(one: tuple[list[float], list[float]], count: int) -> None:
    torch.testing.assert_close(pooled(NAMES, flat([one] * count)), flat([one])[0])


@given(st.permutations(range(4)))
def test_the_order_of_the_members_means_nothing(order: list[int]) -> None:
    members = [torch.rand(6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    torch.testing.assert_close(pooled(NAMES, [members[index] for index in order]), pooled(NAMES, members))


def test_pooled_are_the_statistics_of_all_inputs() -> None:
    inputs = [
        torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) * (seed + 1) + seed for seed in range(3)
    ]
    members = [torch.cat([rows.mean(dim=0), rows.var(dim=0, correction=0)]) for rows in inputs]
    together = torch.cat(inputs)
    expected = torch.cat([together.mean(dim=0), together.var(dim=0, correction=0)])
    torch.testing.assert_close(pooled(NAMES, members), expected)


def test_a_variance_without_its_mean_is_averaged() -> None:
    assert torch.equal(pooled(("bn.running_var",), [torch.ones(2), torch.full((2,), 3.0)]), torch.full((2,), 2.0))


def test_a_layers_statistics_belong_together() -> None:
    names = ("b.running_var", "a.running_mean", "a.weight", "a.running_var", "running_mean")
    assert units_of(names) == [("a.running_mean", "a.running_var"), ("b.running_var",), ("running_mean",)]
    assert not is_statistic("running_mean.weight")


def checkpoints(count: int) -> list[Memory]:
    generator = torch.Generator().manual_seed(0)
    return [Memory({name: torch.rand(6, generator=generator) for name in SHAPES}) for _ in range(count)]


@pytest.mark.parametrize("method", sorted(available()))
def test_no_method_touches_statistics(method: str) -> None:
    base, *tuned = checkpoints(3)
    members = dict(zip("ab", tuned, strict=True))
    key = expert_key("norm", ("a", "b"), MethodSpec.resolve(method), FULL)
    built = build_expert(key, COMPONENT, SHAPES, base, members).tensors
    both = [torch.cat([source.tensors[name] for name in NAMES]) for source in tuned]
    assert torch.equal(torch.cat([built[name] for name in NAMES]), pooled(NAMES, both))
    weights = Component("norm", ("bn.bias", "bn.weight"))
    alone = build_expert(key, weights, SHAPES, base, members).tensors
    assert all(torch.equal(built[name], alone[name]) for name in weights.tensors)


def test_one_task_keeps_its_own_and_nobody_the_bases() -> None:
    base, tuned = checkpoints(2)
    for members, source in ((("a",), tuned), ((), base)):
        key = expert_key("norm", members, MethodSpec.resolve("ties"), FULL)
        built = build_expert(key, COMPONENT, SHAPES, base, {"a": tuned}).tensors
        assert all(torch.equal(built[name], source.tensors[name]) for name in COMPONENT.tensors)


def test_statistics_have_no_part_in_the_geometry() -> None:
    base, *tuned = checkpoints(3)
    members = dict(zip("ab", tuned, strict=True))
    weights = Component("norm", ("bn.bias", "bn.weight"))
    with_statistics = measure([COMPONENT], SHAPES, base, members)
    without = measure([weights], SHAPES, base, members)
    assert (with_statistics.grams["norm"] == without.grams["norm"]).all()
    assert with_statistics.base_norm == without.base_norm
