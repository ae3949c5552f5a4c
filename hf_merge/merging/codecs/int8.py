"""The codec `int8`: conditional 8-bit compression (Eq. 6), asymmetric and uniform.

A unit (a tensor, or a row of its first axis) is stored as q in 0..255 with a float32 scale s and an int32 zero point
z, and means `s * (q - z)`. The grid spans the unit's weights and zero:

    low = min(min W, 0)    high = max(max W, 0)    s = (high - low) / 255
    z = round(-low / s)    q = clamp(round(W / s) + z, 0, 255)

so each weight is off by s / 2 at most. A unit of one constant value is exact. Vectors and bare position or class
parameters stay float32, as does any tensor that would not become cheaper.

With `policy: criterion` a merged tensor is quantised only where merging did not widen it: its range must not exceed
the mean range of its sources. With unit `row` every row must pass, or the whole tensor stays float32: rows are not
mixed.

Source: MERGE, arXiv 2602.06552, Eq. 6 and 8.
"""

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.errors import UntrustedContentError
from hf_merge.merging.codecs import Codec
from hf_merge.merging.codecs._in_full import fault_in_full
from hf_merge.merging.components import Shape, keeps_full_precision
from hf_merge.merging.ranges import extremes, is_within
from hf_merge.merging.settings import Hyperparameter, Settings


_PARTS = (".scale", ".zero_point")
_LEVELS = 255
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_BLOCK = 1 << 15  # elements in a block: intermediate results stay in the cache
_Array = NDArray[Any]


def encode(name: str, weight: Tensor, source_range: Tensor | None, settings: Settings) -> dict[str, Tensor]:
    """Returns q uint8 like `weight` with scale and zero point (scalars, or [rows]), or the weight itself.

    Args:
        name: The tensor's name.
        weight: float32 of any shape, only read.
        source_range: The mean over the members of max - min, a scalar or [rows]; None passes the criterion.
        settings: `unit`, `policy`.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    quantised = quantises(name, tuple(weight.shape), settings)
    low, high = extremes(name, weight, by_row=quantised and settings["unit"] == "row")
    if not quantised or not _passes(low, high, source_range, settings):
        return {name: weight}
    scale, zero_point = _grid(low, high)
    return {name: _quantise(weight, scale, zero_point), f"{name}.scale": scale, f"{name}.zero_point": zero_point}


def decode(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns `scale * (q - zero_point)` as float32 like q, or the tensor itself where it was stored in full.

    Raises:
        UntrustedContentError: Scale and zero point are neither scalars nor one per row, or of other types than ours.
    """
    stored = tensors[name]
    if stored.dtype != torch.uint8:
        return stored
    scale, zero_point = tensors[f"{name}.scale"], tensors[f"{name}.zero_point"]
    fits = scale.shape == zero_point.shape and scale.shape in (torch.Size(), stored.shape[:1])
    if not fits or (scale.dtype, zero_point.dtype) != (torch.float32, torch.int32):
        raise UntrustedContentError(
            f"Tensor '{name}' {tuple(stored.shape)} has a scale {tuple(scale.shape)} {scale.dtype} and a zero point "
            f"{tuple(zero_point.shape)} {zero_point.dtype}; float32 and int32 are needed, both scalar or one per row."
        )
    if stored.device.type != "cpu":
        trailing = (1,) * (stored.ndim - 1) if scale.ndim else ()
        return stored.to(torch.float32).sub_(zero_point.view(-1, *trailing)).mul_(scale.view(-1, *trailing))
    weight = torch.from_numpy(np.empty(stored.shape, dtype=np.float32))  # numpy asks for huge pages, torch does not
    for part, q, s, zero in _blocks(weight, stored, scale, zero_point):
        np.copyto(part, q)
        part -= zero
        part *= s
    return weight


def quantises(name: str, shape: Shape, settings: Settings) -> bool:
    """Returns whether such a tensor is quantised when its values allow it: if it may be, and becomes cheaper."""
    if settings["policy"] == "never" or keeps_full_precision(name, shape):
        return False
    return cost(shape, True, settings) < cost(shape, False, settings)


def cost(shape: Shape, quantised: bool, settings: Settings) -> float:
    """Returns a quarter of the elements and two per unit (scale, zero point), or all elements where not quantised."""
    elements = prod(shape)
    if not quantised:
        return float(elements)
    return elements * 8 / 32 + 2 * (shape[0] if settings["unit"] == "row" else 1)


def fault(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where `encode` may have written it.

    Args:
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
    """
    weight, scale, zero_point = (tensors.get(name + part) for part in ("", ".scale", ".zero_point"))
    if weight is None:
        return "is missing"
    if weight.dtype != torch.uint8:
        return fault_in_full(name, tensors, _PARTS)
    if scale is None or zero_point is None:
        return "is uint8 without scale or zero_point"
    if scale.dtype != torch.float32 or zero_point.dtype != torch.int32 or scale.shape != zero_point.shape:
        return "has not a float32 scale and an int32 zero_point of one shape"
    if scale.ndim and scale.shape != weight.shape[:1]:
        return f"of shape {list(weight.shape)} has a scale of shape {list(scale.shape)}"
    sound = torch.isfinite(scale) & (scale > 0) & (zero_point >= 0) & (zero_point <= 255)
    return None if bool(sound.all()) else "has a scale that is not finite and above 0, or a zero_point beyond 0 to 255"


def _passes(low: Tensor, high: Tensor, source_range: Tensor | None, settings: Settings) -> bool:
    """Returns whether every unit's range is within the mean range of its sources."""
    if settings["policy"] == "always" or source_range is None:
        return True
    if source_range.shape != low.shape:
        raise ValueError(f"source_range is {tuple(source_range.shape)} where the units are {tuple(low.shape)}.")
    return is_within(low, high, source_range)


def _grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Returns scale float32 and zero point int32 for the extremes of units, computed in float64."""
    bottom, top = low.double().clamp_max(0), high.double().clamp_min(0)
    scale = ((top - bottom) / _LEVELS).float().clamp_min(_SMALLEST_SCALE)  # subnormal weights must not divide by zero
    zero_point = (-bottom / scale.double()).round().clamp(0, _LEVELS).int()
    constant, magnitude = low == high, low.abs()
    scale = torch.where(constant, torch.where(magnitude > 0, magnitude, 1.0), scale)
    return scale, torch.where(constant, (low < 0).int(), zero_point)


def _quantise(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    stored = torch.empty(weight.shape, dtype=torch.uint8)
    for part, q, s, zero in _blocks(weight, stored, scale, zero_point):
        code = part / s
        np.rint(code, out=code)
        code += zero
        np.copyto(q, np.clip(code, 0, _LEVELS, out=code), casting="unsafe")
    return stored


def _blocks(first: Tensor, second: Tensor, scale: Tensor, zero_point: Tensor) -> Iterable[tuple[_Array, ...]]:
    """Returns matching blocks of two tensors of one shape, with their scale and zero point as float32.

    They are numpy arrays: torch would start its threads for each block, which costs ten times the work on a busy
    machine.
    """
    units = (scale.view(-1, 1).numpy(), zero_point.view(-1, 1).float().numpy())
    if scale.ndim == 0:
        flat, other = (each.contiguous().view(1, -1).numpy() for each in (first, second))
        cuts = (slice(at, at + _BLOCK) for at in range(0, flat.size, _BLOCK))
        return ((flat[:, cut], other[:, cut], *units) for cut in cuts)
    rows = max(1, _BLOCK // max(1, prod(first.shape[1:])))
    arrays = (*(each.contiguous().flatten(1).numpy() for each in (first, second)), *units)
    return (tuple(each[at : at + rows] for each in arrays) for at in range(0, len(scale), rows))


CODEC = Codec(
    name="int8",
    encode=encode,
    decode=decode,
    quantises=quantises,
    cost=cost,
    hyperparameters=(
        Hyperparameter("unit", "tensor", choices=("tensor", "row"), help="What shares one scale and zero point."),
        Hyperparameter(
            "policy",
            "always",  # the paper's published costs come out only so: docs/adr/0004-preset-paper.md
            choices=("criterion", "always", "never"),
            help="When a merged tensor is quantised: where its range did not grow (Eq. 6), always, or never.",
        ),
    ),
    summary="Matrices in 8 bits (policy criterion: only where merging did not widen them), the rest in float32.",
    parts=_PARTS,
    fault=fault,
)
