"""Experts: what is built is what Eq. 4-6 say, written out naively, and identity decides bytes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from math import prod

import pytest
import torch
from torch import Tensor

from hf_merge.errors import NonFiniteWeights, UntrustedContentError
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component, Shape, decompose, keeps_full_precision
from hf_merge.merging.experts import Expert, ExpertKey, build_expert, decode_expert, expert_key, find_fault
from hf_merge.merging.group_reader import Members, TensorSource
from hf_merge.merging.methods import MethodSpec, available
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, align
from tests.tiny_models import LAYOUTS, TinyFamily


FULL, INT8 = CodecSpec.resolve("full"), CodecSpec.resolve("int8", {"policy": "criterion"})
BY_ROW = CodecSpec.resolve("int8", {"policy": "criterion", "unit": "row"})
ALWAYS = CodecSpec.resolve("int8", {"policy": "always"})
AVERAGE, ARITHMETIC, TIES = (MethodSpec.resolve(name) for name in ("average", "task_arithmetic", "ties"))
TASKS = ("a", "b", "c")
SHAPES: dict[str, Shape] = {
    "embed.weight": (7, 4),
    "h.0.attn.weight": (6, 4),
    "h.0.attn.bias": (6,),
    "h.0.attn.gain": (),
    "h.0.attn.nothing": (0, 3),
}
ATTENTION = Component("attention", tuple(sorted(name for name in SHAPES if "attn" in name)))


class Memory:
    """A checkpoint in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        if out is None:
            return self.tensors[name].clone()
        out.view(-1).copy_(self.tensors[name].view(-1))
        return out


class Listed(Memory):
    """One that writes its task into a list whenever it is read."""

    def __init__(self, task: str, tensors: Mapping[str, Tensor], reads: list[str]) -> None:
        super().__init__(tensors)
        self.task, self.reads = task, reads

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        self.reads.append(self.task)
        return super().read(name, out)


def checkpoint(seed: int, near: Memory | None = None) -> Memory:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return Memory(noise if near is None else {name: near.tensors[name] + 0.2 * noise[name] for name in SHAPES})


@pytest.fixture
def base() -> Memory:
    return checkpoint(0)


@pytest.fixture
def members(base: Memory) -> dict[str, Memory]:
    return {task: checkpoint(seed, base) for seed, task in enumerate(TASKS, start=1)}


def build(key: ExpertKey, base: Memory, members: Mapping[str, Memory]) -> Expert:
    return build_expert(key, ATTENTION, SHAPES, base, members)


def decoded(expert: Expert) -> dict[str, Tensor]:
    return decode_expert(expert.key.codec, ATTENTION.tensors, expert.tensors)


def test_a_difference_of_another_shape_is_refused_before_it_is_decoded() -> None:
    name = "huge.weight"
    bomb = {
        name: torch.ones((1, 8), dtype=torch.uint8),
        f"{name}.scale": torch.ones(1),
        f"{name}.rows": torch.zeros(1, dtype=torch.int32),
        f"{name}.shape": torch.tensor([2**31 - 1, 16], dtype=torch.int32),
    }
    codec = CodecSpec.resolve("rows")
    assert find_fault("rows", name, bomb) is None
    with pytest.raises(
        UntrustedContentError, match=r"a difference of shape \[2147483647, 16\] from one of shape \[4, 16"
    ):
        decode_expert(codec, [name], bomb, {name: torch.zeros(4, 16)})


# Eq. 4-6, written out


def naive_merge(method: str, base: Tensor, tuned: Tensor) -> Tensor:
    """The merged weights [n] float64 of fine-tunes [T, n] at each method's default hyperparameters."""
    if method == "average":
        return tuned.mean(0)
    vectors = tuned - base
    if method == "task_arithmetic":
        return base + 0.4 * vectors.sum(0)
    kept = max(1, int(0.2 * vectors.shape[1]))
    for vector in vectors:
        order = torch.argsort(vector.abs(), descending=True, stable=True)
        vector[order[kept:]] = 0
    elected = torch.sign(vectors.sum(0))
    agree = (torch.sign(vectors) == elected) & (vectors != 0)
    return base + (vectors * agree).sum(0) / agree.sum(0).clamp(min=1)


def naive_int8(name: str, merged: Tensor, tuned: Tensor) -> Tensor:
    """What is left of merged weights after Eq. 6, for sources [T, *shape]."""
    spans = torch.stack([source.max() - source.min() for source in tuned])
    if keeps_full_precision(name, tuple(merged.shape)) or merged.max() - merged.min() > (1 + 1e-6) * spans.mean():
        return merged
    low, high = merged.min().clamp(max=0), merged.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale)
    return scale * ((torch.round(merged / scale) + zero).clamp(0, 255) - zero)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties"])
def test_an_expert_is_what_the_equations_say(
    layout: str, method: str, tiny_family: Callable[[str], TinyFamily]
) -> None:
    with open_tiny(tiny_family(layout)) as family:
        for component in decompose(family.shapes, "type"):
            for members in [*combinations(family.tasks, 2), tuple(family.tasks)]:
                key = expert_key(component.name, members, MethodSpec.resolve(method), INT8)
                expert = build_expert(key, component, family.shapes, family.base, family.tasks)
                compare_with_equations(expert, component, family, method)


def compare_with_equations(expert: Expert, component: Component, family: Family, method: str) -> None:
    base = flat(family.base, component)
    tuned = torch.stack([flat(family.tasks[task], component) for task in expert.key.members])
    merged = naive_merge(method, base, tuned.clone())
    sizes = [prod(family.shapes[name]) for name in component.tensors]
    weights = decode_expert(INT8, component.tensors, expert.tensors)
    for name, part, sources in zip(component.tensors, merged.split(sizes), tuned.split(sizes, dim=1), strict=True):
        shape = family.shapes[name]
        expected = naive_int8(name, part.view(shape), sources.view(-1, *shape))
        # Where float32 and float64 round to different sides of one half, the stored number differs by one step.
        is_quantised = f"{name}.scale" in expert.tensors
        step = float(expert.tensors[f"{name}.scale"]) if is_quantised else 0.0
        torch.testing.assert_close(weights[name].double(), expected, rtol=1e-5, atol=1e-6 + 1.001 * step)
        if is_quantised:
            assert (weights[name] - expected).abs().gt(1e-5).double().mean() < 0.02
        assert is_quantised == (not torch.equal(expected, part.view(shape)))
        assert (name in expert.refused) == (not is_quantised and not keeps_full_precision(name, shape))


def flat(source: TensorSource, component: Component) -> Tensor:
    return torch.cat([source.read(name).double().view(-1) for name in component.tensors])


@contextmanager
def open_tiny(family: TinyFamily) -> Iterator[Family]:
    base = Checkpoint(str(family.base), family.base)
    tuned = {task.name: Checkpoint(task.name, task.folder) for task in family.tasks.values()}
    with align(base, tuned) as aligned:
        yield aligned


# Identity


def test_a_group_of_one_is_that_model(base: Memory, members: dict[str, Memory]) -> None:
    for method in available():
        key = expert_key("attention", ["b"], MethodSpec.resolve(method), FULL)
        assert key.method is None
        expert = build(key, base, members)
        assert all(torch.equal(expert.tensors[name], members["b"].tensors[name]) for name in ATTENTION.tensors)


def test_no_members_stand_for_the_base_itself(base: Memory) -> None:
    expert = build(ExpertKey("attention", (), None, FULL), base, {})
    assert all(torch.equal(expert.tensors[name], base.tensors[name]) for name in ATTENTION.tensors)


@pytest.mark.parametrize("codec", [FULL, INT8, BY_ROW, ALWAYS])
@pytest.mark.parametrize("method", available())
def test_equal_identity_is_equal_bytes(
    method: str, codec: CodecSpec, base: Memory, members: dict[str, Memory]
) -> None:
    key = expert_key("attention", TASKS, MethodSpec.resolve(method), codec)
    first = build(key, base, members)
    torch.randn(100)  # neither the global generator nor the order of the mapping counts
    second = build(replace(key), base, dict(reversed(members.items())))
    assert first.key.id == second.key.id
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.dtype == second.tensors[name].dtype
        assert torch.equal(tensor, second.tensors[name])


def test_every_ingredient_changes_the_identity() -> None:
    keys = [
        expert_key("attention", ["a", "b"], ARITHMETIC, INT8),
        expert_key("mlp", ["a", "b"], ARITHMETIC, INT8),
        expert_key("attention", ["a", "c"], ARITHMETIC, INT8),
        expert_key("attention", ["b", "a"], ARITHMETIC, INT8),
        expert_key("attention", ["a,b"], ARITHMETIC, INT8),
        expert_key("attention", ["a"], ARITHMETIC, INT8),
        expert_key("attention", [], ARITHMETIC, INT8),
        expert_key("attention", ["a", "b"], AVERAGE, INT8),
        expert_key("attention", ["a", "b"], MethodSpec.resolve("task_arithmetic", {"scale": 0.5}), INT8),
        expert_key("attention", ["a", "b"], ARITHMETIC, FULL),
        expert_key("attention", ["a", "b"], ARITHMETIC, BY_ROW),
        expert_key("attention", ["a", "b"], ARITHMETIC, ALWAYS),
    ]
    assert len({key.id for key in keys}) == len(set(keys)) == len(keys)
    assert all(key.id.startswith(f"{key.component}-") for key in keys)
    assert expert_key("attention", ["a"], AVERAGE, INT8) == expert_key("attention", ["a"], TIES, INT8)


def test_only_the_members_are_read_and_in_the_recipes_order(base: Memory, members: dict[str, Memory]) -> None:
    order: list[str] = []
    members = {task: Listed(task, member.tensors, order) for task, member in members.items()}
    build(expert_key("attention", ["c", "a"], AVERAGE, FULL), base, members)
    assert order == ["c", "a"] * len(ATTENTION.tensors)


def test_a_threshold_spans_the_component_or_the_tensor(base: Memory, members: dict[str, Memory]) -> None:
    for member in members.values():  # one tensor moves far more than the other
        member.tensors["h.0.attn.bias"] = base.tensors["h.0.attn.bias"] + 9 + torch.arange(6.0)
    wide = decoded(build(expert_key("attention", TASKS, TIES, FULL), base, members))
    each = MethodSpec.resolve("ties", {"scope": "tensor"})
    narrow = decoded(build(expert_key("attention", TASKS, each, FULL), base, members))
    name = "h.0.attn.weight"
    assert torch.equal(wide[name], base.tensors[name])
    assert not torch.equal(narrow[name], base.tensors[name])


# Conditions


def test_a_widened_tensor_stays_full_under_the_criterion_only(base: Memory, members: dict[str, Memory]) -> None:
    far = MethodSpec.resolve("task_arithmetic", {"scale": 5.0})
    refused = build(expert_key("attention", TASKS, far, INT8), base, members)
    always = build(expert_key("attention", TASKS, far, ALWAYS), base, members)
    assert refused.refused == ("h.0.attn.weight",)
    assert refused.tensors["h.0.attn.weight"].dtype == torch.float32
    assert refused.parameters == 24 + 6 + 1
    assert always.refused == ()
    assert always.tensors["h.0.attn.weight"].dtype == torch.uint8
    assert always.parameters == 24 / 4 + 2 + 6 + 1


def test_every_row_must_pass_where_rows_are_the_units(base: Memory, members: dict[str, Memory]) -> None:
    key = expert_key("attention", TASKS, AVERAGE, BY_ROW)
    assert build(key, base, members).tensors["h.0.attn.weight.scale"].shape == (6,)
    key = expert_key("attention", TASKS, MethodSpec.resolve("task_arithmetic", {"scale": 5.0}), BY_ROW)
    assert build(key, base, members).refused == ("h.0.attn.weight",)


@pytest.mark.parametrize("codec", [INT8, BY_ROW, ALWAYS])
def test_what_merging_widened_is_told_whatever_the_policy(
    codec: CodecSpec, base: Memory, members: dict[str, Memory]
) -> None:
    far = MethodSpec.resolve("task_arithmetic", {"scale": 5.0})
    assert build(expert_key("attention", TASKS, far, codec), base, members).wider == ("h.0.attn.weight",)
    assert build(expert_key("attention", TASKS, AVERAGE, codec), base, members).wider == ()
    assert build(expert_key("attention", ["a"], far, codec), base, members).wider == ()


def test_ranges_beyond_float32_are_no_infinity(base: Memory, members: dict[str, Memory]) -> None:
    members["a"].tensors["h.0.attn.weight"].view(-1)[:2] = torch.tensor([2e38, -2e38])
    expert = build(expert_key("attention", ["a", "b"], AVERAGE, INT8), base, members)
    assert expert.refused == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tasks", [("b",), TASKS])
def test_weights_that_are_not_finite_are_refused(
    value: float, tasks: tuple[str, ...], base: Memory, members: dict[str, Memory]
) -> None:
    members["b"].tensors["h.0.attn.bias"][3] = value
    with pytest.raises(NonFiniteWeights, match=r"Task 'b': tensor 'h\.0\.attn\.bias' holds NaN or infinity"):
        build(expert_key("attention", tasks, ARITHMETIC, INT8), base, members)


def test_a_base_that_is_not_finite_is_refused(base: Memory, members: dict[str, Memory]) -> None:
    base.tensors["h.0.attn.weight"][0, 0] = float("nan")
    with pytest.raises(NonFiniteWeights, match=r"The base: tensor 'h\.0\.attn\.weight'"):
        build(expert_key("attention", TASKS, ARITHMETIC, INT8), base, members)


@pytest.mark.parametrize("codec", [FULL, INT8])
@pytest.mark.parametrize("method", available())
def test_no_tensor_keeps_a_larger_buffer_alive(
    method: str, codec: CodecSpec, base: Memory, members: dict[str, Memory]
) -> None:
    for tasks in (TASKS, ["a"]):
        expert = build(expert_key("attention", tasks, MethodSpec.resolve(method), codec), base, members)
        for name, tensor in expert.tensors.items():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name
        assert expert.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in expert.tensors.values())


def test_sources_are_left_as_they_were(base: Memory, members: dict[str, Memory]) -> None:
    before = {
        task: {name: tensor.clone() for name, tensor in member.tensors.items()} for task, member in members.items()
    }
    for method in available():
        build(expert_key("attention", TASKS, MethodSpec.resolve(method), INT8), base, members)
    for task, tensors in before.items():
        assert all(torch.equal(tensor, members[task].tensors[name]) for name, tensor in tensors.items())


PAIR = Component("attention", ("h.0.k.lora_A.weight", "h.0.k.lora_B.weight", "h.1.k.ia3_l"))
PAIR_SHAPES: dict[str, Shape] = dict(zip(PAIR.tensors, ((2, 9), (7, 2), (7, 1)), strict=True))


@pytest.fixture
def updates() -> dict[str, Memory]:
    """Three tasks' factors of rank 2, and vectors."""
    generator = torch.Generator().manual_seed(1)
    return {
        task: Memory({name: torch.randn(shape, generator=generator) for name, shape in PAIR_SHAPES.items()})
        for task in TASKS
    }


def nearest(update: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    found: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return found


@pytest.mark.parametrize("name", sorted(available()))
def test_factors_are_merged_as_whole_updates_and_cut_back_to_their_rank(name: str, updates: dict[str, Memory]) -> None:
    method = MethodSpec.resolve(name, {"density": 1.0} if "density" in MethodSpec.resolve(name).mapping else {})
    start = Memory({key: torch.zeros(shape) for key, shape in PAIR_SHAPES.items()})
    expert = build_expert(expert_key("attention", TASKS, method, FULL), PAIR, PAIR_SHAPES, start, updates)
    a, b = (expert.tensors[key] for key in PAIR.tensors[:2])
    wholes = {task: held.tensors[PAIR.tensors[1]] @ held.tensors[PAIR.tensors[0]] for task, held in updates.items()}
    shape = (7, 9) if available()[name].shaped else (63,)
    members = Members(lambda task: wholes[task].reshape(shape).clone(), {task: i for i, task in enumerate(TASKS)})
    whole = available()[name].merge(torch.zeros(shape), members, method.mapping).view(7, 9)
    assert a.shape == (2, 9) and b.shape == (7, 2)
    torch.testing.assert_close((whole - b @ a).norm(), (whole - nearest(whole, 2)).norm(), atol=1e-4, rtol=1e-4)
    if name not in ("iso_c", "iso_cts"):  # of equal singular values, any two are as near
        torch.testing.assert_close(b @ a, nearest(whole, 2), atol=1e-4, rtol=1e-4)


def test_a_single_members_factors_are_left_as_they_are(updates: dict[str, Memory]) -> None:
    key = expert_key("attention", ["b"], ARITHMETIC, FULL)
    expert = build_expert(key, PAIR, PAIR_SHAPES, updates["a"], updates)
    assert all(torch.equal(expert.tensors[name], updates["b"].tensors[name]) for name in PAIR.tensors)


def test_merged_factors_are_judged_by_the_range_of_balanced_ones(updates: dict[str, Memory]) -> None:
    start = Memory({key: torch.zeros(shape) for key, shape in PAIR_SHAPES.items()})
    key = expert_key("attention", TASKS, AVERAGE, INT8)
    expert = build_expert(key, PAIR, PAIR_SHAPES, start, updates)
    first, second = PAIR.tensors[:2]
    lopsided = {
        task: Memory(held.tensors | {first: held.tensors[first] * 8, second: held.tensors[second] / 8})
        for task, held in updates.items()
    }
    again = build_expert(key, PAIR, PAIR_SHAPES, start, lopsided)
    assert expert.refused == again.refused == ()
    assert expert.tensors.keys() == again.tensors.keys()
    assert expert.tensors[PAIR.tensors[0]].dtype == torch.uint8


def test_factors_with_nan_are_refused_by_name(updates: dict[str, Memory]) -> None:
    updates["c"].tensors[PAIR.tensors[1]][0, 0] = torch.nan
    start = Memory({key: torch.zeros(shape) for key, shape in PAIR_SHAPES.items()})
    with pytest.raises(NonFiniteWeights, match=r"Task 'c': tensor 'h\.0\.k\.lora_B\.weight'"):
        build_expert(expert_key("attention", TASKS, TIES, FULL), PAIR, PAIR_SHAPES, start, updates)


DEEP: dict[str, Shape] = {
    "embed.weight": (5, 4),
    "norm.weight": (4,),
    **{f"h.{n}.attn.weight": (4, 4) for n in range(3)},
}


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv"])
def test_shallow_scales_what_merging_changed_evenly_with_depth(method: str) -> None:
    (component,) = decompose(DEEP, "model")
    base, *tuned = (Memory({name: torch.randn(shape) for name, shape in DEEP.items()}) for _ in range(3))
    members = dict(zip("ab", tuned, strict=True))
    built = {}
    for shallow in (1.0, 0.25):
        spec = MethodSpec.resolve(method, {"shallow": shallow})
        built[shallow] = build_expert(expert_key("model", "ab", spec, FULL), component, DEEP, base, members).tensors
    depth = {
        "embed.weight": 0.0,
        "h.0.attn.weight": 0.0,
        "h.1.attn.weight": 0.5,
        "h.2.attn.weight": 1.0,
        "norm.weight": 1,
    }
    for name, deep in depth.items():
        change = (built[1.0][name] - base.tensors[name]) * (0.25 + 0.75 * deep)
        torch.testing.assert_close(built[0.25][name], base.tensors[name] + change)


def test_shallow_at_its_default_is_no_part_of_an_identity() -> None:
    assert MethodSpec.resolve("ties", {"shallow": 1.0}) == TIES
    assert MethodSpec.resolve("ties", {"shallow": 0.5}) != TIES


def test_shallow_scales_the_update_of_factors() -> None:
    names = tuple(f"h.{n}.attn.weight.lora_{side}.weight" for n in range(2) for side in "AB")
    shapes: dict[str, Shape] = {name: (2, 4) if "lora_A" in name else (6, 2) for name in names}
    (component,) = decompose(shapes, "model")
    base = Memory({name: torch.zeros(shape) for name, shape in shapes.items()})
    members = {task: Memory({name: torch.randn(shape) for name, shape in shapes.items()}) for task in "ab"}
    products = {}
    for shallow in (1.0, 0.5):
        spec = MethodSpec.resolve("task_arithmetic", {"shallow": shallow})
        made = build_expert(expert_key("model", "ab", spec, FULL), component, shapes, base, members).tensors
        products[shallow] = [made[names[2 * n + 1]] @ made[names[2 * n]] for n in range(2)]
    torch.testing.assert_close(products[0.5][0], 0.5 * products[1.0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(products[0.5][1], products[1.0][1], atol=1e-5, rtol=1e-4)
