"""Experts: what one component's group of tasks becomes, merged (Eq. 4, 5) and then encoded (Eq. 6).

An expert's identity says everything that determines its bytes: component, members, merge method with hyperparameters,
codec. Equal identity means equal bytes, so an expert is built once and stored once. A singleton is not merged: it is
its task's own weights, then encoded. Members are read one at a time into one buffer, so memory does not grow with the
tasks.

Source: MERGE, arXiv 2602.06552, Eq. 4-6.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from hf_merge.errors import NonFiniteWeights
from hf_merge.merging import codecs, factors, methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component, Shape
from hf_merge.merging.cost import stored_parameters
from hf_merge.merging.methods import Member, MethodSpec
from hf_merge.merging.ranges import bounds, extremes, is_within
from hf_merge.merging.statistics import is_statistic, pooled, units_of


class TensorSource(Protocol):
    """Something that reads backbone tensors by their name in the base."""

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """Returns the tensor as float32, in `out` where it is given."""


@dataclass(frozen=True)
class ExpertKey:
    """The identity of an expert.

    Attributes:
        component: The component's name.
        members: The task names whose weights are merged, in the recipe's order; none stands for the base itself.
        method: The merge method with every hyperparameter, or None for a singleton.
        codec: The codec with every setting.
    """

    component: str
    members: tuple[str, ...]
    method: MethodSpec | None
    codec: CodecSpec

    @cached_property
    def id(self) -> str:
        """The expert's name in files: the component and twelve hex digits of the identity's SHA-256."""
        identity = [
            self.component,
            list(self.members),
            self.method.as_json() if self.method is not None else None,
            self.codec.as_json(),
        ]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return f"{self.component}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Expert:
    """A built expert: its identity and its encoded tensors by stored name.

    Attributes:
        key: The identity.
        tensors: Encoded tensors: a tensor's name, and beside it `.scale` and `.zero_point` where it is quantised.
        refused: Tensors stored in full because they failed the range criterion.
        wider: Quantisable tensors that merging made wider than their sources, whether or not the policy heeds it.
        parameters: What it takes, in full-precision parameters (Eq. 8).
    """

    key: ExpertKey
    tensors: Mapping[str, Tensor]
    refused: tuple[str, ...]
    wider: tuple[str, ...]
    parameters: float

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors on disk, without headers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


def expert_key(component: str, members: Sequence[str], method: MethodSpec, codec: CodecSpec) -> ExpertKey:
    """Returns the identity of the expert of a group; a group of one is merged by no method."""
    return ExpertKey(component, tuple(members), method if len(members) > 1 else None, codec)


def build_expert(
    key: ExpertKey,
    component: Component,
    shapes: Mapping[str, Shape],
    base: TensorSource,
    members: Mapping[str, TensorSource],
) -> Expert:
    """Returns an expert, merged from its members and encoded.

    Args:
        key: What to build.
        component: The component that `key` names.
        shapes: The shape of every backbone tensor.
        base: Reads the pre-trained weights.
        members: Reads the fine-tuned weights, by task name; only those of `key.members` are read.

    Raises:
        NonFiniteWeights: A member or the base holds NaN or infinity; the message names task and tensor.
    """
    sources = _Sources(key, shapes, base, members)
    encoded: dict[str, Tensor] = {}
    refused: list[str] = []
    wider: list[str] = []
    for names in _units(key, component):
        merged = _merge_unit(sources, names)
        for name, flat in zip(names, sources.split(merged, names), strict=True):
            tensors = sources.codec.encode(name, flat.view(shapes[name]), sources.mean_range(name), key.codec.mapping)
            stored = tensors[name]
            if sources.is_wider(name, flat):
                wider.append(name)
            if sources.is_quantised(name) and stored.dtype == torch.float32:
                refused.append(name)
            encoded |= {**tensors, name: _alone(stored)}
    parts = {name: shapes[name] for name in component.tensors}
    return Expert(key, encoded, tuple(refused), tuple(wider), stored_parameters(parts, key.codec, refused))


def decode_expert(codec: CodecSpec, names: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns an expert's weights as float32 tensors by name, exactly as every user of the expert sees them.

    Args:
        codec: How the expert is stored.
        names: The tensors of its component.
        tensors: Its encoded tensors by stored name; those stored in full come back as they are, not copied.
    """
    decode = codecs.get(codec.name).decode
    return {name: decode(name, tensors) for name in names}


def stored_names(name: str) -> tuple[str, str, str]:
    """Returns the names under which an encoded tensor may be stored: its own, and where it is quantised two more."""
    return name, f"{name}.scale", f"{name}.zero_point"


def find_fault(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where a codec can have written it.

    Args:
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
    """
    weight, scale, zero_point = map(tensors.get, stored_names(name))
    if weight is None:
        return "is missing"
    if weight.dtype != torch.uint8:
        if weight.dtype != torch.float32 or scale is not None or zero_point is not None:
            return f"is {weight.dtype}, where float32 without scale and zero_point is stored in full"
        return None if bool(torch.isfinite(weight).all()) else "holds NaN or infinity"
    if scale is None or zero_point is None:
        return "is uint8 without scale or zero_point"
    if scale.dtype != torch.float32 or zero_point.dtype != torch.int32 or scale.shape != zero_point.shape:
        return "has not a float32 scale and an int32 zero_point of one shape"
    if scale.ndim and scale.shape != weight.shape[:1]:
        return f"of shape {list(weight.shape)} has a scale of shape {list(scale.shape)}"
    sound = torch.isfinite(scale) & (scale > 0) & (zero_point >= 0) & (zero_point <= 255)
    return None if bool(sound.all()) else "has a scale that is not finite and above 0, or a zero_point beyond 0 to 255"


class _Sources:
    """Reads base and members of one expert; while they stream by, it gathers their ranges and refuses NaN.

    The mean range of the members is the right-hand side of the codec's criterion.
    """

    def __init__(
        self, key: ExpertKey, shapes: Mapping[str, Shape], base: TensorSource, members: Mapping[str, TensorSource]
    ) -> None:
        self.key, self.codec = key, codecs.get(key.codec.name)
        self._shapes, self._base, self._members = shapes, base, members
        self._settings = key.codec.mapping
        self._has_ranges = len(key.members) > 1 and self._settings.get("policy") in ("criterion", "always")
        self._sums: dict[str, Tensor] = {}

    def buffer(self, names: Sequence[str]) -> Tensor:
        """Returns memory for the tensors `names` one after the other, [n] float32."""
        return torch.empty(sum(prod(self._shapes[name]) for name in names), dtype=torch.float32)

    def split(self, flat: Tensor, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Returns views of the tensors `names` in a buffer that holds them one after the other."""
        return torch.split(flat, [prod(self._shapes[name]) for name in names])

    def is_quantised(self, name: str) -> bool:
        """Returns whether the codec quantises the tensor when its values allow it."""
        return self.codec.quantises(name, self._shapes[name], self._settings)

    def read_base(self, names: Sequence[str], out: Tensor) -> Tensor:
        """Reads the base's tensors into `out` [n] float32 and returns it."""
        for name, flat in zip(names, self.split(out, names), strict=True):
            _finite_extremes(self._base.read(name, flat), "The base", name)
        return out

    def read_member(self, task: str, names: Sequence[str], out: Tensor) -> Tensor:
        """Reads a member's tensors into `out` [n] float32 and returns it."""
        for name, flat in zip(names, self.split(out, names), strict=True):
            extreme = _finite_extremes(self._members[task].read(name, flat), f"Task '{task}'", name)
            self._add_range(name, flat, extreme)
        return out

    def read_factors(self, task: str, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns a member's factors A [rank, in] and B [out, rank], balanced, float32."""
        read = []
        for name in names:
            flat = self._members[task].read(name, torch.empty(prod(self._shapes[name])))
            _finite_extremes(flat, f"Task '{task}'", name)
            read.append(flat.view(self._shapes[name]))
        pair = factors.balanced(read[0], read[1])
        for name, factor in zip(names, pair, strict=True):
            self._add_range(name, factor.reshape(-1), bounds(factor))
        return pair

    def _add_range(self, name: str, flat: Tensor, extreme: tuple[Tensor, Tensor]) -> None:
        """Adds a member's range to the sum of a tensor; `extreme` is its smallest and its largest value."""
        if not self._has_ranges or not self.is_quantised(name):
            return
        low, high = extreme
        if self._settings.get("unit") == "row":
            low, high = bounds(flat.view(self._shapes[name]), by_row=True)
        span = high.double() - low.double()
        self._sums[name] = self._sums[name] + span if name in self._sums else span

    def is_wider(self, name: str, flat: Tensor) -> bool:
        """Returns whether a merged tensor fails the criterion of Eq. 6, which is logged under every policy."""
        mean = self.mean_range(name)
        if mean is None:
            return False
        by_row = self._settings.get("unit") == "row"
        low, high = extremes(name, flat.view(self._shapes[name]), by_row=by_row)
        return not is_within(low, high, mean)

    def mean_range(self, name: str) -> Tensor | None:
        """Returns the mean range, a scalar or [rows] float64, or None where no criterion applies."""
        return self._sums[name] / len(self.key.members) if name in self._sums else None


def _units(key: ExpertKey, component: Component) -> list[tuple[str, ...]]:
    """Returns the tensors merged at once: all where a method's thresholds span the component, else each alone.

    The factors of an update are always merged together, and apart from other updates. No method sees the statistics
    of batch normalisation, which are pooled layer by layer.
    """
    statistics = units_of(component.tensors) if key.method is not None else []
    pooled_names = {name for unit in statistics for name in unit}
    parts = factors.units([name for name in component.tensors if name not in pooled_names])
    if key.method is not None and methods.get(key.method.name).scoped and key.method.mapping["scope"] == "component":
        together = tuple(part[0] for part in parts if not factors.is_pair(part))
        parts = [part for part in parts if factors.is_pair(part)] + ([together] if together else [])
    return parts + statistics


def _merge_unit(sources: _Sources, names: Sequence[str]) -> Tensor:
    """Returns the merged weights of one unit, [n] float32; never more than base, one member and the method's own."""
    key, buffer = sources.key, sources.buffer(names)
    if key.method is None:
        return sources.read_member(key.members[0], names, buffer) if key.members else sources.read_base(names, buffer)
    if is_statistic(names[0]):
        return pooled(names, [sources.read_member(task, names, sources.buffer(names)) for task in key.members])
    seeds = {task: _seed(key.method, names[0], task) for task in key.members}
    if factors.is_pair(names):
        return _merge_pair(sources, key.method, names, seeds)
    stream = (Member(task, sources.read_member(task, names, buffer), seeds[task]) for task in key.members)
    base = sources.read_base(names, sources.buffer(names))
    return methods.get(key.method.name).merge(base, stream, key.method.mapping)


def _merge_pair(sources: _Sources, spec: MethodSpec, names: Sequence[str], seeds: Mapping[str, int]) -> Tensor:
    """Returns the merged factors of an update, A and B one after the other, [n] float32, of the rank they had."""
    method = methods.get(spec.name)
    pairs = {task: sources.read_factors(task, names) for task in sources.key.members}
    rank = len(next(iter(pairs.values()))[0])
    if method.linear:
        a, b = factors.combined(pairs.values(), method.weights(len(pairs), spec.mapping), rank)
    else:
        updates = (Member(task, (b @ a).reshape(-1), seeds[task]) for task, (a, b) in pairs.items())
        a, b = next(iter(pairs.values()))
        merged = method.merge(torch.zeros(b.shape[0] * a.shape[1]), updates, spec.mapping)
        a, b = factors.factored(merged.view(b.shape[0], a.shape[1]), rank)
    return torch.cat([a.reshape(-1), b.reshape(-1)])


def _seed(method: MethodSpec, first_tensor: str, task: str) -> int:
    """Returns where a member's random choices start: fixed by seed, unit and task, so that no order changes it."""
    digest = hashlib.sha256(f"{method.mapping.get('seed', 0)}:{first_tensor}:{task}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _finite_extremes(weights: Tensor, owner: str, name: str) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest weight, scalars; zeros where there are none."""
    low, high = bounds(weights)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise NonFiniteWeights(
            f"{owner}: tensor '{name}' holds NaN or infinity; merging would spread it. "
            "Repair or leave out the checkpoint."
        )
    return low, high


def _alone(tensor: Tensor) -> Tensor:
    """Returns the tensor in memory of its own: a view would keep the buffer of its whole unit alive."""
    own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone()
