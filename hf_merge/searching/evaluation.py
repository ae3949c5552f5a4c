"""The performance P of a configuration (Eq. 7): every task's chain assembled, run on its validation rows, and scored.

A task's score depends only on its own chain, so scores are remembered by (task, chain) and a chain met before costs
nothing. One model is assembled at a time: the experts of the present chain stay, and only components whose expert
changes are built anew. Encoded experts are kept up to a stated number of bytes, least recently used first out; both
memories change speed, never a score.

Source: MERGE, arXiv 2602.06552, Eq. 7, 8 and 10.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component
from hf_merge.merging.cost import normalised, stored_parameters
from hf_merge.merging.experts import Expert, ExpertKey, build_expert, decode_expert, expert_key
from hf_merge.merging.grouping import Grouping, groups, members_of
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.inputs import Batch, restore
from hf_merge.searching.metrics import score
from hf_merge.storing.checkpoints import Family


Chain = tuple[ExpertKey, ...]


@dataclass(frozen=True, eq=False)
class TaskRun:
    """A task made ready to be evaluated.

    Attributes:
        name: The task's name.
        model: Its skeleton and head.
        batches: Its rows as model inputs.
        labels: What the rows should give, [rows].
        metric: The metric's name.
    """

    name: str
    model: TaskModel
    batches: Sequence[Batch]
    labels: NDArray[np.generic]
    metric: str


@dataclass(frozen=True)
class Evaluation:
    """What one configuration scored.

    Attributes:
        scores: The metric of every task.
        cost: C, exact: tensors that failed the range criterion count in full.
    """

    scores: Mapping[str, float]
    cost: float

    @property
    def performance(self) -> float:
        """P: the plain mean of the tasks' metrics."""
        return mean_score(self.scores)


class ExpertBuilder:
    """Builds experts on demand and keeps the encoded ones it used last.

    Attributes:
        family: The aligned base and fine-tunes.
        components: The partition of the backbone.
        method: How groups are merged.
        codec: How experts are stored.
        tasks: The tasks' names, in the order of partitions.
        built: How many experts were really built.
    """

    def __init__(
        self,
        family: Family,
        components: Sequence[Component],
        method: MethodSpec,
        codec: CodecSpec,
        *,
        limit_bytes: int,
    ) -> None:
        """Prepares a builder that keeps encoded experts up to `limit_bytes` bytes."""
        self.family, self.components, self.method, self.codec = family, tuple(components), method, codec
        self.tasks = tuple(family.tasks)
        self.built = 0
        self._by_name = {component.name: component for component in components}
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._kept: OrderedDict[ExpertKey, Expert] = OrderedDict()
        self._measured: dict[str, float] = {}
        self._ranges: dict[str, tuple[int, int]] = {}
        self._remembered: dict[str, float] = {}

    def chain(self, grouping: Grouping, task: str) -> Chain:
        """Returns a task's chain: one expert identity per component."""
        index = self.tasks.index(task)
        return tuple(
            self._key(component.name, members_of(partition, index))
            for component, partition in zip(self.components, grouping, strict=True)
        )

    def keys(self, grouping: Grouping) -> tuple[ExpertKey, ...]:
        """Returns the identities of the distinct experts of a configuration, component by component."""
        return tuple(
            self._key(component.name, members)
            for component, partition in zip(self.components, grouping, strict=True)
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
        expert = build_expert(key, component, self.family.shapes, self.family.base, self.family.tasks)
        self.built += 1
        if key.method is not None:
            quantised = sum(f"{name}.scale" in expert.tensors for name in component.tensors)
            self._ranges[key.id] = len(expert.wider), quantised + len(expert.refused)
        self._measured[key.id] = expert.parameters
        self._keep(expert)
        return expert

    def widened(self) -> tuple[int, int]:
        """Returns how many quantisable tensors merging made wider than their sources (Eq. 6), and of how many."""
        return sum(wider for wider, _ in self._ranges.values()), sum(count for _, count in self._ranges.values())

    def cost(self, grouping: Grouping) -> float:
        """Returns C: exact for experts built before, and as if every tensor passes the criterion for the others."""
        stored = sum(self._parameters(key) for key in self.keys(grouping))
        return normalised(stored + self.family.head_parameters(), self.family.parameters)

    def measured(self, grouping: Grouping) -> dict[str, float]:
        """Returns what the built experts of a configuration take, in full-precision parameters, by expert id."""
        return {key.id: self._measured[key.id] for key in self.keys(grouping) if key.id in self._measured}

    def measured_in(self, chain: Chain) -> dict[str, float]:
        """Returns what the built experts of a chain take, in full-precision parameters, by expert id."""
        return {key.id: self._measured[key.id] for key in chain if key.id in self._measured}

    def remember(self, measured: Mapping[str, float]) -> None:
        """Takes what experts took in an earlier run of the same recipe; it counts once `recall` asks for it."""
        self._remembered |= measured

    def recall(self, grouping: Grouping) -> None:
        """Counts the experts of a configuration as built where an earlier run built them.

        Not sooner: a run that is repeated must know of every expert exactly when the first one did, or it would choose
        other candidates.
        """
        known = {key.id: self._remembered[key.id] for key in self.keys(grouping) if key.id in self._remembered}
        self._measured = known | self._measured

    def decoded(self, key: ExpertKey) -> dict[str, Tensor]:
        """Returns an expert's weights as float32 by tensor name: what is stored, as every reader decodes it."""
        return decode_expert(key.codec, self._by_name[key.component].tensors, self.expert(key).tensors)

    def _key(self, component: str, members: Sequence[int]) -> ExpertKey:
        return expert_key(component, [self.tasks[index] for index in members], self.method, self.codec)

    def _parameters(self, key: ExpertKey) -> float:
        if key.id in self._measured:
            return self._measured[key.id]
        shapes = {name: self.family.shapes[name] for name in self._by_name[key.component].tensors}
        return stored_parameters(shapes, key.codec)

    def _keep(self, expert: Expert) -> None:
        self._kept[expert.key] = expert
        self._held_bytes += expert.nbytes
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._held_bytes -= dropped.nbytes


@dataclass(eq=False)
class Evaluator:
    """Evaluates configurations on the tasks' rows.

    Attributes:
        builder: Where experts come from.
        runs: The tasks, by name.
        dtype: What the model computes in.
        forwards: How many (task, chain) pairs were really run and scored.
    """

    builder: ExpertBuilder
    runs: Mapping[str, TaskRun]
    dtype: torch.dtype = torch.float32
    forwards: int = 0
    _scores: dict[tuple[str, Chain], float] = field(default_factory=dict)
    _loaded: dict[str, tuple[ExpertKey, dict[str, Tensor]]] = field(default_factory=dict)

    @property
    def ahead(self) -> int:
        """How many configurations are prepared together."""
        return 1

    def prepare(self, groupings: Sequence[Grouping]) -> None:
        """Does nothing: `evaluate` runs what it needs."""

    def evaluate(self, grouping: Grouping) -> Evaluation:
        """Returns the scores and the exact cost of a configuration."""
        chains = {task: self.builder.chain(grouping, task) for task in self.runs}
        in_order = sorted(self.runs, key=lambda task: [key.id for key in chains[task]])
        scores = {task: self.score(task, chains[task]) for task in in_order}
        self.builder.recall(grouping)
        return Evaluation({task: scores[task] for task in self.runs}, self.builder.cost(grouping))

    def cost(self, grouping: Grouping) -> float:
        """Returns C of a configuration that need not be evaluated yet; see `ExpertBuilder.cost`."""
        return self.builder.cost(grouping)

    def score(self, task: str, chain: Chain) -> float:
        """Returns a task's metric under a chain, run now unless this pair was run before."""
        if (task, chain) not in self._scores:
            run = self.runs[task]
            self._scores[task, chain] = score(run.metric, predictions(self.logits(task, chain)), run.labels)
            self.forwards += 1
        return self._scores[task, chain]

    def remember(self, task: str, chain: Chain, value: float) -> None:
        """Takes a score from an earlier run of the same recipe."""
        self._scores[task, chain] = value

    def logits(self, task: str, chain: Chain) -> Tensor:
        """Returns the logits [rows, num_labels] float32 of a task's rows under a chain, in the rows' order.

        Raises:
            ModelMismatch: The fine-tune lacks a tensor that its model needs.
            NonFiniteWeights: The base or a member holds NaN or infinity.
        """
        run = self.runs[task]
        try:
            for key in chain:
                run.model.set_backbone(self._weights(key), self.builder.family.base.trunk)
            run.model.require_complete()
            return restore(run.batches, [run.model.logits(batch.inputs).float() for batch in run.batches])
        finally:
            run.model.clear()

    def _weights(self, key: ExpertKey) -> dict[str, Tensor]:
        """Returns an expert's weights in the computing type; its component's last expert is dropped before."""
        if key.component in self._loaded and self._loaded[key.component][0] == key:
            return self._loaded[key.component][1]
        self._loaded.pop(key.component, None)
        weights = {name: tensor.to(self.dtype) for name, tensor in self.builder.decoded(key).items()}
        self._loaded[key.component] = (key, weights)
        return weights


def mean_score(scores: Mapping[str, float]) -> float:
    """Returns P: the plain mean of the tasks' metrics (Eq. 7)."""
    return sum(scores.values()) / len(scores)


def predictions(logits: Tensor) -> NDArray[np.generic]:
    """Returns what logits [rows, labels] predict: the best label [rows] int64, or a single label's value [rows]."""
    if logits.shape[1] == 1:
        values: NDArray[np.float32] = logits[:, 0].numpy()
        return values
    best: NDArray[np.int64] = logits.argmax(dim=1).numpy()
    return best


def reference_chain(components: Sequence[Component], members: Sequence[str]) -> Chain:
    """Returns the chain of one model at full precision: the fine-tune named by `members`, or the base for none."""
    full = CodecSpec.resolve("full", {})
    return tuple(ExpertKey(component.name, tuple(members), None, full) for component in components)
