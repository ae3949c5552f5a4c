"""The codec `full`: every tensor is stored as it is, in float32."""

from collections.abc import Mapping
from math import prod

from torch import Tensor

from hf_merge.merging.codecs import Codec
from hf_merge.merging.codecs._in_full import fault_in_full
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
    return fault_in_full(name, tensors) if name in tensors else "is missing"


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
