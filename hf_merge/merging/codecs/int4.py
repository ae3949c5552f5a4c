"""The codec `int4`: four bits a weight, one scale a row, two weights to a byte.

A row w of a matrix (whatever follows the first axis, flattened) is stored as whole numbers q in -8..7 with a float32
scale s and means `s * q`. The scale is the best that is tried, not a guess: of grids that clip the row's largest
magnitudes more and more, each with the s that least squares give for its q (`<w, q> / <q, q>`), the one of the least
squared error. So each weight is off by s / 2 at most, or was clipped.

On disk a row is `ceil(columns / 2)` bytes, q + 8 of the first of two weights in the lower half; a last weight alone
has 8 above it, which is zero. `name.shape` holds the tensor's own shape.

Source: MERGE, arXiv 2602.06552, Eq. 8 for what it takes; per-row scales by least squares are common for few bits.
"""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.errors import UntrustedContentError
from hf_merge.merging.codecs import Codec
from hf_merge.merging.components import Shape, keeps_full_precision
from hf_merge.merging.ranges import extremes
from hf_merge.merging.settings import Settings


_LOW, _HIGH = -8, 7
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)  # of a row's largest magnitude
_ROWS_AT_ONCE = 1 << 18  # weights in the rows that are tried together: intermediate results stay small
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_MOST_AXES = 8
_Floats = NDArray[np.float32]


def encode(name: str, weight: Tensor, source_range: Tensor | None, settings: Settings) -> dict[str, Tensor]:
    """Returns the packed rows uint8 [rows, ceil(columns / 2)] with scale [rows] and shape, or the weight itself.

    Args:
        name: The tensor's name.
        weight: float32 of any shape, only read.
        source_range: Ignored: whether merging widened a tensor says little where four bits hold it.
        settings: None are known.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    shape = tuple(weight.shape)
    extremes(name, weight)
    if not quantises(name, shape, settings):
        return {name: weight}
    rows = weight.reshape(shape[0], -1).numpy()
    step = max(1, _ROWS_AT_ONCE // max(1, rows.shape[1]))
    found = [_fitted(rows[at : at + step]) for at in range(0, len(rows), step)]
    packed = np.concatenate([_packed(numbers) for numbers, _ in found])
    return {
        name: torch.from_numpy(packed),
        f"{name}.scale": torch.from_numpy(np.concatenate([scale for _, scale in found])),
        f"{name}.shape": torch.tensor(shape, dtype=torch.int32),
    }


def decode(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns `scale * q` as float32 of the tensor's own shape, or the tensor itself where it was stored in full.

    Raises:
        UntrustedContentError: The parts are not what `encode` writes.
    """
    stored = tensors[name]
    if stored.dtype != torch.uint8:
        return stored
    why = fault(name, tensors)
    if why is not None:
        raise UntrustedContentError(f"Tensor '{name}' {why}.")
    shape = tuple(tensors[f"{name}.shape"].tolist())
    halves = torch.stack([stored & 0xF, stored >> 4], dim=-1).flatten(1)[:, : prod(shape[1:])]
    return (halves.to(torch.float32).sub_(-_LOW) * tensors[f"{name}.scale"].view(-1, 1)).view(shape)


def quantises(name: str, shape: Shape, settings: Settings) -> bool:
    """Returns whether such a tensor is quantised: if it may be, and becomes cheaper."""
    if keeps_full_precision(name, shape) or not 1 < len(shape) <= _MOST_AXES:
        return False
    return cost(shape, True, settings) < cost(shape, False, settings)


def cost(shape: Shape, quantised: bool, settings: Settings) -> float:
    """Returns an eighth of the elements, a scale a row and the shape, or all elements where not quantised."""
    if not quantised:
        return float(prod(shape))
    return shape[0] * (-(-prod(shape[1:]) // 2) / 4 + 1) + len(shape)


def fault(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where `encode` may have written it.

    Args:
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
    """
    stored, scale, shape = (tensors.get(name + part) for part in ("", ".scale", ".shape"))
    if stored is None:
        return "is missing"
    if stored.dtype != torch.uint8:
        if stored.dtype != torch.float32 or scale is not None or shape is not None:
            return f"is {stored.dtype}, where float32 without scale and shape is stored in full"
        return None if bool(torch.isfinite(stored).all()) else "holds NaN or infinity"
    if scale is None or shape is None:
        return "is uint8 without scale or shape"
    if (scale.dtype, shape.dtype, shape.ndim) != (torch.float32, torch.int32, 1) or not 1 < len(shape) <= _MOST_AXES:
        return "has not a float32 scale and an int32 shape of two axes or more"
    axes = shape.tolist()
    if min(axes) < 1 or tuple(stored.shape) != (axes[0], -(-prod(axes[1:]) // 2)) or tuple(scale.shape) != (axes[0],):
        return f"of shape {axes} is packed into {list(stored.shape)} with a scale of shape {list(scale.shape)}"
    return None if bool((torch.isfinite(scale) & (scale > 0)).all()) else "has a scale that is not finite and above 0"


def _fitted(rows: _Floats) -> tuple[NDArray[np.int8], _Floats]:
    """Returns the whole numbers [rows, columns] int8 and scales [rows] float32 that come closest to some rows."""
    exact = rows.astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    best = np.zeros(rows.shape, dtype=np.int8)
    scales = np.ones(len(rows))
    errors = np.full(len(rows), np.inf)
    for clip in _CLIPS:
        start = np.maximum(largest * clip / _HIGH, _SMALLEST_SCALE)
        numbers = np.clip(np.rint(exact / start), _LOW, _HIGH)
        squares = (numbers * numbers).sum(axis=1)
        fitted = np.divide((exact * numbers).sum(axis=1), squares, out=np.ones(len(rows)), where=squares > 0)
        scale = np.maximum(fitted, _SMALLEST_SCALE).astype(np.float32).astype(np.float64)
        error = ((exact - numbers * scale[:, None]) ** 2).sum(axis=1)
        better = error < errors
        best[better], scales[better], errors[better] = numbers[better].astype(np.int8), scale[better], error[better]
    return best, scales.astype(np.float32)


def _packed(numbers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Returns whole numbers of -8..7 [rows, columns], two to a byte [rows, ceil(columns / 2)]."""
    shifted = (numbers - _LOW).astype(np.uint8)
    if shifted.shape[1] % 2:
        shifted = np.pad(shifted, ((0, 0), (0, 1)), constant_values=-_LOW)
    return np.bitwise_or(shifted[:, ::2], np.left_shift(shifted[:, 1::2], np.uint8(4)), dtype=np.uint8)


CODEC = Codec(
    name="int4",
    encode=encode,
    decode=decode,
    quantises=quantises,
    cost=cost,
    hyperparameters=(),
    summary="Matrices in 4 bits with a scale for each row, the rest in float32.",
    parts=(".scale", ".shape"),
    fault=fault,
)
