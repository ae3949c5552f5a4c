"""RegMean: the merged layer answers every fine-tune's inputs as nearly as one linear layer can as that one does.

With G_t the mean outer product of the inputs of a linear layer in fine-tune t, and the layer written y = x W, the
least squares are W = (sum G_t)^-1 sum G_t W_t. Entries of G_t off the diagonal are shrunk by `shrink`: 0.9 in the
paper, 0.1 there for T5; 0 is an average by the inputs' squares, 1 the bare solution. Everything but linear layers is
averaged, and so are layers whose inputs nothing was gathered of.

Source: Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv 2212.09849.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_merge.merging.methods import ROWS, Member, MergeMethod, Need
from hf_merge.merging.settings import Hyperparameter, Settings
from hf_merge.merging.threads import one_thread


_PRESENT = 1e-5  # of the largest eigenvalue: what is smaller is the rounding of float32


def merge(base: Tensor, members: Iterable[Member], settings: Settings) -> Tensor:
    """Returns the least-squares merge of a linear layer, or the mean of whatever else it is; shaped like `base`.

    What is solved for is the change against the mean of the members, so that inputs that never vary leave the mean.

    Args:
        base: A tensor in its own shape, float32, only read.
        members: The group, with the products of each one's inputs where there are any.
        settings: `shrink`; `rows` is the caller's.
    """
    mean, count, has_inputs = torch.zeros(base.shape, dtype=torch.float64), 0, True
    for member in members:
        mean += member.weights
        count += 1
        has_inputs = has_inputs and member.gathered is not None
    mean /= count
    if not has_inputs or base.ndim != 2:
        return mean.float()
    return (mean + _correction(mean, members, float(settings["shrink"]))).float()


def _correction(mean: Tensor, members: Iterable[Member], shrink: float) -> Tensor:
    """Returns what least squares add to the mean of the members, float64, shaped like it."""
    products, pull, axis = None, None, 1
    for member in members:
        if member.gathered is None:
            raise ValueError(f"Nothing was gathered of '{member.task}' the second time.")
        axis = member.gathered.axis
        product = member.gathered.values.double()
        product = shrink * product + (1 - shrink) * torch.diag(product.diagonal())
        change = member.weights.double() - mean
        moved = change @ product if axis == 1 else product @ change
        products = product if products is None else products + product
        pull = moved if pull is None else pull + moved
    if products is None or pull is None:
        return torch.zeros_like(mean)
    inverse = _inverse(products)
    correction: Tensor = pull @ inverse if axis == 1 else inverse @ pull
    return correction


def _inverse(products: Tensor) -> Tensor:
    """Returns the pseudo-inverse of sums of inner products [n, n] float64, zero along what rounding alone made.

    They were gathered in float32. Inputs differ in size by orders of magnitude, so all are brought to one size first:
    only then does the size of an eigenvalue tell whether inputs went that way at all.
    """
    sizes = products.diagonal().clamp(min=0).sqrt()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    scales = sizes.outer(sizes)
    with one_thread():
        inverse: Tensor = torch.linalg.pinv(products / scales, hermitian=True, rtol=_PRESENT)
    return inverse / scales


METHOD = MergeMethod(
    name="regmean",
    merge=merge,
    hyperparameters=(
        Hyperparameter(
            "shrink", 0.9, low=0.0, high=1.0, help="What the inputs' products off the diagonal are multiplied by."
        ),
        ROWS,
    ),
    source="https://arxiv.org/abs/2212.09849",
    summary="Per linear layer, the least squares over every fine-tune's own inputs; all else is averaged.",
    shaped=True,
    needs=Need.INPUT_PRODUCTS,
)
