"""The codec `full`: every tensor is stored as it is, in float32."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from hf_merge.merging.codecs import Codec
from hf_merge.merging.components import Shape
from hf_merge.merging.ranges import extremes
from hf_merge.merging.settings import Settings


def encode(name: str, weight: Tensor, source_range: Tensor | None, settings: Settings) -> dict[str, Tensor]:
    """Returns the weight itself under its name.

    Raises:
        NonFiniteWeights: A weight is NaN or infinite.
    """
    extremes(name, weight)
    return {name: weight}


def decode(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the stored tensor itself."""
    return tensors[name]


def quantises(name: str, shape: Shape, settings: Settings) -> bool:
    """Returns False: nothing is quantised."""
    return False


def cost(shape: Shape, quantised: bool, settings: Settings) -> float:
    """Returns the number of elements."""
    return float(prod(shape))


def fault(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """Returns what is wrong with a stored tensor (the end of a sentence), or None where it is finite float32."""
    stored = tensors.get(name)
    if stored is None:
        return "is missing"
    if stored.dtype != torch.float32:
        return f"is {stored.dtype}, where float32 is stored in full"
    return None if bool(torch.isfinite(stored).all()) else "holds NaN or infinity"


CODEC = Codec(
    name="full",
    encode=encode,
    decode=decode,
    quantises=quantises,
    cost=cost,
    hyperparameters=(),
    summary="Every tensor in float32.",
    parts=(),
    fault=fault,
)
