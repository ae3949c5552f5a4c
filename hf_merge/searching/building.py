"""Experts built on demand for a search, with what each takes; the encoded ones used last are kept."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component
from hf_merge.merging.cost import normalised, stored_parameters
from hf_merge.merging.experts import Expert, ExpertKey, build_expert, decode_expert, expert_key, with_references
from hf_merge.merging.group_reader import GatheredSource
from hf_merge.merging.grouping import groups, members_of
from hf_merge.merging.methods import MethodSpec
from hf_merge.searching.configuration import Configuration
from hf_merge.storing.families import Family


Chain: TypeAlias = tuple[ExpertKey, ...]
_KEPT_KEYS = 2**15  # about 30 MB; a search proposes the same groups again and again


class GatheredForGroups(Protocol):
    """What merge methods need of the fine-tunes beside their weights."""

    def of(self, method: MethodSpec, members: Sequence[str]) -> Mapping[str, GatheredSource]:
        """Returns what was gathered for a method and a group of tasks, by task."""


class ExpertBuilder:
    """Builds experts on demand and keeps the encoded ones it used last.

    Attributes:
        family: The aligned base and fine-tunes.
        components: The partition of the backbone.
        methods: How groups are merged; a configuration may choose among them.
        codecs: How experts are stored; a configuration may choose among them. The first stores shared experts.
        tasks: The tasks' names, in the order of partitions.
        built: How many experts were really built.
    """

    def __init__(
        self,
        family: Family,
        components: Sequence[Component],
        methods: Sequence[MethodSpec],
        codecs: Sequence[CodecSpec],
        *,
        limit_bytes: int,
        gathered: GatheredForGroups | None = None,
    ) -> None:
        """Prepares a builder that keeps encoded experts up to `limit_bytes` bytes.

        Args:
            family: The aligned base and fine-tunes.
            components: The partition of the backbone.
            methods: How groups are merged; a configuration may choose among them, and takes the first where it
                does not.
            codecs: How experts are stored, in the same way.
            limit_bytes: How many bytes of encoded experts are kept.
            gathered: Where what the method needs of the fine-tunes comes from, if it needs anything.
        """
        self._gathered = gathered
        self.family, self.components, self.methods, self.codecs = (
            family,
            tuple(components),
            tuple(methods),
            tuple(codecs),
        )
        self.tasks = tuple(family.tasks)
        self.built = 0
        self._by_name = {component.name: component for component in components}
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._kept: OrderedDict[ExpertKey, Expert] = OrderedDict()
        self._shared: dict[str, tuple[ExpertKey, dict[str, Tensor]]] = {}
        self._measured: dict[str, float] = {}
        self._expected: dict[tuple[str, CodecSpec], float] = {}
        self._ranges: dict[str, tuple[int, int]] = {}
        self._remembered: dict[str, float] = {}
        self._keys: dict[tuple[int, tuple[int, ...], int, int], ExpertKey] = {}
        self._references: dict[tuple[int, int], ExpertKey] = {}

    def chain(self, configuration: Configuration, task: str) -> Chain:
        """Returns a task's chain: one expert identity per component."""
        number = self.tasks.index(task)
        return tuple(
            self._key(index, members_of(partition, number), configuration)
            for index, partition in enumerate(configuration.grouping)
        )

    def keys(self, configuration: Configuration) -> tuple[ExpertKey, ...]:
        """Returns the identities of the distinct experts of a configuration, component by component.

        Shared experts are among them whose differences others store, though no chain holds them.
        """
        return with_references(
            self._key(index, members, configuration)
            for index, partition in enumerate(configuration.grouping)
            for members in groups(partition)
        )

    def expert(self, key: ExpertKey) -> Expert:
        """Returns an expert, built now unless it is still kept.

        Raises:
            NonFiniteWeights: The base or a member holds NaN or infinity.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        component = self._by_name[key.component]
        expert = build_expert(
            key,
            component,
            self.family.shapes,
            self.family.origin,
            self.family.tasks,
            self._found(key.method, key.members),
            self._reference(key),
        )
        self.built += 1
        if key.method is not None:
            quantised = sum(f"{name}.scale" in expert.tensors for name in component.tensors)
            self._ranges[key.id] = len(expert.wider), quantised + len(expert.refused)
        self._measured[key.id] = expert.parameters
        self._keep(expert)
        return expert

    def gather(self) -> None:
        """Has what the merge methods need beside the weights gathered now, if they need anything."""
        for method in self.methods:
            self._found(method, self.tasks)

    def _found(self, method: MethodSpec | None, members: Sequence[str]) -> Mapping[str, GatheredSource]:
        """Returns what was gathered for a group; a group of one is not merged and needs nothing."""
        if self._gathered is None or method is None or len(members) < 2:
            return {}
        return self._gathered.of(method, members)

    def widened(self) -> tuple[int, int]:
        """Returns how many quantisable tensors merging made wider than their sources (Eq. 6), and of how many."""
        return sum(wider for wider, _ in self._ranges.values()), sum(count for _, count in self._ranges.values())

    def cost(self, configuration: Configuration) -> float:
        """Returns C: exact for experts built before, and as if every tensor passes the criterion for the others."""
        stored = sum(self._parameters(key) for key in self.keys(configuration))
        return normalised(stored + self.family.head_parameters(), self.family.parameters)

    def measured(self, configuration: Configuration) -> dict[str, float]:
        """Returns what the built experts of a configuration take, in full-precision parameters, by expert id."""
        return {key.id: self._measured[key.id] for key in self.keys(configuration) if key.id in self._measured}

    def measured_in(self, chain: Chain) -> dict[str, float]:
        """Returns what the built experts of a chain take, in full-precision parameters, by expert id."""
        return {key.id: self._measured[key.id] for key in with_references(chain) if key.id in self._measured}

    def remember(self, measured: Mapping[str, float]) -> None:
        """Takes what experts took in an earlier run of the same recipe; it counts once `recall` asks for it."""
        self._remembered |= measured

    def recall(self, configuration: Configuration) -> None:
        """Counts the experts of a configuration as built where an earlier run built them.

        Not sooner: a run that is repeated must know of every expert exactly when the first one did, or it would choose
        other candidates.
        """
        known = {key.id: self._remembered[key.id] for key in self.keys(configuration) if key.id in self._remembered}
        self._measured = known | self._measured

    def decoded(self, key: ExpertKey) -> dict[str, Tensor]:
        """Returns an expert's weights as float32 by tensor name: what is stored, as every reader decodes it."""
        names = self._by_name[key.component].tensors
        return decode_expert(key.codec, names, self.expert(key).tensors, self._reference(key))

    def _reference(self, key: ExpertKey) -> Mapping[str, Tensor]:
        """Returns the decoded weights whose difference an expert stores, if it stores one.

        Those of each component's last shared expert are kept: the tasks of a configuration all need them.
        """
        if key.reference is None:
            return {}
        kept = self._shared.get(key.component)
        if kept is None or kept[0] != key.reference:
            self._shared.pop(key.component, None)
            kept = self._shared[key.component] = key.reference, self.decoded(key.reference)
        return kept[1]

    def _key(self, index: int, members: Sequence[int], configuration: Configuration) -> ExpertKey:
        """Returns the identity of a group's expert, the same object again: a new one would work out its id anew."""
        place = index, tuple(members), configuration.method(index), configuration.codec(index)
        key = self._keys.get(place)
        if key is None:
            if len(self._keys) >= _KEPT_KEYS:
                self._keys.clear()
            key = self._keys[place] = self._new_key(*place)
        return key

    def _new_key(self, index: int, members: Sequence[int], method: int, codec: int) -> ExpertKey:
        component, merged, shared = self.components[index], self.methods[method], None
        names = [] if component.shared else [self.tasks[number] for number in members]
        if self.codecs[codec].residual:
            new = expert_key(component.name, self.tasks, merged, self.codecs[0])
            shared = self._references.setdefault((index, method), new)
        return expert_key(component.name, names, merged, self.codecs[codec], shared)

    def _parameters(self, key: ExpertKey) -> float:
        if key.id in self._measured:
            return self._measured[key.id]
        place = key.component, key.codec
        if place not in self._expected:
            shapes = {name: self.family.shapes[name] for name in self._by_name[key.component].tensors}
            self._expected[place] = stored_parameters(shapes, key.codec)
        return self._expected[place]

    def _keep(self, expert: Expert) -> None:
        self._kept[expert.key] = expert
        self._held_bytes += expert.nbytes
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._held_bytes -= dropped.nbytes


def reference_chain(components: Sequence[Component], members: Sequence[str]) -> Chain:
    """Returns the chain of one model at full precision: the fine-tune named by `members`, or the base for none."""
    full = CodecSpec.resolve("full", {})
    return tuple(
        ExpertKey(component.name, () if component.shared else tuple(members), None, full) for component in components
    )
