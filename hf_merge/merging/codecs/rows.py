"""The codec `rows`: the differences of the few rows that moved most, the others being those of the shared expert.

For embeddings: a fine-tune moves the rows of the words that its task has. Of the rows of a tensor (whatever follows
the first axis, flattened) the share `density` of largest squared norm is kept, one at least, of equal norms the
earlier, in the grid of codec `delta` with 2 or 4 bits a weight and a scale a row. All other rows decode to zero.

On disk are the kept rows alone, packed as `delta` packs them, with their scales and, in `name.rows`, their numbers,
int32, rising. `name.shape` holds the tensor's own shape.
"""

from collections.abc import Mapping
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging.codecs import Codec
from hf_merge.merging.codecs._midrise import FEWEST_COLUMNS, LAYOUTS, bits_of, midrise
from hf_merge.merging.codecs._rows import columns_of, incomplete, may_pack, refuse, shape_of
from hf_merge.merging.components import Shape
from hf_merge.merging.ranges import extremes
from hf_merge.merging.settings import Hyperparameter, Settings


_PARTS = (".scale", ".rows", ".shape")


def encode(name: str, weight: Tensor, source_range: Tensor | None, settings: Settings) -> dict[str, Tensor]:
    """Returns k packed rows uint8 [k, width] with scale [k], their numbers [k] and shape, or the weight itself.

    Args:
        name: The tensor's name.
        weight: The difference, float32 of any shape, only read.
        source_range: Ignored.
        settings: `density`, `bits`.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    shape, bits = tuple(weight.shape), int(settings["bits"])
    extremes(name, weight)
    if not quantises(name, shape, settings):
        return {name: weight}
    matrix = weight.reshape(shape[0], -1).contiguous()
    norms = np.square(matrix.numpy(), dtype=np.float64).sum(axis=1)
    moved = np.sort(np.argsort(-norms, kind="stable")[: _kept(shape, settings)])
    stored = LAYOUTS[bits].stored(name, matrix[torch.from_numpy(moved)], shape, partial(midrise, bits=bits))
    return stored | {f"{name}.rows": torch.from_numpy(moved.astype(np.int32))}


def decode(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the kept rows among zeros, float32 of the tensor's own shape, or the tensor itself where in full.

    Raises:
        UntrustedContentError: The parts are not what `encode` writes.
    """
    stored = tensors[name]
    if stored.dtype != torch.uint8:
        return stored
    refuse(name, fault(name, tensors))
    shape = shape_of(name, tensors)
    weight = np.zeros((shape[0], columns_of(shape)), dtype=np.float32)
    weight[tensors[f"{name}.rows"].numpy()] = LAYOUTS[bits_of(stored, shape)].rows(name, tensors).numpy()
    return torch.from_numpy(weight).view(shape)


def quantises(name: str, shape: Shape, settings: Settings) -> bool:
    """Returns whether such a tensor is quantised: if it may be, has three columns, and becomes cheaper."""
    if not may_pack(name, shape) or columns_of(shape) < FEWEST_COLUMNS:
        return False
    return cost(shape, True, settings) < cost(shape, False, settings)


def cost(shape: Shape, quantised: bool, settings: Settings) -> float:
    """Returns what the kept rows take, a number for each and the shape, or all elements where not quantised."""
    if not quantised:
        return float(prod(shape))
    row = LAYOUTS[int(settings["bits"])].row_cost(columns_of(shape))
    return _kept(shape, settings) * (row + 1) + len(shape)


def fault(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where `encode` may have written it.

    Args:
        name: The tensor's name.
        tensors: Encoded tensors by stored name.
    """
    why = incomplete(name, tensors, _PARTS)
    if why is not None or tensors[name].dtype != torch.uint8:
        return why
    shape, moved = shape_of(name, tensors), tensors[f"{name}.rows"]
    if columns_of(shape) < FEWEST_COLUMNS:
        return f"of shape {list(shape)} is quantised, where {FEWEST_COLUMNS} columns are needed"
    if (moved.dtype, moved.ndim) != (torch.int32, 1) or not 0 < len(moved) <= shape[0]:
        return f"of shape {list(shape)} has rows of shape {list(moved.shape)} and {moved.dtype}, not int32"
    if not bool((moved[1:] > moved[:-1]).all()) or int(moved[0]) < 0 or int(moved[-1]) >= shape[0]:
        return f"has rows whose numbers do not rise from 0 or more to {shape[0] - 1} or less"
    return LAYOUTS[bits_of(tensors[name], shape)].misfit(name, tensors, len(moved))


def _kept(shape: Shape, settings: Settings) -> int:
    return max(1, round(float(settings["density"]) * shape[0]))


CODEC = Codec(
    name="rows",
    encode=encode,
    decode=decode,
    quantises=quantises,
    cost=cost,
    hyperparameters=(
        Hyperparameter(
            "density",
            0.1,
            low=0.0,
            high=1.0,
            exclusive=True,
            help="The share of the rows that is kept, those of largest norm.",
        ),
        Hyperparameter("bits", 4.0, choices=(2.0, 4.0), help="How many bits a weight of a kept row is stored in."),
    ),
    summary="The rows that differ most from the shared expert in 2 or 4 bits a weight, for embeddings.",
    parts=_PARTS,
    fault=fault,
    residual=True,
)
