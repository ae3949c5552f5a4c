"""Evaluations shared out over ranks: every new (task, chain) pair is run once, on one of them.

Rank 0 decides what is to be evaluated and keeps all scores; the others run what they are given. A pair's score does
not depend on the rank that ran it, so the search comes to the same front whatever their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from hf_merge.errors import HfMergeError
from hf_merge.searching.building import Chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator
from hf_merge.searching.ranks import Ranks
from hf_merge.searching.running import Reuse


Pair: TypeAlias = tuple[str, Chain]


@dataclass(frozen=True)
class _Outcome:
    """What a rank found for one pair.

    Attributes:
        pair: The number of the pair.
        score: The task's metric.
        experts: What the chain's experts take, in full-precision parameters, by expert id.
        reuse: The work that it took.
    """

    pair: int
    score: float
    experts: Mapping[str, float]
    reuse: Reuse


@dataclass(eq=False)
class SharedEvaluator(Evaluator):
    """An evaluator whose work is done by all ranks.

    Attributes:
        ranks: Who they are.
    """

    ranks: Ranks = field(default_factory=Ranks)
    _ahead: dict[Pair, Reuse] = field(default_factory=dict)

    @property
    def ahead(self) -> int:
        """How many configurations are prepared together: enough for every rank, and few to lose."""
        return self.ranks.count

    def prepare(self, configurations: Sequence[Configuration]) -> None:
        """Has the tasks of configurations run that were not run yet; `evaluate` then finds their scores.

        Raises:
            WorkerError: A rank died, or did not answer in time.
        """
        self.run_pairs([(task, self.builder.chain(wanted, task)) for wanted in configurations for task in self.runs])

    def run_pairs(self, pairs: Sequence[Pair]) -> None:
        """Has pairs run that were not run yet; with one rank they are left to whoever asks for their scores.

        Raises:
            WorkerError: A rank died, or did not answer in time.
        """
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        if self.ranks.count == 1 or not new:
            return
        before = self.reuse
        self.ranks.share(new)
        for outcome in self._run_share(new):
            task, chain = new[outcome.pair]
            self.remember(task, chain, outcome.score)
            self.builder.remember(outcome.experts)
            self._ahead[task, chain] = replace(outcome.reuse, pairs_asked=0)
        self.reuse = before  # this rank's share too counts when its scores are asked for

    def score(self, task: str, chain: Chain) -> float:
        """Returns a task's metric under a chain; what another rank or this one did for it beforehand counts now."""
        found = super().score(task, chain)
        self.reuse += self._ahead.pop((task, chain), Reuse())
        return found

    def work(self) -> None:
        """Runs what rank 0 shares out, until it has no more.

        Raises:
            WorkerError: A rank died, or did not answer in time.
        """
        while pairs := self.ranks.receive():
            self._run_share(pairs)

    def dismiss(self) -> None:
        """Tells the others that there is no more to do."""
        self.ranks.share([])

    def _run_share(self, pairs: Sequence[Pair]) -> list[_Outcome]:
        """Returns the outcome of all pairs, this rank's share of them run here; an error of any rank is raised."""
        found: list[_Outcome | HfMergeError] = []
        try:
            found += [self._outcome(index, *pairs[index]) for index in self._shares(pairs)[self.ranks.index]]
        except HfMergeError as error:  # all ranks have to hear of it, or they would wait
            found.append(error)
        everything = self.ranks.gather(found)
        failed = next((item for item in everything if isinstance(item, HfMergeError)), None)
        if failed is not None:
            raise failed
        return [item for item in everything if isinstance(item, _Outcome)]

    def _outcome(self, index: int, task: str, chain: Chain) -> _Outcome:
        before = self.reuse
        score = self.score(task, chain)
        return _Outcome(index, score, self.builder.measured_in(chain), self.reuse - before)

    def _shares(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Returns the numbers of the pairs that each rank runs: the largest task next, to whoever has least.

        Within a rank, pairs whose chains are alike come after one another, for they share experts.
        """
        sizes = {
            task: sum(next(iter(batch.inputs.values())).numel() for batch in run.batches)
            for task, run in self.runs.items()
        }
        shares: list[list[int]] = [[] for _ in range(self.ranks.count)]
        loads = [0] * self.ranks.count
        for index in sorted(range(len(pairs)), key=lambda index: (-sizes[pairs[index][0]], index)):
            least = loads.index(min(loads))
            shares[least].append(index)
            loads[least] += sizes[pairs[index][0]]
        return [sorted(share, key=lambda index: [key.id for key in pairs[index][1]]) for share in shares]
