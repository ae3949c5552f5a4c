"""The codec `rows`: the differences of the few rows that moved most, the others being those of the shared expert.

For embeddings: a fine-tune moves the rows of the words that its task has. Of the rows of a tensor (whatever follows
the first axis, flattened) the share `density` of largest squared norm is kept, one at least, of equal norms the
earlier, in the grid of codec `delta` with 2 or 4 bits a weight and a scale a row. All other rows decode to zero.

On disk are the kept rows alone, packed as `delta` packs them, with their scales and, in `name.rows`, their numbers,
int32, rising. `name.shape` holds the tensor's own shape.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hf_merge.merging.codecs._matrices import Layout, columns_of
from hf_merge.merging.codecs._midrise import FEWEST_COLUMNS, LAYOUTS, bits_of, packed
from hf_merge.merging.components import Shape
from hf_merge.merging.settings import Hyperparameter, Settings


def _pack(name: str, matrix: Tensor, settings: Settings) -> dict[str, Tensor]:
    norms = np.square(matrix.numpy(), dtype=np.float64).sum(axis=1)
    moved = np.sort(np.argsort(-norms, kind="stable")[: _kept(len(matrix), settings)])
    stored = packed(name, matrix[torch.from_numpy(moved)], int(settings["bits"]))
    return stored | {f"{name}.rows": torch.from_numpy(moved.astype(np.int32))}


def _unpack(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
    weight = np.zeros((shape[0], columns_of(shape)), dtype=np.float32)
    layout = LAYOUTS[bits_of(tensors[name], shape)]
    weight[tensors[f"{name}.rows"].numpy()] = layout.unpack(name, tensors, shape).numpy()
    return torch.from_numpy(weight)


def _takes(shape: Shape, settings: Settings) -> float:
    """Returns what the kept rows take, and a number for each."""
    kept = _kept(shape[0], settings)
    return LAYOUTS[int(settings["bits"])].takes(kept, shape) + kept


def _misfit(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> str | None:
    moved = tensors[f"{name}.rows"]
    if (moved.dtype, moved.ndim) != (torch.int32, 1) or not 0 < len(moved) <= shape[0]:
        return f"of shape {list(shape)} has rows of shape {list(moved.shape)} and {moved.dtype}, not int32"
    if not bool((moved[1:] > moved[:-1]).all()) or int(moved[0]) < 0 or int(moved[-1]) >= shape[0]:
        return f"has rows whose numbers do not rise from 0 or more to {shape[0] - 1} or less"
    return LAYOUTS[bits_of(tensors[name], shape)].misfit(name, tensors, shape, len(moved))


def _kept(rows: int, settings: Settings) -> int:
    return max(1, round(float(settings["density"]) * rows))


CODEC = Layout(
    _pack, _unpack, _takes, _misfit, parts=(".scale", ".rows", ".shape"), fewest_columns=FEWEST_COLUMNS
).codec(
    name="rows",
    summary="The rows that differ most from the shared expert in 2 or 4 bits a weight, for embeddings.",
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
    residual=True,
)
