"""Codecs: how an expert's tensors are stored (Eq. 6), and what that costs (Eq. 8).

Each codec is one file that defines `CODEC = Codec(...)`; files whose name starts with an underscore are shared parts.
A new codec is a new file: the registry, the recipe, the search and the contract tests find it by themselves. Importing
this package loads no torch; asking for a codec does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from hf_merge.errors import RecipeError, nearest
from hf_merge.merging.components import Shape
from hf_merge.merging.settings import Hyperparameter, Settings, Spec, discover, resolve


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """A codec: its functions and what it declares.

    Attributes:
        name: What recipes and `chains.json` call it; the name of its file.
        encode: `encode(name, weight, source_range, settings)` returns the stored tensors of one weight, by name:
            `name` itself, uint8 where it is quantised, with the codec's `parts` beside it then. `weight` is float32
            of any shape and only read; it may come back as it is. `source_range` is the mean over the members of max -
            min: a scalar, or [rows] for unit `row`; None where there is nothing to compare with (a singleton). Raises
            NonFiniteWeights.
        decode: `decode(name, tensors)` returns the weight as float32; `tensors` may hold other tensors too. A tensor
            stored in full comes back as it is, not copied.
        quantises: `quantises(name, shape, settings)` tells whether the codec stores such a tensor quantised, as far as
            its name and shape say; `encode` may still refuse by its values.
        cost: `cost(shape, quantised, settings)` returns what a tensor takes, in full-precision parameters.
        hyperparameters: The settings that it knows.
        summary: One sentence that says what it does.
        parts: What the names of the tensors end in that stand beside a quantised one.
        fault: `fault(name, tensors)` returns what is wrong with a stored tensor (the end of a sentence), or None where
            the codec can have written it.
        residual: Whether what it quantises is the difference from the shared expert of the component, as decoded, to
            which readers add it again; the tensor's own shape stands beside it as `.shape`. What it does not quantise
            it stores whole, and by itself.
    """

    name: str
    encode: Callable[[str, Tensor, Tensor | None, Settings], dict[str, Tensor]]
    decode: Callable[[str, Mapping[str, Tensor]], Tensor]
    quantises: Callable[[str, Shape, Settings], bool]
    cost: Callable[[Shape, bool, Settings], float]
    hyperparameters: tuple[Hyperparameter, ...]
    summary: str
    parts: tuple[str, ...]
    fault: Callable[[str, Mapping[str, Tensor]], str | None]
    residual: bool = False


@dataclass(frozen=True)
class CodecSpec(Spec):
    """A codec with every setting."""

    @classmethod
    def resolve(cls, name: str, settings: Mapping[str, object] | None = None) -> CodecSpec:
        """Returns the codec `name` with `settings`, every other setting at its default.

        Raises:
            RecipeError: The codec or a setting is unknown, or a value is impossible.
        """
        return cls(name, resolve(f"Codec '{name}'", get(name).hyperparameters, settings or {}))

    @property
    def residual(self) -> bool:
        """Whether it stores differences from shared experts."""
        return get(self.name).residual

    def quantises_any(self, shapes: Mapping[str, Shape]) -> bool:
        """Returns whether it stores any of these tensors quantised, as far as names and shapes say."""
        return any(get(self.name).quantises(name, shape, self.mapping) for name, shape in shapes.items())


def available() -> dict[str, Codec]:
    """Returns every codec by name, sorted."""
    return dict(_registry())


def get(name: str) -> Codec:
    """Returns the codec called `name`.

    Raises:
        RecipeError: No codec has this name; the message names the nearest.
    """
    known = _registry()
    if name not in known:
        raise RecipeError(f"Unknown codec '{name}'.{nearest(name, known)}")
    return known[name]


@cache
def _registry() -> dict[str, Codec]:
    return discover(__name__, __path__, "CODEC", Codec)
