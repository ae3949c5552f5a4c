"""What codecs of matrices have in common: what they quantise, the shape beside it, and what they refuse to read.

A codec says how it lays a matrix out, whose rows are whatever follows a tensor's first axis, and has its functions
from that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from hf_merge.errors import UntrustedContentError
from hf_merge.merging.codecs import Codec
from hf_merge.merging.codecs._in_full import fault_in_full
from hf_merge.merging.components import Shape, keeps_full_precision
from hf_merge.merging.ranges import extremes
from hf_merge.merging.settings import Hyperparameter, Settings


_LARGEST = float(np.finfo(np.float32).max)
_MOST_AXES = 8


@dataclass(frozen=True)
class Layout:
    """How a codec lays out the matrices that it quantises.

    Attributes:
        pack: `pack(name, matrix, settings)` returns the stored tensors, without the shape, of a matrix float32
            [rows, columns], finite and contiguous.
        unpack: `unpack(name, tensors, shape)` returns the matrix again, float32 [rows, columns], of a tensor of that
            shape of which nothing is wrong.
        takes: `takes(shape, settings)` returns what that takes, without the shape, in full-precision parameters.
        misfit: `misfit(name, tensors, shape)` returns what is wrong with a quantised tensor that has all its parts
            (the end of a sentence), or None where `pack` may have written it.
        parts: What stands beside a quantised tensor: `.scale`, `.shape` and what else there is.
        fewest_columns: A matrix with fewer is not quantised.
    """

    pack: Callable[[str, Tensor, Settings], dict[str, Tensor]]
    unpack: Callable[[str, Mapping[str, Tensor], Shape], Tensor]
    takes: Callable[[Shape, Settings], float]
    misfit: Callable[[str, Mapping[str, Tensor], Shape], str | None]
    parts: tuple[str, ...] = (".scale", ".shape")
    fewest_columns: int = 1

    def codec(
        self, name: str, summary: str, hyperparameters: tuple[Hyperparameter, ...] = (), *, residual: bool
    ) -> Codec:
        """Returns the codec that stores matrices so, and in full what is none or would not become cheaper."""
        return Codec(
            name=name,
            encode=self._encode,
            decode=self._decode,
            quantises=self._quantises,
            cost=self._cost,
            hyperparameters=hyperparameters,
            summary=summary,
            parts=self.parts,
            fault=self._fault,
            residual=residual,
        )

    def _encode(self, name: str, weight: Tensor, source_range: Tensor | None, settings: Settings) -> dict[str, Tensor]:
        """Ignores `source_range`: whether merging widened a tensor says little where a few bits hold it."""
        shape = tuple(weight.shape)
        extremes(name, weight)
        if not self._quantises(name, shape, settings):
            return {name: weight}
        # Other strides than these would sum a row in another order, and round otherwise.
        matrix = weight.reshape(shape[0], -1).contiguous()
        return self.pack(name, matrix, settings) | {f"{name}.shape": torch.tensor(shape, dtype=torch.int32)}

    def _decode(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        if tensors[name].dtype != torch.uint8:
            return tensors[name]
        why = self._fault(name, tensors)
        if why is not None:
            raise UntrustedContentError(f"Tensor '{name}' {why}.")
        shape = _shape_of(name, tensors)
        return self.unpack(name, tensors, shape).view(shape)

    def _quantises(self, name: str, shape: Shape, settings: Settings) -> bool:
        if not 1 < len(shape) <= _MOST_AXES or keeps_full_precision(name, shape):
            return False
        return columns_of(shape) >= self.fewest_columns and self._cost(shape, True, settings) < prod(shape)

    def _cost(self, shape: Shape, quantised: bool, settings: Settings) -> float:
        return self.takes(shape, settings) + len(shape) if quantised else float(prod(shape))

    def _fault(self, name: str, tensors: Mapping[str, Tensor]) -> str | None:
        why = _incomplete(name, tensors, self.parts)
        if why is not None or tensors[name].dtype != torch.uint8:
            return why
        shape = _shape_of(name, tensors)
        if columns_of(shape) < self.fewest_columns:
            return f"of shape {list(shape)} is quantised, where {self.fewest_columns} columns are needed"
        return self.misfit(name, tensors, shape)


def columns_of(shape: Shape) -> int:
    """Returns how many weights a row has."""
    return prod(shape[1:])


def scale_fault(scale: Tensor, highest: float) -> str | None:
    """Returns what is wrong with scales: one is below 0, or not finite when multiplied with the largest level."""
    fits = (scale >= 0) & (scale.double() * highest <= _LARGEST)
    return None if bool(fits.all()) else "has a scale that is not finite, or below 0"


def largest_scale(highest: float) -> float:
    """Returns a float32 scale whose product with the largest level is finite, if only just."""
    return float(np.nextafter(np.float32(_LARGEST / highest), np.float32(0)))


def _shape_of(name: str, tensors: Mapping[str, Tensor]) -> Shape:
    return tuple(tensors[f"{name}.shape"].tolist())


def _incomplete(name: str, tensors: Mapping[str, Tensor], parts: tuple[str, ...]) -> str | None:
    """Returns what is wrong with a stored tensor before its numbers are looked at (the end of a sentence), or None.

    None means: it is float32, finite and alone, or it is uint8, has every part, and a shape of two axes or more.
    """
    stored = tensors.get(name)
    if stored is None:
        return "is missing"
    if stored.dtype != torch.uint8:
        return fault_in_full(name, tensors, parts)
    if any(name + part not in tensors for part in parts):
        return f"is uint8 without {' or '.join(part.removeprefix('.') for part in parts)}"
    scale, shape = tensors[f"{name}.scale"], tensors[f"{name}.shape"]
    if (scale.dtype, shape.dtype, shape.ndim) != (torch.float32, torch.int32, 1) or not 1 < len(shape) <= _MOST_AXES:
        return "has not a float32 scale and an int32 shape of two axes or more"
    return None if min(shape.tolist()) > 0 else f"of shape {shape.tolist()} is packed into {list(stored.shape)}"
