"""What task vectors say of each other before anything is merged: their inner products, per component.

Distances between T task vectors need only their T x T Gram matrix, so one tensor at a time is held, of all tasks
together, and never a whole model. The same pass finds weights that are not finite and fine-tunes that equal the base.
Statistics of batch normalisation have no direction, and so no part in it.

Source: MERGE, arXiv 2602.06552 (k-means on task vectors); methods of task arithmetic, arXiv 2212.04089.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.errors import InputError, NonFiniteWeights
from hf_merge.merging import factors
from hf_merge.merging.components import Component, Shape
from hf_merge.merging.group_reader import TensorSource
from hf_merge.merging.statistics import is_statistic


_CHUNK = 1 << 18


@dataclass(frozen=True)
class Geometry:
    """The Gram matrices of the task vectors.

    Attributes:
        grams: Inner products of the task vectors [T, T] float64, by component name.
        base_norm: The Euclidean norm of the base's backbone.
    """

    grams: Mapping[str, NDArray[np.float64]]
    base_norm: float

    def total(self) -> NDArray[np.float64]:
        """Returns the Gram matrix over the whole backbone, [T, T] float64."""
        total: NDArray[np.float64] = np.stack(list(self.grams.values())).sum(axis=0)
        return total

    def relative_norms(self) -> NDArray[np.float64]:
        """Returns the norm of each task vector over the base's norm, [T] float64."""
        norms: NDArray[np.float64] = np.sqrt(np.diag(self.total()))
        return norms / self.base_norm


def measure(
    components: Sequence[Component],
    shapes: Mapping[str, Shape],
    base: TensorSource,
    members: Mapping[str, TensorSource],
    advance: Callable[[int], object] = lambda _: None,
) -> Geometry:
    """Returns the Gram matrices of the task vectors, streamed one tensor at a time.

    Args:
        components: The partition of the backbone.
        shapes: The shape of every backbone tensor.
        base: Reads the pre-trained weights.
        members: Reads the fine-tuned weights, by task name.
        advance: Called with the number of parameters done since the last call, for a progress bar.

    Raises:
        NonFiniteWeights: Some checkpoint holds NaN or infinity.
        InputError: A fine-tune's backbone equals the base's.
    """
    grams = {}
    square = 0.0
    for component in components:
        gram = torch.zeros(len(members), len(members), dtype=torch.float64)
        for names in factors.units(component.tensors):
            part, norm = _measure_unit(names, component, shapes, base, members)
            if not is_statistic(names[0]):
                gram += part
                square += norm
            advance(sum(prod(shapes[name]) for name in names))
        grams[component.name] = gram.numpy()
    geometry = Geometry(grams, square**0.5)
    _require_different(geometry, list(members))
    return geometry


def _measure_unit(
    names: Sequence[str],
    component: Component,
    shapes: Mapping[str, Shape],
    base: TensorSource,
    members: Mapping[str, TensorSource],
) -> tuple[Tensor, float]:
    """Returns what a tensor or a pair of factors adds to the Gram matrix, [T, T] float64, and the base's square."""
    if component.shared:  # no task differs from the base here
        _, square = _read_origin(names[0], prod(shapes[names[0]]), base)
        return torch.zeros(len(members), len(members), dtype=torch.float64), square
    if not factors.is_pair(names):
        return _measure_tensor(names[0], prod(shapes[names[0]]), base, members)
    pairs = [
        (source.read(names[0]).view(shapes[names[0]]), source.read(names[1]).view(shapes[names[1]]))
        for source in members.values()
    ]
    gram = factors.inner_products(pairs)
    _require_finite(gram, names[1], list(members))
    return gram, 0.0


def _measure_tensor(
    name: str, length: int, base: TensorSource, members: Mapping[str, TensorSource]
) -> tuple[Tensor, float]:
    """Returns one tensor's part in the Gram matrix [T, T] float64, and the base's squared norm."""
    origin, square = _read_origin(name, length, base)
    vectors = torch.empty(len(members), length)
    for row, source in zip(vectors, members.values(), strict=True):
        source.read(name, row).sub_(origin)
    gram = torch.zeros(len(members), len(members), dtype=torch.float64)
    for part in vectors.split(_CHUNK, dim=1):
        wide = part.double()
        gram += wide @ wide.T
    _require_finite(gram, name, list(members))
    return gram, square


def _read_origin(name: str, length: int, base: TensorSource) -> tuple[Tensor, float]:
    """Returns a tensor of the base, [n] float32, and its squared norm."""
    origin = base.read(name, torch.empty(length))
    square = float(sum(part.double().square().sum() for part in origin.split(_CHUNK)))
    if not isfinite(square):
        raise NonFiniteWeights(f"The base: tensor '{name}' holds NaN or infinity. Repair or replace the checkpoint.")
    return origin, square


def _require_finite(gram: Tensor, name: str, tasks: Sequence[str]) -> None:
    bad = [task for task, value in zip(tasks, gram.diagonal().tolist(), strict=True) if not isfinite(value)]
    if bad:
        raise NonFiniteWeights(
            f"Task '{bad[0]}': tensor '{name}' holds NaN or infinity; merging would spread it. "
            "Repair or leave out the checkpoint."
        )


def _require_different(geometry: Geometry, tasks: Sequence[str]) -> None:
    same = [task for task, norm in zip(tasks, geometry.relative_norms(), strict=True) if norm == 0]
    if same:
        raise InputError(
            f"The backbone of task '{same[0]}' equals the base, weight for weight: there is nothing to merge. "
            "Give the fine-tuned checkpoint, or leave the task out."
        )
