"""Task vectors: the steps that most merge methods begin and end with.

Everything works in the buffers that are there already: a fresh buffer of n floats costs several times the arithmetic
done on it. What needs intermediate results goes block by block, in numpy: torch would start its threads for each
block, which costs ten times the work on a busy machine.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging.methods import Member


BLOCK = 1 << 16  # entries in a block: intermediate results stay in the cache


def subtract_(weights: Tensor, base: Tensor) -> Tensor:
    """Returns `weights - base` in the memory of `weights`, both [n] float32.

    Here and below numpy does the arithmetic on the tensors' own memory: torch wakes its threads for every tensor,
    which on a busy machine costs ten times the work.
    """
    np.subtract(weights.numpy(), base.numpy(), out=weights.numpy())
    return weights


def add_(total: Tensor, vector: Tensor) -> Tensor:
    """Returns `total + vector` in the memory of `total`, both [n] float32."""
    np.add(total.numpy(), vector.numpy(), out=total.numpy())
    return total


def scale_(vector: Tensor, factor: float) -> Tensor:
    """Returns `factor * vector` in the memory of `vector`, [n] float32."""
    np.multiply(vector.numpy(), np.float32(factor), out=vector.numpy())
    return vector


def divide_(vector: Tensor, count: int) -> Tensor:
    """Returns `vector / count` in the memory of `vector`, [n] float32."""
    np.divide(vector.numpy(), np.float32(count), out=vector.numpy())
    return vector


def task_vectors(base: Tensor, members: Iterable[Member]) -> Iterator[Tensor]:
    """Yields each member's fine-tuned minus base weights, [n] float32, in the member's own buffer."""
    for member in members:
        yield subtract_(member.weights, base)


def total(vectors: Iterable[Tensor], base: Tensor) -> tuple[Tensor, int]:
    """Returns the sum of vectors [n] float32 like `base`, added in their order, and how many there were."""
    accumulated, count = torch.from_numpy(np.zeros(base.shape, dtype=np.float32)), 0
    for vector in vectors:
        add_(accumulated, vector)
        count += 1
    return accumulated, count


def step(base: Tensor, direction: Tensor, scale: float) -> Tensor:
    """Returns `base + scale * direction`, [n] float32, in the memory of `direction`."""
    return add_(scale_(direction, scale), base)
