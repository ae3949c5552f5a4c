"""The performance P of a configuration (Eq. 7): every task's chain assembled, run on its validation rows, and scored.

A task's score depends only on its own chain, so scores are remembered by (task, chain) and a chain met before costs
nothing. Encoded experts and hidden states at block boundaries are kept up to stated numbers of bytes, least recently
used first out. All of these memories change speed, never a score.

Source: MERGE, arXiv 2602.06552, Eq. 7, 8 and 10.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.modeling.assembly import CPU
from hf_merge.searching.building import Chain, ExpertBuilder
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.metrics import score
from hf_merge.searching.running import ChainRunner, Reuse, TaskRun
from hf_merge.searching.states import StateCache


@dataclass(frozen=True)
class Evaluation:
    """What one configuration scored.

    Attributes:
        scores: The metric of every task.
        cost: C, exact: tensors that failed the range criterion count in full.
        reuse: The work it took; no part of the result.
        deviation: How much more tasks count in P that are far from the mean; 0 is the plain mean.
    """

    scores: Mapping[str, float]
    cost: float
    reuse: Reuse = field(default=Reuse(), compare=False)
    deviation: float = 0.0

    @property
    def performance(self) -> float:
        """P: the mean of the tasks' metrics, weighted where `deviation` says so."""
        return weighted_score(self.scores, self.deviation)


@dataclass(eq=False)
class Evaluator:
    """Evaluates configurations on the tasks' rows.

    Attributes:
        builder: Where experts come from.
        runs: The tasks, by name.
        dtype: What the model computes in.
        states: Hidden states at block boundaries; none are kept by default.
        deviation: How much more tasks count in P that are far from the mean.
        forwards: How many (task, chain) pairs were really run and scored.
        reuse: All work so far; whatever runs blocks adds them here.
    """

    builder: ExpertBuilder
    runs: Mapping[str, TaskRun]
    dtype: torch.dtype = torch.float32
    states: StateCache = field(default_factory=lambda: StateCache(0))
    deviation: float = 0.0
    forwards: int = 0
    reuse: Reuse = field(default_factory=Reuse)
    _scores: dict[tuple[str, Chain], float] = field(default_factory=dict)
    _runner: ChainRunner = field(init=False)

    def __post_init__(self) -> None:
        """Prepares what runs the models."""
        devices = {run.model.device for run in self.runs.values()} or {CPU}
        if len(devices) > 1:
            raise ValueError(f"the tasks' models compute on several devices: {sorted(map(str, devices))}")
        self._runner = ChainRunner(self.builder, self.dtype, self.states, devices.pop())

    @property
    def ahead(self) -> int:
        """How many configurations are prepared together."""
        return 1

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        """Does nothing: `evaluate` runs what it needs."""

    def evaluate(self, configuration: Configuration) -> Evaluation:
        """Returns the scores and the exact cost of a configuration."""
        before = self.reuse
        chains = {task: self.builder.chain(configuration, task) for task in self.runs}
        in_order = sorted(self.runs, key=lambda task: [key.id for key in chains[task]])
        scores = {task: self.score(task, chains[task]) for task in in_order}
        self.builder.recall(configuration)
        in_recipe = {task: scores[task] for task in self.runs}
        return Evaluation(in_recipe, self.builder.cost(configuration), self.reuse - before, self.deviation)

    def cost(self, configuration: Configuration) -> float:
        """Returns C of a configuration that need not be evaluated yet; see `ExpertBuilder.cost`."""
        return self.builder.cost(configuration)

    def score(self, task: str, chain: Chain) -> float:
        """Returns a task's metric under a chain, run now unless this pair was run before."""
        self.reuse += Reuse(pairs_asked=1)
        if (task, chain) not in self._scores:
            run = self.runs[task]
            self._scores[task, chain] = score(run.metric, predictions(self.logits(task, chain)), run.labels)
            self.forwards += 1
            self.reuse += Reuse(pairs_run=1)
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
        logits, reuse = self._runner.logits(self.runs[task], chain)
        self.reuse += reuse
        return logits


def mean_score(scores: Mapping[str, float]) -> float:
    """Returns P: the plain mean of the tasks' metrics (Eq. 7)."""
    return sum(scores.values()) / len(scores)


def weighted_score(scores: Mapping[str, float], deviation: float) -> float:
    """Returns the mean of the tasks' metrics, those far from the plain mean counting more.

    A task's weight is 1 + deviation * |s - mean| / max |s - mean|, so that outliers, good or bad, count up to
    `1 + deviation` times; with 0 it is the plain mean.

    Source: AutoMerge, arXiv 2601.22748, and its authors' program, where deviation is 1.
    """
    mean = mean_score(scores)
    farthest = max(abs(value - mean) for value in scores.values())
    if not deviation or not farthest:
        return mean
    weights = [1 + deviation * abs(value - mean) / farthest for value in scores.values()]
    return sum(weight * value for weight, value in zip(weights, scores.values(), strict=True)) / sum(weights)


def predictions(logits: Tensor) -> NDArray[np.generic]:
    """Returns what logits [rows, labels] predict: the best label [rows] int64, or a single label's value [rows].

    Where a logit is not a number the label is -1, which no row has: `argmax` would take it for the best.
    """
    if logits.shape[1] == 1:
        values: NDArray[np.float32] = logits[:, 0].numpy()
        return values
    best: NDArray[np.int64] = logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1).numpy()
    return best
