"""Low-rank updates as pairs of factors: what LoRA adapters are made of, merged and cut back to their rank.

A pair stands for the update `B @ A` [out, in] with A [rank, in] and B [out, rank]; scales are already inside B. The
same update has many pairs, so factors of different tasks must never be averaged one by one. Where a merge method is
linear, the pairs are put side by side, which is exact, and cut back to their rank; where it is not, the products are
merged and cut back. Nothing is ever left as a full matrix.

Source: LoRA, arXiv 2106.09685; the cut is the truncated singular value decomposition, the best of its rank (Eckart
and Young, 1936).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hf_merge.merging.threads import one_thread


A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"


def units(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns a component's tensors with the two factors of each pair (A, B) together, every other tensor alone."""
    known = set(names)
    found: list[tuple[str, ...]] = []
    for name in names:
        module = name.removesuffix(A_SUFFIX)
        if name.endswith(A_SUFFIX) and module + B_SUFFIX in known:
            found.append((name, module + B_SUFFIX))
        elif not (name.endswith(B_SUFFIX) and name.removesuffix(B_SUFFIX) + A_SUFFIX in known):
            found.append((name,))
    return found


def is_pair(names: Sequence[str]) -> bool:
    """Returns whether the tensors are the two factors of one update, A before B."""
    return len(names) == 2 and names[0].endswith(A_SUFFIX) and names[1].endswith(B_SUFFIX)


def inner_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the inner products of updates as whole matrices, [pairs, pairs] float64, without making one of them.

    Args:
        pairs: A [rank, in] and B [out, rank] of each.
    """
    gram = torch.zeros(len(pairs), len(pairs), dtype=torch.float64)
    wide = [(a.double(), b.double()) for a, b in pairs]
    for row, (a, b) in enumerate(wide):
        for column, (other_a, other_b) in enumerate(wide[: row + 1]):
            gram[row, column] = gram[column, row] = ((b.T @ other_b) * (a @ other_a.T)).sum()
    return gram


def balanced(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the pair of the same update in which both factors share its singular values evenly.

    Only so are the ranges of factors comparable from task to task.

    Args:
        a: [rank, in] float32.
        b: [out, rank] float32.
    """
    return cut(a, b, len(a))


def combined(pairs: Iterable[tuple[Tensor, Tensor]], weights: Sequence[float], rank: int) -> tuple[Tensor, Tensor]:
    """Returns the balanced pair of the given rank that is nearest to a weighted sum of updates.

    Args:
        pairs: A [rank, in] and B [out, rank] of each.
        weights: What each update is multiplied by.
        rank: The rank to return.
    """
    scaled = [(a, weight * b) for (a, b), weight in zip(pairs, weights, strict=True)]
    return cut(torch.cat([a for a, _ in scaled]), torch.cat([b for _, b in scaled], dim=1), rank)


@one_thread()
def cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the balanced pair of the given rank that is nearest to the update of a pair of any rank.

    Args:
        a: [k, in] float32.
        b: [out, k] float32.
        rank: The rank to return; where the update has less, the rest are zeros.
    """
    left, left_factor = torch.linalg.qr(b.double())
    right, right_factor = torch.linalg.qr(a.double().T)
    inner, values, outer = torch.linalg.svd(left_factor @ right_factor.T)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    new_b, new_a = left @ (inner[:, :kept] * roots), (outer[:kept] * roots[:, None]) @ right.T
    signs = _signs(new_a)
    filled_a, filled_b = a.new_zeros(rank, a.shape[1]), b.new_zeros(len(b), rank)
    filled_a[:kept], filled_b[:, :kept] = new_a * signs[:, None], new_b * signs
    return filled_a, filled_b


@one_thread()
def factored(update: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the balanced pair of the given rank that is nearest to an update.

    Args:
        update: [out, in] float32.
        rank: The rank to return; where the update has less, the rest are zeros.
    """
    if update.shape[0] > update.shape[1]:
        b, a = factored(update.T, rank)
        return a.T.contiguous(), b.T.contiguous()
    wide = update.double()
    # The left singular vectors are the eigenvectors of the smaller Gram matrix, the largest last.
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    left = vectors[:, -min(rank, len(wide)) :]
    return cut((left.T @ wide).float(), left.float(), rank)


def _signs(rows: Tensor) -> Tensor:
    """Returns for each row the sign that makes its largest entry positive: a decomposition leaves it open."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    return torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)
