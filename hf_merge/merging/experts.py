"""Experts: what one component's group of tasks becomes, merged (Eq. 4, 5) and then encoded (Eq. 6).

An expert's identity says everything that determines its bytes: component, members, merge method with hyperparameters,
codec, and for a residual codec the shared expert whose differences are stored. Equal identity means equal bytes, so
an expert is built once and stored once. A singleton is not merged: it is its task's own weights, then encoded. Members
are read one at a time into one buffer, so memory does not grow with the tasks.

A residual expert is the difference from the shared expert *as decoded*, so that the shared expert's own rounding does
not stay in it (error feedback; docs/adr/0017-residual-experts.md).

Source: MERGE, arXiv 2602.06552, Eq. 4-6.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from hf_merge.errors import UntrustedContentError
from hf_merge.merging import codecs, factors, methods
from hf_merge.merging.codecs import Codec, CodecSpec
from hf_merge.merging.components import Component, Shape
from hf_merge.merging.cost import stored_parameters
from hf_merge.merging.group_reader import GatheredSource, GroupReader, Members, TensorSource
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.statistics import is_statistic, pooled, units_of


@dataclass(frozen=True)
class ExpertKey:
    """The identity of an expert.

    Attributes:
        component: The component's name.
        members: The task names whose weights are merged, in the recipe's order; none stands for the base itself.
        method: The merge method with every hyperparameter, or None for a singleton.
        codec: The codec with every setting.
        reference: The shared expert whose difference is stored; None where the codec is not residual.
    """

    component: str
    members: tuple[str, ...]
    method: MethodSpec | None
    codec: CodecSpec
    reference: "ExpertKey | None" = None

    @cached_property
    def id(self) -> str:
        """The expert's name in files: the component and twelve hex digits of the identity's SHA-256."""
        identity = [
            self.component,
            list(self.members),
            self.method.as_json() if self.method is not None else None,
            self.codec.as_json(),
            *([self.reference.id] if self.reference is not None else []),
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


def expert_key(
    component: str,
    members: Sequence[str],
    method: MethodSpec,
    codec: CodecSpec,
    reference: ExpertKey | None = None,
) -> ExpertKey:
    """Returns the identity of the expert of a group; a group of one is merged by no method."""
    return ExpertKey(component, tuple(members), method if len(members) > 1 else None, codec, reference)


def with_references(keys: Iterable[ExpertKey]) -> tuple[ExpertKey, ...]:
    """Returns the distinct experts among `keys` and those whose differences they store, each before its first user."""
    return tuple(dict.fromkeys(each for key in keys for each in (key.reference, key) if each is not None))


def build_expert(
    key: ExpertKey,
    component: Component,
    shapes: Mapping[str, Shape],
    base: TensorSource,
    members: Mapping[str, TensorSource],
    gathered: Mapping[str, GatheredSource] = MappingProxyType({}),
    reference: Mapping[str, Tensor] = MappingProxyType({}),
) -> Expert:
    """Returns an expert, merged from its members and encoded.

    Args:
        key: What to build.
        component: The component that `key` names.
        shapes: The shape of every backbone tensor.
        base: Reads the pre-trained weights.
        members: Reads the fine-tuned weights, by task name; only those of `key.members` are read.
        gathered: What was gathered of the fine-tunes, by task name, where the merge method needs it.
        reference: The weights of `key.reference`, decoded, by tensor name; only read.

    Raises:
        NonFiniteWeights: A member or the base holds NaN or infinity; the message names task and tensor.
    """
    reader = GroupReader(key.members, key.codec, shapes, base, members, gathered)
    encode = codecs.get(key.codec.name).encode
    encoded: dict[str, Tensor] = {}
    refused: list[str] = []
    wider: list[str] = []
    for name, flat in merged_tensors(key.members, key.method, component, reader):
        weight = flat.view(shapes[name])
        if key.reference is not None and reader.is_quantised(name):
            weight = weight - reference[name]
        tensors = encode(name, weight, reader.mean_range(name), key.codec.mapping)
        stored = tensors[name]
        if reader.is_wider(name, flat):
            wider.append(name)
        if reader.is_quantised(name) and stored.dtype == torch.float32:
            refused.append(name)
        encoded |= {**tensors, name: _alone(stored)}
    parts = {name: shapes[name] for name in component.tensors}
    return Expert(key, encoded, tuple(refused), tuple(wider), stored_parameters(parts, key.codec, refused))


def decode_expert(
    codec: CodecSpec,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Returns an expert's weights as float32 tensors by name, exactly as every user of the expert sees them.

    Args:
        codec: How the expert is stored.
        names: The tensors of its component.
        tensors: Its encoded tensors by stored name; those stored in full come back as they are, not copied.
        reference: The decoded weights of the shared expert whose difference a residual codec stored; only read.

    Raises:
        UntrustedContentError: The parts of a tensor are not what the codec writes, or a difference has another shape
            than what it is the difference from.
    """
    decoding = codecs.get(codec.name)
    if not decoding.residual:
        return {name: decoding.decode(name, tensors) for name in names}
    return {name: _restored(name, decoding, tensors, reference) for name in names}


def _restored(name: str, codec: Codec, tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """Returns a tensor that a residual codec stored: what is not quantised stands for itself.

    The shape is compared before anything is decoded: a few bytes of a stranger's could claim to be a huge matrix.
    """
    if tensors[name].dtype != torch.uint8:
        return codec.decode(name, tensors)
    given, needed = tensors.get(f"{name}.shape"), list(reference[name].shape)
    if given is None or given.tolist() != needed:
        found = "no shape" if given is None else f"shape {given.tolist()}"
        raise UntrustedContentError(
            f"Tensor '{name}' is stored as a difference of {found} from one of shape {needed}."
        )
    return codec.decode(name, tensors).add_(reference[name])


def stored_names(codec: str, name: str) -> tuple[str, ...]:
    """Returns the names under which a codec may store a tensor: its own, and where it is quantised some more."""
    return (name, *(name + part for part in codecs.get(codec).parts))


def find_fault(codec: str, name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where its codec can have written it.

    Args:
        codec: The codec's name.
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
    """
    return codecs.get(codec).fault(name, tensors)


def merged_tensors(
    tasks: Sequence[str], method: MethodSpec | None, component: Component, reader: GroupReader
) -> Iterator[tuple[str, Tensor]]:
    """Yields a component's tensors merged, by name, each [n] float32; a tensor may be a view of a whole unit.

    Args:
        tasks: The members of the group, in the recipe's order; none stands for the base itself.
        method: How they are merged; None where there is at most one.
        component: What is merged.
        reader: Reads base and members.

    Raises:
        NonFiniteWeights: A member or the base holds NaN or infinity; the message names task and tensor.
    """
    for names in _units(method, component):
        merged = _copied(tasks, names, reader) if method is None else _merge_unit(tasks, method, names, reader)
        if method is not None:
            _scale_by_depth(merged, names, method, component, reader)
        yield from zip(names, reader.split(merged, names), strict=True)


def _scale_by_depth(
    merged: Tensor, names: Sequence[str], method: MethodSpec, component: Component, reader: GroupReader
) -> None:
    """Multiplies what merging changed, in place, by a factor that goes evenly from `shallow` to 1 with depth.

    Of the factors of an update it is B that is multiplied, for the change is their product.

    Source: LiNeS, arXiv 2410.17146, eq. 2.
    """
    if method.factor_at(0.0) == 1.0 or is_statistic(names[0]):
        return
    deep = dict(zip(component.tensors, component.depths, strict=True))
    parts = reader.split(merged, names)
    factors_of = [method.factor_at(deep[name]) for name in names]
    if factors.is_pair(names):
        parts[1].mul_(factors_of[1])
        return
    bases = reader.split(reader.read_base(names, reader.scratch(names, "base")), names)
    for part, base, factor in zip(parts, bases, factors_of, strict=True):
        part.sub_(base).mul_(factor).add_(base)


def _units(method: MethodSpec | None, component: Component) -> list[tuple[str, ...]]:
    """Returns the tensors merged at once: all where a method's thresholds span the component, else each alone.

    The factors of an update are always merged together, and apart from other updates. No method sees the statistics
    of batch normalisation, which are pooled layer by layer.
    """
    statistics = units_of(component.tensors) if method is not None else []
    pooled_names = {name for unit in statistics for name in unit}
    parts = factors.units([name for name in component.tensors if name not in pooled_names])
    if method is not None and methods.get(method.name).scoped and method.mapping["scope"] == "component":
        together = tuple(part[0] for part in parts if not factors.is_pair(part))
        parts = [part for part in parts if factors.is_pair(part)] + ([together] if together else [])
    return parts + statistics


def _copied(tasks: Sequence[str], names: Sequence[str], reader: GroupReader) -> Tensor:
    """Returns the tensors of the only member, or of the base where there is none, [n] float32."""
    buffer = reader.buffer(names)
    return reader.read_member(tasks[0], names, buffer) if tasks else reader.read_base(names, buffer)


def _merge_unit(tasks: Sequence[str], spec: MethodSpec, names: Sequence[str], reader: GroupReader) -> Tensor:
    """Returns the merged weights of one unit, [n] float32; never more than base, one member and the method's own."""
    if is_statistic(names[0]):
        return pooled(names, [reader.read_member(task, names, reader.buffer(names)) for task in tasks])
    seeds = {task: _seed(spec, names[0], task) for task in tasks}
    if factors.is_pair(names):
        return _merge_pair(reader, spec, names, seeds)
    method, buffer = methods.get(spec.name), reader.scratch(names, "member")
    shape = reader.shape(names[0]) if method.shaped else buffer.shape
    members = Members(
        lambda task: reader.read_member(task, names, buffer).view(shape),
        seeds,
        lambda task: reader.read_gathered(task, names[0]) if len(names) == 1 else None,
    )
    base = reader.read_base(names, reader.scratch(names, "base")).view(shape)
    return method.merge(base, members, spec.mapping).reshape(-1)


def _merge_pair(reader: GroupReader, spec: MethodSpec, names: Sequence[str], seeds: Mapping[str, int]) -> Tensor:
    """Returns the merged factors of an update, A and B one after the other, [n] float32, of the rank they had."""
    method = methods.get(spec.name)
    pairs = {task: reader.read_factors(task, names) for task in seeds}
    rank = len(next(iter(pairs.values()))[0])
    if method.linear:
        a, b = factors.combined(pairs.values(), method.weights(len(pairs), spec.mapping), rank)
    else:
        a, b = next(iter(pairs.values()))
        whole = (b.shape[0], a.shape[1])
        shape = whole if method.shaped else (b.shape[0] * a.shape[1],)
        updates = Members(lambda task: (pairs[task][1] @ pairs[task][0]).view(shape), seeds)
        merged = method.merge(torch.zeros(shape), updates, spec.mapping)
        a, b = factors.factored(merged.view(whole), rank)
    return torch.cat([a.reshape(-1), b.reshape(-1)])


def _seed(method: MethodSpec, first_tensor: str, task: str) -> int:
    """Returns where a member's random choices start: fixed by seed, unit and task, so that no order changes it."""
    digest = hashlib.sha256(f"{method.mapping.get('seed', 0)}:{first_tensor}:{task}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _alone(tensor: Tensor) -> Tensor:
    """Returns the tensor in memory of its own: a view would keep the buffer of its whole unit alive."""
    own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if own else tensor.clone()
