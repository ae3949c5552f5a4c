"""PCB-Merging: entries of the task vectors compete; each counts by how large it is and how well it fits the others.

Of T task vectors, magnitudes are cut off at both tails (`clamp`) and scaled to [0, 1]; these are `m`. An entry's score
is `exp(T m^2)`, its weight within its own task, times `tanh(v s)`, its agreement with the others: v is the entry of
the task vector and s a sum over the tasks. Of each task vector the `density` of entries of highest score stay; their
scores, scaled to [0, 1], are the weights of a weighted mean of the cut-off task vectors.

The authors' programs differ. Here `balance: normalised` is their vision program (pcb.py), where s sums `sign(v) m`,
with its clamp of 1 % and density of 5 %. `balance: raw` is their stand-alone file (pcb-merging.py), where s sums the
task vectors as they are; it has clamp 0.0001 and density 0.1. Scale 1.2 is common to both. A third, pcb_ES.py, sums
`tanh` over pairs of tasks; it is not offered, as it needs each pair read together. The paper writes softmax for both
factors, which none of the programs does. The authors rank within the whole model; here it is the component (`scope:
component`) or the tensor.

Source: Parameter Competition Balancing for Model Merging, arXiv 2410.02396; https://github.com/duguodong7/pcb-merging.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.methods import SCOPE, Member, MergeMethod
from hf_merge.merging.methods._selection import FEW, bracket, magnitude_at, portion, sampled
from hf_merge.merging.methods._task_vectors import BLOCK, step, task_vectors
from hf_merge.merging.settings import Hyperparameter, Settings


_Floats = NDArray[np.float32]


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled mean of the task vectors, weighted entry by entry, [n] float32.

    The entry at the border of those that stay weighs nothing, and so does every entry of a task vector whose scores
    are all equal. Where all weigh nothing the base stays. Beside base and member it holds three floats an entry, and
    the scores of those that stay.

    Args:
        base: [n] float32, only read.
        members: The group, gone through twice.
        settings: `density`, `clamp`, `scale`, `balance`; `scope` is the caller's, who decides what n spans.
    """
    clamp, kept = portion(base.numel(), float(settings["clamp"])), portion(base.numel(), float(settings["density"]))
    if base.numel() == 0:
        return base.clone()
    others, bounds = _sums(base, members, clamp, settings["balance"] == "normalised")
    weighted, weights = (np.zeros(base.numel(), dtype=np.float32) for _ in range(2))
    for vector, bound in zip(task_vectors(base, members), bounds, strict=True):
        _add_weighted(_Scored(vector.numpy(), others, bound, len(bounds)), max(1, kept), weighted, weights)
    # The floor is the authors': what weighs next to nothing in every task fades instead of jumping to its full size.
    weighted /= np.maximum(weights, np.float32(1e-12), out=weights)
    return step(base, torch.from_numpy(weighted), float(settings["scale"]))


_Bounds = tuple[np.float32, np.float32]
_Few = tuple[slice, NDArray[np.uint16], _Floats]  # a block, places in it, and the scores there


def _sums(base: Tensor, members: Iterable[Member], clamp: int, normalised: bool) -> tuple[_Floats, list[_Bounds]]:
    """Returns what each entry is compared with, [n], and between what magnitudes each task vector is cut off."""
    others, bounds = np.zeros(base.numel(), dtype=np.float32), []
    for vector in task_vectors(base, members):
        entries = vector.numpy()
        bounds.append((magnitude_at(entries, entries.size - clamp), magnitude_at(entries, clamp + 1)))
        for part in _parts(entries.size):
            block = entries[part]
            others[part] += np.sign(block) * _normalised(block, bounds[-1]) if normalised else block
    return others, bounds


@dataclass(frozen=True)
class _Scored:
    """A task vector [n] and what its scores come from: scores of all entries at once would be as large as it is."""

    entries: _Floats
    others: _Floats
    bound: _Bounds
    tasks: int

    def scores(self, part: slice) -> _Floats:
        """Returns the scores of some entries over `exp(tasks)`: a common factor, and so nothing overflows."""
        block = self.entries[part]
        size = _normalised(block, self.bound)
        scores: _Floats = np.exp(self.tasks * (size * size - 1)) * np.tanh(block * self.others[part])
        return scores

    def from_floor(self, floor: float) -> list[_Few]:
        """Returns where the scores are at least `floor`, and these scores, block by block."""
        found = []
        for part in _parts(self.entries.size):
            scores = self.scores(part)
            places = np.flatnonzero(~(scores < floor))  # so NaN is seen, and spreads
            found.append((part, places.astype(np.uint16), scores[places]))
        return found


def _add_weighted(scored: _Scored, kept: int, weighted: _Floats, weights: _Floats) -> None:
    """Adds the cut-off task vector [n] times its weights, and the weights, where they are not zero."""
    found = _highest(scored, kept)
    scores = np.concatenate([scores for _, _, scores in found])
    index = max(scores.size - 1 - kept, 0)
    scores.partition(index)
    low, span = scores[index], scores[index:].max() - scores[index]
    if span == 0:
        return
    for part, places, block in found:
        shares = (np.maximum(block, low) - low) / span
        entries = scored.entries[part][places]
        weighted[part][places] += np.sign(entries) * np.clip(np.abs(entries), *scored.bound) * shares
        weights[part][places] += shares


def _highest(scored: _Scored, kept: int) -> list[_Few]:
    """Returns the scores of more than the `kept` highest entries; all where no more are to be had.

    A sample says from what score on to look. Where it misleads, all are looked at, so that the choice is exact.
    """
    size = scored.entries.size
    if size > FEW and kept < size:
        found = scored.from_floor(bracket(scored.scores(sampled(size)), kept + 1, size)[0])
        if sum(len(places) for _, places, _ in found) > kept:
            return found
    return scored.from_floor(-inf)


def _normalised(block: _Floats, bound: _Bounds) -> _Floats:
    """Returns magnitudes cut off at the bounds and scaled to [0, 1]; zeros where the bounds are equal."""
    low, high = bound
    if not high > low:
        return np.zeros_like(block)
    return (np.clip(np.abs(block), low, high) - low) / (high - low)


def _parts(length: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, length, BLOCK)]


METHOD = MergeMethod(
    name="pcb",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "density", 0.05, low=0.001, high=1.0, help="The fraction of each task vector's entries that stays."
        ),
        Hyperparameter(
            "clamp", 0.01, low=0.0, high=0.49, help="The fraction of the magnitudes that is cut off at each tail."
        ),
        Hyperparameter("scale", 1.2, low=0.0, high=10.0, help="What the weighted mean is multiplied by."),
        Hyperparameter(
            "balance",
            "normalised",
            choices=("normalised", "raw"),
            help="Whether entries are compared with the sum of the normalised or of the plain task vectors.",
        ),
        SCOPE,
    ),
    source="https://arxiv.org/abs/2410.02396",
    summary="Average the task vectors by entry, weighted by size and by agreement with the other tasks.",
    scoped=True,
)
