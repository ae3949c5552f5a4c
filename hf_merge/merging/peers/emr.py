"""EMR-Merging: one unified task vector for all tasks, and for each a mask of one bit per weight and one factor.

Elect, mask, rescale. The unified vector has at each place the sign of the mean task vector and the largest magnitude
among the tasks of that sign. A task's mask keeps the places at which its own change has that sign; its factor gives
what is kept the task's mean magnitude, taken once over the whole backbone.

The authors' program differs in two things: where the mean is exactly zero it takes the negative sign (here, as in
the paper, nothing), and for the factor it adds up the means of the tensors, which weighs a bias like a matrix.

Storage as published is one dense vector and T masks, 1 + T / 32 of a model. To get a task's model back the base is
needed too, so that strictly it takes 2 + T / 32 where nobody has the base already.

Source: EMR-Merging, arXiv 2405.17461, section 3.3.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Shape
from hf_merge.merging.cost import FULL_BITS
from hf_merge.merging.group_reader import GroupReader, TensorSource


@dataclass(frozen=True, eq=False)
class Emr:
    """What EMR-Merging keeps of a family.

    Attributes:
        base: Reads the pre-trained weights.
        shapes: The shape of every backbone tensor.
        unified: The unified task vector, by tensor, [n] float32.
        masks: For each task by tensor the bits of its mask, eight to a byte, [ceil(n / 8)] uint8.
        rescalers: What each task's masked vector is multiplied by.
    """

    base: TensorSource
    shapes: Mapping[str, Shape]
    unified: Mapping[str, NDArray[np.float32]]
    masks: Mapping[str, Mapping[str, NDArray[np.uint8]]]
    rescalers: Mapping[str, float]

    @property
    def parameters(self) -> float:
        """What it takes beside the base, in full-precision parameters: the vector, T masks and T factors."""
        weights = sum(map(prod, self.shapes.values()))
        return weights * (1 + len(self.masks) / FULL_BITS) + len(self.rescalers)

    def weights(self, task: str) -> dict[str, Tensor]:
        """Returns a task's model: the base plus its factor times its masked part of the unified vector, float32."""
        return {name: self._tensor(task, name).view(shape) for name, shape in self.shapes.items()}

    def _tensor(self, task: str, name: str) -> Tensor:
        unified = self.unified[name]
        kept = np.unpackbits(self.masks[task][name], count=len(unified))
        step = unified * np.float32(self.rescalers[task])
        step *= kept
        step += self.base.read(name, torch.empty(len(unified))).numpy()
        return torch.from_numpy(step)


def emr_merge(
    shapes: Mapping[str, Shape],
    base: TensorSource,
    members: Mapping[str, TensorSource],
    advance: Callable[[int], object] = lambda _: None,
) -> Emr:
    """Returns the EMR-Merging of all members; of them one tensor is in memory at a time.

    Args:
        shapes: The shape of every backbone tensor.
        base: Reads the pre-trained weights.
        members: Reads the fine-tuned weights, by task name.
        advance: Called with the number of parameters done since the last call.

    Raises:
        NonFiniteWeights: A member or the base holds NaN or infinity.
    """
    reader = GroupReader(tuple(members), CodecSpec.resolve("full"), shapes, base, members)
    unified: dict[str, NDArray[np.float32]] = {}
    masks: dict[str, dict[str, NDArray[np.uint8]]] = {task: {} for task in members}
    sums = dict.fromkeys(members, (0.0, 0.0))
    for name, shape in shapes.items():
        vectors = partial(_task_vectors, reader, tuple(members), name)
        unified[name] = elected(prod(shape), vectors)
        for task, vector in zip(members, vectors(), strict=True):
            kept = vector * unified[name] > 0
            own, left = sums[task]
            sums[task] = own + _magnitude(vector), left + _magnitude(unified[name][kept])
            masks[task][name] = np.packbits(kept)
        advance(prod(shape))
    return Emr(base, shapes, unified, masks, {task: own / left if left else 0.0 for task, (own, left) in sums.items()})


def elected(length: int, vectors: Callable[[], Iterable[NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Returns the unified vector [n] float32 of task vectors: the mean's sign, the largest magnitude of that sign.

    Args:
        length: n.
        vectors: Yields the task vectors [n] anew each time that it is called; each is worth nothing after the next.
    """
    total = np.zeros(length)
    for vector in vectors():
        total += vector
    sign = np.sign(total).astype(np.float32)
    largest = np.zeros(length, dtype=np.float32)
    for vector in vectors():
        np.maximum(largest, vector * sign, out=largest)
    largest *= sign
    return largest


def _task_vectors(reader: GroupReader, tasks: Iterable[str], name: str) -> Iterator[NDArray[np.float32]]:
    """Yields the tasks' fine-tuned minus base weights of a tensor, [n] float32, in memory used again."""
    origin = reader.read_base((name,), reader.scratch((name,), "base")).numpy()
    for task in tasks:
        vector = reader.read_member(task, (name,), reader.scratch((name,), "member")).numpy()
        np.subtract(vector, origin, out=vector)
        yield vector


def _magnitude(vector: NDArray[np.float32]) -> float:
    return float(np.abs(vector).sum(dtype=np.float64))
