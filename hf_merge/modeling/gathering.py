"""What merge methods must know of a fine-tune beside its weights: gradients and inputs of its layers on some rows.

No labels are read: the model's own answers stand for them. Rows pass one at a time where gradients are squared (the
square of a sum is no sum of squares), batch by batch elsewhere; padding counts nowhere.

Sources: Fisher information as in arXiv 2111.09832, eq. 3; products of inputs as in arXiv 2212.09849, section 3.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_merge.merging.methods import Gathered, Need
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.inputs import Batch


# Labels that a fine-tune holds for this unlikely, all of them together, are left out of the expectation over labels.
_UNLIKELY = 1e-3


def gather(
    need: Need,
    model: TaskModel,
    names: Mapping[str, str],
    batches: Sequence[Batch],
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Gathered]:
    """Returns what a need asks for, by the base's names.

    Args:
        need: What is asked for.
        model: A fine-tune, all of its tensors set, in float32.
        names: The names on the fine-tune's disk of the backbone's tensors, to what the base calls them.
        batches: Rows as model inputs, at least one.
        advance: Called with the number of rows done since the last call.
    """
    if need is Need.SQUARED_GRADIENTS:
        return squared_gradients(model, names, batches, advance)
    return input_products(model, names, batches, advance)


def squared_gradients(
    model: TaskModel, names: Mapping[str, str], batches: Sequence[Batch], advance: Callable[[int], object]
) -> dict[str, Gathered]:
    """Returns the diagonal of the Fisher information of every backbone tensor, of length one over all of them.

    For each row it is the mean over the labels, weighted by the model's own probabilities, of the squared gradient of
    the label's log-probability; for a regression that of a normal distribution of variance one about the answer. Where
    nothing depends on anything (a head of zeros), it is zero.
    """
    held = {base: found[1] for own, base in names.items() if (found := model.parameter(own)) is not None}
    sums = {base: torch.zeros_like(parameter) for base, parameter in held.items()}
    count = 0
    with differentiable(held.values()), torch.enable_grad():
        for batch in batches:
            for row in range(len(batch.rows)):
                answer = model.answers({name: value[row : row + 1] for name, value in batch.inputs.items()})[0]
                for weight, value in _log_likelihoods(answer.float()):
                    _add_squares(sums, held, value, weight)
                advance(1)
                count += 1
    length = float(sum(total.double().square().sum() for total in sums.values())) ** 0.5
    return {base: Gathered(total.div_(length or 1.0)) for base, total in sums.items()}


def input_products(
    model: TaskModel, names: Mapping[str, str], batches: Sequence[Batch], advance: Callable[[int], object]
) -> dict[str, Gathered]:
    """Returns for the weight of every linear layer the mean outer product of its inputs, [in, in] float32."""
    layers = {
        base: (module, 0 if isinstance(module, Conv1D) else 1)
        for own, base in names.items()
        if (found := model.parameter(own)) is not None
        and isinstance(module := found[0], nn.Linear | Conv1D)
        and found[1] is module.weight
    }
    products = {base: _Products() for base in layers}
    mask: list[Tensor | None] = [None]
    hooks = [
        module.register_forward_pre_hook(lambda _, given, product=products[base]: product.add(given[0], mask[0]))
        for base, (module, _) in layers.items()
    ]
    try:
        for batch in batches:
            mask[0] = batch.inputs.get("attention_mask")
            model.logits(batch.inputs)
            advance(len(batch.rows))
    finally:
        for hook in hooks:
            hook.remove()
    seen = ((base, product.mean()) for base, product in products.items())
    return {base: Gathered(mean, layers[base][1]) for base, mean in seen if mean is not None}


class _Products:
    """The outer products of a layer's inputs, summed."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, inputs: Tensor, mask: Tensor | None) -> None:
        """Adds inputs [..., in] float32; `mask` tells padding, where it is of the inputs' length."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        if mask is not None and mask.numel() == len(rows):
            rows = rows[mask.reshape(-1).bool()]
        product = (rows.T @ rows).double()
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._count += len(rows)

    def mean(self) -> Tensor | None:
        """Returns the mean [in, in] float32, or None where no input came by."""
        return None if self._sum is None or not self._count else (self._sum / self._count).float()


def _log_likelihoods(answer: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Yields with its weight what each likely label's squared gradient is taken of, from the answer [labels]."""
    if len(answer) == 1:
        yield 1.0, answer[0]
        return
    likelihoods = answer.log_softmax(dim=0)
    chances = likelihoods.detach().exp()
    order = chances.argsort(descending=True, stable=True)
    left = 1.0
    for label in order.tolist():
        if left < _UNLIKELY:
            return
        left -= float(chances[label])
        yield float(chances[label]), likelihoods[label]


def _add_squares(sums: Mapping[str, Tensor], held: Mapping[str, nn.Parameter], value: Tensor, weight: float) -> None:
    """Adds the squared gradients of a value, times a weight; what the value does not depend on stays."""
    gradients = torch.autograd.grad(value, list(held.values()), retain_graph=True, allow_unused=True)
    for total, gradient in zip(sums.values(), gradients, strict=True):
        if gradient is not None:
            total.addcmul_(gradient, gradient, value=weight)


@contextmanager
def differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets gradients reach parameters inside the block."""
    chosen = list(parameters)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
