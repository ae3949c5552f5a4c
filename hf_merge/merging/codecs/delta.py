"""The codec `delta`: the difference from the shared expert in 2 or 4 bits a weight, one scale a row.

A row w (whatever follows the first axis, flattened) is stored as digits q of 0 to 2^bits - 1 with a float32 scale s
and means `s * (2 q + 1 - 2^bits) / 2`: with 2 bits -1.5 s, -0.5 s, 0.5 s and 1.5 s, none of them zero, for a level at
zero would leave another without its counterpart. The scale is the best that is tried, and q is the nearest level.
So each weight is off by s / 2 at most, or lies beyond the grid, and the squared error of a row is at most its squared
norm.

On disk a row is `ceil(columns / 4)` bytes for 2 bits, `ceil(columns / 2)` for 4, the first weight in the lowest bits,
and 0 where the row has ended. That width tells the bits, so rows of one or two weights, where both are one byte, are
not quantised. `name.shape` holds the tensor's own shape. A row without a difference has the scale 0.

Source: task vectors in few bits are those of TVQ, Task Vector Quantization, arXiv 2503.06921.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from hf_merge.merging.codecs import Codec
from hf_merge.merging.codecs._midrise import FEWEST_COLUMNS, LAYOUTS, bits_of, midrise
from hf_merge.merging.codecs._rows import PARTS, columns_of, incomplete, refuse, shape_of
from hf_merge.merging.components import Shape
from hf_merge.merging.ranges import extremes
from hf_merge.merging.settings import Hyperparameter, Settings


def encode(name: str, weight: Tensor, source_range: Tensor | None, settings: Settings) -> dict[str, Tensor]:
    """Returns packed rows uint8 [rows, ceil(columns * bits / 8)] with scale [rows] and shape, or the weight itself.

    Args:
        name: The tensor's name.
        weight: The difference, float32 of any shape, only read.
        source_range: Ignored.
        settings: `bits`.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    shape, bits = tuple(weight.shape), int(settings["bits"])
    extremes(name, weight)
    if not quantises(name, shape, settings):
        return {name: weight}
    return LAYOUTS[bits].stored(name, weight, shape, partial(midrise, bits=bits))


def decode(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns scale times level, float32 of the tensor's own shape, or the tensor itself where it was stored in full.

    Raises:
        UntrustedContentError: The parts are not what `encode` writes.
    """
    stored = tensors[name]
    if stored.dtype != torch.uint8:
        return stored
    refuse(name, fault(name, tensors))
    shape = shape_of(name, tensors)
    return LAYOUTS[bits_of(stored, shape)].rows(name, tensors).view(shape)


def quantises(name: str, shape: Shape, settings: Settings) -> bool:
    """Returns whether such a tensor is quantised: if it may be, has three columns, and becomes cheaper."""
    return columns_of(shape) >= FEWEST_COLUMNS and LAYOUTS[int(settings["bits"])].quantises(name, shape, settings)


def cost(shape: Shape, quantised: bool, settings: Settings) -> float:
    """Returns a quarter of the packed bytes, a scale a row and the shape, or all elements where not quantised."""
    return LAYOUTS[int(settings["bits"])].cost(shape, quantised, settings)


def fault(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where `encode` may have written it.

    Args:
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
    """
    why = incomplete(name, tensors, PARTS)
    if why is not None or tensors[name].dtype != torch.uint8:
        return why
    shape = shape_of(name, tensors)
    if columns_of(shape) < FEWEST_COLUMNS:
        return f"of shape {list(shape)} is quantised, where {FEWEST_COLUMNS} columns are needed"
    return LAYOUTS[bits_of(tensors[name], shape)].misfit(name, tensors, shape[0])


CODEC = Codec(
    name="delta",
    encode=encode,
    decode=decode,
    quantises=quantises,
    cost=cost,
    hyperparameters=(Hyperparameter("bits", 2.0, choices=(2.0, 4.0), help="How many bits a weight is stored in."),),
    summary="Matrices as differences from the shared expert in 2 or 4 bits with a scale for each row.",
    parts=PARTS,
    fault=fault,
    residual=True,
)
