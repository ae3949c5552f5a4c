"""WUDI in closed form: the task vector that disturbs each task least in the directions of that task's own vector.

The rows of a linear layer's task vector lie near the span of the layer's inputs. So WUDI asks, of weights [out, in],
for the merged task vector X that minimises the sum over t of `|(X - V_t) V_t^T|^2 / |V_t|^2`. With `G_t = V_t^T V_t /
|V_t|^2` and `H = sum G_t` the minimum is at `X = (sum V_t G_t) H^+`, exactly. WUDI's authors do not go there: they
start at the sum of the task vectors and stop Adam after 300 steps, which scores better than the minimum.

What is computed here is the gradient flow from the sum, `dX/dt = -(X H - sum V_t G_t)`, followed exactly for a given
time: along an eigenvector of H with eigenvalue w, the fraction `1 - exp(-w * time)` of the way to the minimum is gone.
Directions beyond the `density` largest eigenvalues stay as they are in the sum. That is the SWUDI of
https://github.com/WalkerWorldPeace/MLLMerging, whose settings for eight vision models are time 1300 and density 0.65.
It takes the place of Adam's path and is not that path: Adam's steps are not proportional to the gradient. Close to the
minimum itself are `time: 1e9` and `density: 1`. The flow's time is measured with the gradient of half the sum.

What is no matrix is averaged, as there. Weights stored as [in, out] (the Conv1D of GPT-2) are taken as they lie.

Source: WUDI-Merging, arXiv 2503.08099.
"""

from collections.abc import Iterable
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from hf_merge.merging.methods import Member, MergeMethod
from hf_merge.merging.methods._spectra import ROWS, TaskMatrices, gram, merge_matrices
from hf_merge.merging.settings import Hyperparameter, Settings


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the base plus the scaled task vector that disturbs each task least, float32 and shaped like `base`.

    A matrix [out, in] takes one eigendecomposition of [in, in], or of [tasks * out, tasks * out] where that is
    smaller; the task vectors are then held, which is less than [in, in] would be.

    Args:
        base: A tensor in its own shape, float32, only read; what is no matrix is averaged.
        members: The group, gone through twice.
        settings: `time`, `density`, `scale`.
    """
    time, density = float(settings["time"]), float(settings["density"])
    return merge_matrices(base, members, float(settings["scale"]), lambda vectors: _merged(vectors, time, density))


def _merged(vectors: TaskMatrices, time: float, density: float) -> Tensor:
    """Returns the merged task vector, [out, in] float64."""
    summed, count = vectors.sum()
    rows, columns = vectors.shape
    flow = _flow_of_tasks if count * rows < columns else _flow_of_inputs
    return summed.sub_(flow(vectors, summed, time, ceil(Fraction(str(density)) * columns)))


def _flow_of_inputs(vectors: TaskMatrices, summed: Tensor, time: float, kept: int) -> Tensor:
    """Returns how far the flow gets from the sum, [out, in] float64, by H itself, [in, in]."""
    columns = vectors.shape[1]
    hessian, gradient = torch.zeros(columns, columns, dtype=torch.float64), torch.zeros_like(summed)
    for vector in vectors:
        products = gram(vector)
        norm = float(products.trace())
        if norm > 0:
            products /= norm
            hessian += products
            for rows, apart, own in zip(*(part.split(ROWS) for part in (gradient, summed, vector)), strict=True):
                rows.addmm_(apart - own, products)  # exactly zero in a group of one
    values, directions = torch.linalg.eigh(hessian)
    flowed = directions * _gain(values, time, kept) @ directions.T
    for rows in gradient.split(ROWS):
        rows.copy_(rows @ flowed)
    return gradient


def _flow_of_tasks(vectors: TaskMatrices, summed: Tensor, time: float, kept: int) -> Tensor:
    """Returns the same for few rows: with `H = A^T A` and the gradient `B A`, by A A^T, [tasks * out, tasks * out]."""
    factors, gradients = [], []
    for vector in vectors:
        wide = vector.double()
        norm = float(wide.norm())
        if norm > 0:
            wide /= norm
            factors.append(wide)
            gradients.append((summed - vector) @ wide.T)
    if not factors:
        return torch.zeros_like(summed)
    factor = torch.cat(factors)
    values, directions = torch.linalg.eigh(factor @ factor.T)
    moved: Tensor = (torch.cat(gradients, dim=1) @ directions * _gain(values, time, kept)) @ directions.T @ factor
    return moved


def _gain(values: Tensor, time: float, kept: int) -> Tensor:
    """Returns what the flow makes of the gradient along each eigenvector, [k], zero beyond the `kept` largest.

    Eigenvalues [k] are ascending. Those equal to the last that is kept stay too: a choice among them would be
    rounding's.
    """
    positive = values.clamp(min=1e-30)
    gain = -torch.expm1(-positive * time) / positive
    if kept < len(values):
        gain[values < values[-kept] - 1e-9 * values[-1]] = 0
    return gain


METHOD = MergeMethod(
    name="wudi",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "time", 1300.0, low=0.0, high=1e9, help="How long the sum flows towards the minimum; 0 leaves the sum."
        ),
        Hyperparameter(
            "density", 0.65, low=0.001, high=1.0, help="The fraction of the input directions along which it flows."
        ),
        Hyperparameter("scale", 1.0, low=0.0, high=10.0, help="What the merged task vector is multiplied by."),
    ),
    source="https://arxiv.org/abs/2503.08099",
    summary="Move the sum of the task vectors to where it disturbs each task least, judged by the task vectors alone.",
    shaped=True,
)
