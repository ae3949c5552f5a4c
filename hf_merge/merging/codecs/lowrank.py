"""The codec `lowrank`: the difference from the shared expert as a product of two thin matrices of 8 bits.

A matrix M (rows, and whatever follows the first axis, flattened) becomes `sum_k s_k b_k a_k` over k of `rank`: columns
b_k and rows a_k of whole numbers from -127 to 127, and a scale s_k. A matrix with fewer rows or columns than `rank`
has as many k as it has of these.

The rows are the right singular vectors v_k of the largest singular values sigma_k, from the eigenvectors of the
smaller Gram matrix in float64, each rounded in steps u_k of its own; below 1e-5 of the largest, a singular value
counts as none. The columns are fitted by least squares to the rows as rounded, and rounded in turn: what the first
rounding lost is made up for as far as they can. So the Frobenius norm of the error is at most

    norm(M - M_rank)  +  sqrt(columns) / 2 * sum_k sigma_k u_k  +  sqrt(rows) / 2 * sum_k s_k norm(a_k)

that of the exact projection, and what the two roundings can add (where the product itself comes near the largest
float32, the scales are lowered until it fits).

Decoding multiplies matrices and still gives the same bits everywhere: the scales are whole multiples, up to 2^24, of
a power of two, so all products and partial sums are exact in float64, in any order. Encoding gives the same bytes for
the same input on one machine; another may turn the vectors of equal singular values otherwise.

On disk b is `name`, uint8 [rows, k], and a is `name.right`, uint8 [k, columns], each number plus 128. `name.shape`
holds the tensor's own shape.

Source: task vectors cut off at a rank are those of TSV, arXiv 2412.00081; Eckart and Young, 1936, for the projection.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.codecs._grids import Doubles
from hf_merge.merging.codecs._matrices import Layout, columns_of, scale_fault
from hf_merge.merging.codecs._packing import Bytes, Floats
from hf_merge.merging.components import Shape
from hf_merge.merging.settings import Hyperparameter, Settings


_OFFSET, _HIGHEST = 128, 127
_MOST_RANK = 4096  # 127 * 127 * 2^24 * 4096 is below 2^53: sums of so many products are exact
_DIGITS = 24  # of a float32
_SMALLEST_EXPONENT = -149  # of a float32
_PRESENT = 1e-5  # of the largest singular value: the Gram matrix says little about what is smaller
_BLOCK = 1 << 15  # weights that are decoded at once: their float64 copies stay in the cache
_ROWS = 4096  # rows that are taken to float64 at once


def _pack(name: str, matrix: Tensor, settings: Settings) -> dict[str, Tensor]:
    weights = matrix.numpy()
    right, _ = _rounded(_right_vectors(weights, _rank(tuple(matrix.shape), settings)))
    coefficients = right.T @ np.linalg.pinv(right @ right.T, hermitian=True)
    fitted = np.concatenate([rows @ coefficients for rows in _doubles(weights)])
    left, scale = _rounded(fitted.T)
    return {
        name: torch.from_numpy(_shifted(left.T)),
        f"{name}.scale": torch.from_numpy(_lowered(scale).astype(np.float32)),
        f"{name}.right": torch.from_numpy(_shifted(right)),
    }


def _unpack(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
    right = _numbers(tensors[f"{name}.right"].numpy()) * tensors[f"{name}.scale"].numpy()[:, None]
    left, weight = tensors[name].numpy(), np.empty((shape[0], right.shape[1]), dtype=np.float32)
    step = max(1, _BLOCK // right.shape[1])
    for at in range(0, len(weight), step):
        weight[at : at + step] = _numbers(left[at : at + step]) @ right
    return torch.from_numpy(weight)


def _takes(shape: Shape, settings: Settings) -> float:
    """Returns a quarter of both matrices, and a scale for each k."""
    return _rank(shape, settings) * ((shape[0] + columns_of(shape)) / 4 + 1)


def _misfit(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> str | None:
    left, right, scale = tensors[name], tensors[f"{name}.right"], tensors[f"{name}.scale"]
    rank = len(scale) if scale.ndim == 1 else 0
    fits = left.shape == (shape[0], rank) and right.shape == (rank, columns_of(shape))
    if right.dtype != torch.uint8 or not fits or not 1 <= rank <= min(*right.shape, shape[0], _MOST_RANK):
        sizes = f"{list(left.shape)}, {list(scale.shape)} and {list(right.shape)} {right.dtype}"
        return f"of shape {list(shape)} has left, scale and right of {sizes}"
    if int(left.numpy().min()) == 0 or int(right.numpy().min()) == 0:
        return "holds a byte of 0, where the smallest number is 1"
    why = scale_fault(scale, 1) or scale_fault(scale.double().sum(), _HIGHEST**2)
    if why is not None:
        return why
    multiples = scale.double().numpy() / _unit(scale.double().numpy())
    return None if bool((multiples % 1 == 0).all()) else "has scales that are no multiples of one power of two"


def _rank(shape: Shape, settings: Settings) -> int:
    return min(int(settings["rank"]), shape[0], columns_of(shape))


def _right_vectors(matrix: Floats, rank: int) -> Doubles:
    """Returns the right singular vectors of the largest singular values, [rank, columns], zero where there is none.

    The largest entry of each is positive: eigenvectors leave the sign open. The others are not computed, which
    takes a third of the time.
    """
    from scipy.linalg import eigh

    tall = matrix.shape[1] <= len(matrix)
    if tall:
        gram = sum((rows.T @ rows for rows in _doubles(matrix)), start=np.zeros((matrix.shape[1],) * 2))
    else:
        exact = matrix.astype(np.float64)
        gram = exact @ exact.T
    squares, vectors = eigh(gram, subset_by_index=(len(gram) - rank, len(gram) - 1), check_finite=False)
    squares, vectors = squares[::-1], vectors[:, ::-1].T
    present = squares > max(squares[0], 0) * _PRESENT**2
    if not tall:
        vectors = np.divide(vectors @ exact, np.sqrt(np.where(present, squares, 1))[:, None])
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
    return np.where(present[:, None], np.where(largest < 0, -vectors, vectors), 0.0)


def _rounded(rows: Doubles) -> tuple[Doubles, Doubles]:
    """Returns whole numbers of -127 to 127 [k, n], and scales [k] that are multiples of one power of two."""
    wanted = np.abs(rows).max(axis=1) / _HIGHEST
    unit = _unit(wanted)
    scale = np.ceil(wanted / unit) * unit
    return np.rint(rows / np.where(scale > 0, scale, 1)[:, None]), scale


def _unit(scale: Doubles) -> float:
    """Returns the power of two that scales are whole multiples of: 2^24 times it, at most, is the largest of them."""
    fraction, exponent = np.frexp(scale.max())
    return float(2.0 ** max(int(exponent) - int(fraction == 0.5) - _DIGITS, _SMALLEST_EXPONENT))


def _lowered(scale: Doubles) -> Doubles:
    """Returns scales as they are, or so much smaller that no weight of the product is above the largest float32."""
    highest = float(scale.sum()) * _HIGHEST**2
    largest = float(np.finfo(np.float32).max)
    if highest <= largest:
        return scale
    lower = scale * (largest / highest * (1 - 1e-9))
    return np.floor(lower / _unit(lower)) * _unit(lower)


def _numbers(stored: Bytes) -> Doubles:
    return stored.astype(np.float64) - _OFFSET


def _shifted(numbers: Doubles) -> Bytes:
    return np.ascontiguousarray(numbers + _OFFSET).astype(np.uint8)


def _doubles(matrix: Floats) -> Iterator[NDArray[np.float64]]:
    return (matrix[at : at + _ROWS].astype(np.float64) for at in range(0, len(matrix), _ROWS))


CODEC = Layout(_pack, _unpack, _takes, _misfit, parts=(".scale", ".right", ".shape")).codec(
    name="lowrank",
    summary="Matrices as a low-rank difference from the shared expert, its two factors in 8 bits.",
    hyperparameters=(
        Hyperparameter(
            "rank",
            8.0,
            low=1.0,
            high=float(_MOST_RANK),
            whole=True,
            help="The rank of the product; a matrix with fewer rows or columns has as many as these.",
        ),
    ),
    residual=True,
)
