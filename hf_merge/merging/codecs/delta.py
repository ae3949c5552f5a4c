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

from torch import Tensor

from hf_merge.merging.codecs._matrices import Layout
from hf_merge.merging.codecs._midrise import FEWEST_COLUMNS, LAYOUTS, bits_of, packed
from hf_merge.merging.components import Shape
from hf_merge.merging.settings import Hyperparameter, Settings


def _pack(name: str, matrix: Tensor, settings: Settings) -> dict[str, Tensor]:
    return packed(name, matrix, int(settings["bits"]))


def _unpack(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
    return LAYOUTS[bits_of(tensors[name], shape)].unpack(name, tensors, shape)


def _takes(shape: Shape, settings: Settings) -> float:
    return LAYOUTS[int(settings["bits"])].takes(shape[0], shape)


def _misfit(name: str, tensors: Mapping[str, Tensor], shape: Shape) -> str | None:
    return LAYOUTS[bits_of(tensors[name], shape)].misfit(name, tensors, shape, shape[0])


CODEC = Layout(_pack, _unpack, _takes, _misfit, fewest_columns=FEWEST_COLUMNS).codec(
    name="delta",
    summary="Matrices as differences from the shared expert in 2 or 4 bits with a scale for each row.",
    hyperparameters=(Hyperparameter("bits", 2.0, choices=(2.0, 4.0), help="How many bits a weight is stored in."),),
    residual=True,
)
