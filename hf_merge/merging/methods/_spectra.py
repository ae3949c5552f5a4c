"""Singular values of task vectors: what the methods that work on matrices share.

Singular vectors come from the eigenvectors of the smaller Gram matrix, in float64: a tall embedding then takes no more
than an eigendecomposition of [columns, columns]. Squaring halves the digits. A direction whose singular value is the
fraction f of the largest comes out to about 1e-15 / f^2; below `PRESENT`, where that would show in float32, it counts
as no direction at all. Task vectors, differences of float32 weights, say little below that themselves.

A decomposition leaves open the signs of singular vectors, how those of equal singular values are turned, and all that
belongs to a singular value of zero. Here nothing hangs on signs, and directions without a change are left out, where
the authors' programs let LAPACK fill them in at will.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging.methods import Member
from hf_merge.merging.methods._task_vectors import divide_, step, task_vectors, total
from hf_merge.merging.threads import one_thread


PRESENT = 1e-5  # of the largest singular value: what is smaller is no direction

ROWS = 4096  # rows that are taken to float64 at once

Triplets = tuple[Tensor, Tensor, Tensor]  # left [out, k], singular values [k], right [in, k], all float64


class TaskMatrices:
    """The task vectors of a group as matrices, [out, in] float32, each read anew and worth nothing after the next."""

    def __init__(self, base: Tensor, members: Iterable[Member]) -> None:
        self._base, self._members = base, members
        self.shape = torch.Size((base.shape[0], base.numel() // base.shape[0]))

    def __iter__(self) -> Iterator[Tensor]:
        return (vector.view(self.shape) for vector in task_vectors(self._base, self._members))

    def sum(self) -> tuple[Tensor, int]:
        """Returns the sum of all of them, [out, in] float64, and how many there are."""
        summed, count = np.zeros(self.shape), 0
        for matrix in self:
            summed += matrix.numpy()
            count += 1
        return torch.from_numpy(summed), count


def merge_matrices(
    base: Tensor, members: Iterable[Member], scale: float, merged: Callable[[TaskMatrices], Tensor]
) -> Tensor:
    """Returns the base plus `scale` times the merged task vector, float32 and shaped like `base`.

    A kernel of a convolution [out, in, ...] is the matrix [out, in * ...]. What is no matrix (one axis, or one axis
    that holds everything) is averaged.

    Args:
        base: A tensor in its own shape, float32, only read.
        members: The group.
        scale: What the merged task vector is multiplied by.
        merged: Makes one task vector [out, in] of those of the group; it runs on one thread.
    """
    if base.ndim < 2 or base.numel() == max(base.shape) or base.numel() == 0:
        summed, count = total(task_vectors(base, members), base)
        return step(base, divide_(summed, max(count, 1)), scale)
    with one_thread():
        direction = merged(TaskMatrices(base, members)).float()
    return step(base, direction.reshape(base.shape), scale)


def leading(matrix: Tensor, count: int, floor: float = 0.0) -> Triplets:
    """Returns the leading singular triplets of a matrix, largest first; fewer where fewer are present.

    Args:
        matrix: [out, in].
        count: How many to return at most.
        floor: Singular values up to this one are left out too.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = leading(matrix.T, count, floor)
        return left, values, right
    squares, vectors = (found.flip(-1)[..., :count] for found in torch.linalg.eigh(gram(matrix)))
    values = squares.clamp(min=0).sqrt()
    present = values > max(floor, PRESENT * float(values[:1].sum()))
    values, right = values[present], vectors[:, present]
    return torch.cat([rows.double() @ right for rows in matrix.split(ROWS)]) / values, values, right


def joined(triplets: list[Triplets]) -> Triplets:
    """Returns all triplets side by side, and empties the list: left vectors of a tall matrix are large."""
    left, values, right = (torch.cat(parts, dim=-1) for parts in zip(*triplets, strict=True))
    triplets.clear()
    return left, values, right


def whitening(columns: Tensor) -> Tensor:
    """Returns `(C^T C)^(-1/2)` of columns C [n, k], [k, k] float64, zero on what the columns have in common.

    `C @ whitening(C)` is the nearest matrix of orthonormal columns (the orthogonal Procrustes problem). Where columns
    coincide, as those of equal models do, there is none; then it is the partial isometry: the coinciding share one.
    """
    squares, vectors = torch.linalg.eigh(gram(columns))
    present = squares > PRESENT**2 * float(squares[-1:].sum())
    kept = vectors[:, present]
    root: Tensor = (kept / squares[present].sqrt()) @ kept.T
    return root


def gram(matrix: Tensor) -> Tensor:
    """Returns the inner products of a matrix's columns, [columns, columns] float64."""
    products = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for rows in matrix.split(ROWS):
        wide = rows.double()
        products.addmm_(wide.T, wide)
    return products
