"""Experts are built on demand, kept within their limit, and cost what they take."""

import operator

import numpy as np
import pytest
import torch

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.experts import ExpertKey
from hf_merge.merging.grouping import groups
from hf_merge.merging.methods import MethodSpec
from hf_merge.searching import building
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator
from hf_merge.searching.space import SearchSpace
from hf_merge.storing.families import Family
from tests.searching.test_evaluation import (
    MERGED,
    MIXED,
    REFUSING,
    SEPARATE,
    evaluator_of,
    parameters_of,
    random_configurations,
)
from tests.tiny_models import TinyFamily


def test_encoded_experts_are_kept_within_their_limit(bert: TinyFamily, family: Family) -> None:
    limit = 30_000
    builder = evaluator_of(bert, family, limit_bytes=limit).builder
    for grouping in random_configurations(6):
        for key in builder.keys(grouping):
            expert = builder.expert(key)
            assert builder._held_bytes == sum(kept.nbytes for kept in builder._kept.values()) <= limit
            assert expert.nbytes > limit or key in builder._kept


def test_the_least_recently_used_expert_goes_first(bert: TinyFamily, family: Family) -> None:
    builder = evaluator_of(bert, family).builder
    first, second, third = (key for key in builder.keys(SEPARATE) if key.component == "mlp")
    builder._limit_bytes = 2 * builder.expert(first).nbytes
    builder.expert(second)
    builder.expert(first)
    builder.expert(third)
    assert list(builder._kept) == [first, third]


def test_cost_counts_tensors_that_the_criterion_refused(bert: TinyFamily, family: Family) -> None:
    evaluator = evaluator_of(bert, family, **REFUSING)
    guess = evaluator.cost(MIXED)
    cost = evaluator.evaluate(MIXED).cost
    experts = [evaluator.builder.expert(key) for key in evaluator.builder.keys(MIXED)]
    stored = sum(parameters_of(dict(expert.tensors)) for expert in experts)
    assert cost == pytest.approx((stored + family.head_parameters()) / family.parameters, rel=1e-12)
    assert any(expert.refused for expert in experts)
    assert cost > guess
    assert evaluator.cost(MIXED) == cost


def test_cost_is_known_beforehand_where_nothing_can_be_refused(bert: TinyFamily, family: Family) -> None:
    for codec in ({"policy": "always"}, {"policy": "never"}):
        evaluator = evaluator_of(bert, family, method={"scale": 1.5}, codec=codec)
        assert evaluator.cost(MIXED) == evaluator.evaluate(MIXED).cost


def test_widened_tensors_are_counted_once_per_merged_expert(bert: TinyFamily, family: Family) -> None:
    gentle, wild = evaluator_of(bert, family, limit_bytes=0), evaluator_of(bert, family, **REFUSING)
    assert gentle.builder.widened() == (0, 0)
    gentle.evaluate(SEPARATE)
    assert gentle.builder.widened() == (0, 0)
    for _ in range(2):
        gentle.builder.expert(gentle.builder.keys(MERGED)[0])
        wild.evaluate(MERGED)
    component = gentle.builder.components[0]
    matrices = sum(len(family.shapes[name]) == 2 for name in component.tensors)
    assert gentle.builder.widened()[1] == matrices
    refused = [name for key in wild.builder.keys(MERGED) for name in wild.builder.expert(key).refused]
    assert 0 < len(refused) == wild.builder.widened()[0] <= wild.builder.widened()[1]


def test_keys_are_each_group_once(evaluator: Evaluator) -> None:
    keys = evaluator.builder.keys(MIXED)
    assert len(keys) == len(set(keys)) == sum(len(groups(partition)) for partition in MIXED.grouping)
    chains = {task: evaluator.builder.chain(MIXED, task) for task in evaluator.runs}
    assert set(keys) == {key for chain in chains.values() for key in chain}
    for task, chain in chains.items():
        assert [key.component for key in chain] == [part.name for part in evaluator.builder.components]
        assert all(task in key.members for key in chain)


@pytest.mark.parametrize("limit", [2**15, 1])
def test_identities_are_kept_and_those_that_are_worked_out_anew_are_the_same(
    limit: int, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_KEPT_KEYS", limit)
    methods = [MethodSpec.resolve("average"), MethodSpec.resolve("ties")]
    codecs = [CodecSpec.resolve(name) for name in ("int8", "full", "sign")]
    parts = decompose(family.shapes, "type")
    builder = ExpertBuilder(family, parts, methods, codecs, limit_bytes=0)
    again = ExpertBuilder(family, parts, methods, codecs, limit_bytes=0)
    rng = np.random.default_rng(0)
    names = tuple(part.name for part in parts)
    space = SearchSpace(names, builder.tasks, methods=2, codecs=3, residual=frozenset({2}))
    for configuration in (space.random(rng) for _ in range(40)):
        for key in builder.keys(configuration):
            anew = ExpertKey(key.component, key.members, key.method, key.codec, key.reference)
            assert (anew, anew.id) == (key, key.id)
        assert builder.keys(configuration) == again.keys(configuration)
        again._keys.clear()
        assert len(builder._keys) <= limit
        if limit > 1:
            assert all(map(operator.is_, builder.keys(configuration), builder.keys(configuration)))


def test_a_shared_expert_is_decoded_once_for_all_that_differ_from_it(family: Family) -> None:
    components = decompose(family.shapes, "type")
    codecs = [CodecSpec.resolve("int8"), CodecSpec.resolve("sign")]
    builder = ExpertBuilder(family, components, [MethodSpec.resolve("average")], codecs, limit_bytes=0)
    count = len(components)
    apart = Configuration(((0, 1, 2),) * count, codecs=(1,) * count)
    first = {key: builder.decoded(key) for key in builder.keys(apart)}
    held = {key: {name: tensor.clone() for name, tensor in weights.items()} for key, weights in first.items()}
    shared = [key for key in first if key.reference is None]
    built = builder.built
    for key in first:
        again = builder.decoded(key)
        assert all(torch.equal(tensor, again[name]) for name, tensor in held[key].items())
        assert all(torch.equal(tensor, first[key][name]) for name, tensor in held[key].items()), "only read"
    assert built - 2 * len(shared) == builder.built - built - len(shared) == len(first) - len(shared)
