"""Sign election: entries of task vectors that disagree in sign are resolved instead of cancelling.

Each entry's sign is elected by mass (the sign of the sum over the members), and only the members of that sign count.
Two sums and two counts suffice for any number of members: positive entries go to one pair, negative ones to the other,
the election picks.

Source: TIES-Merging, arXiv 2306.01708, steps "elect" and "disjoint merge".
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging.methods._task_vectors import BLOCK, divide_, total
from hf_merge.merging.settings import Hyperparameter


COMBINE = Hyperparameter(
    "combine",
    "sum",
    choices=("sum", "mean", "ties"),
    help="How the members' entries become one: sum, mean, or mean of those that have the elected sign.",
)

_MOST_VOTERS = 255  # counts are bytes


def combine(vectors: Iterable[Tensor], base: Tensor, rule: str) -> Tensor:
    """Returns vectors [n] float32 like `base` combined by `rule`, one of the words of `COMBINE`."""
    if rule == "ties":
        return elect(vectors, base, mean=True)
    combined, count = total(vectors, base)
    return divide_(combined, max(count, 1)) if rule == "mean" else combined


def elect(vectors: Iterable[Tensor], base: Tensor, *, mean: bool) -> Tensor:
    """Returns the disjoint mean (or sum) of vectors [n] float32 like `base`: only entries of the elected sign count.

    An entry whose sum is exactly zero elects nobody and becomes zero. Zeros do not vote.

    Raises:
        ValueError: There are more than 255 vectors.
    """
    ballot = _Ballot(base, mean)
    for voters, vector in enumerate(vectors, start=1):
        if voters > _MOST_VOTERS:
            raise ValueError(
                f"A sign election takes at most {_MOST_VOTERS} models; this group has more. Make it smaller."
            )
        ballot.add(vector)
    return ballot.result()


class _Ballot:
    """The votes so far: the sum of the positive and of the negative entries, and how many there were of each."""

    def __init__(self, base: Tensor, counted: bool) -> None:
        self._merged = torch.from_numpy(np.zeros(base.shape, dtype=np.float32))
        self._positive = self._merged.numpy()
        self._negative = np.zeros_like(self._positive)
        self._counted = counted
        self._ayes, self._noes = (np.zeros(base.numel() if counted else 0, dtype=np.uint8) for _ in range(2))

    def add(self, vector: Tensor) -> None:
        entries = vector.numpy()
        for start in range(0, entries.size, BLOCK):
            part = slice(start, start + BLOCK)
            block = entries[part]
            self._positive[part] += np.maximum(block, 0)
            self._negative[part] += np.minimum(block, 0)
            if self._counted:
                self._ayes[part] += (block > 0).view(np.uint8)
                self._noes[part] += (block < 0).view(np.uint8)

    def result(self) -> Tensor:
        for start in range(0, self._positive.size, BLOCK):
            part = slice(start, start + BLOCK)
            positive, negative = self._positive[part], self._negative[part]
            mass = positive + negative
            if self._counted:
                positive /= np.maximum(self._ayes[part], 1)
                negative /= np.maximum(self._noes[part], 1)
            positive *= mass > 0
            negative *= mass < 0
            positive += negative
        return self._merged
