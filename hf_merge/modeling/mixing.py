"""Experts of low rank mixed row by row in one batch, without making any row's weights.

What a linear layer gives is linear in its weights, so that shared weights plus parts of low rank, added with shares of
each row's own, give `x W^T + sum over t of share_t (x A_t^T) B_t^T`: the parts of all tasks run as one thin layer
whose middle is multiplied by the shares. The same holds for GPT-2's transposed layers and for the rows that an
embedding looks up.

Source: arithmetic; the mixture is that of Twin-Merging, arXiv 2406.15479, eq. 6.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeAlias, get_args

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_merge.errors import UnsupportedArchitecture
from hf_merge.merging.peers.twin import Exclusives
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.skeletons import PartSlot


_Layer: TypeAlias = nn.Linear | Conv1D | nn.Embedding


@contextmanager
def mixed(model: TaskModel, parts: Mapping[str, Exclusives], shares: Tensor) -> Iterator[None]:
    """Lets a model answer a batch as if each row had weights of its own.

    A model that is not run layer by layer over [rows, ...] is found out only by comparing: whether a row's answer is
    that of weights made for it is for the caller to check.

    Args:
        model: The model, its tensors the shared ones.
        parts: What tasks add to its matrices, which are named as on its checkpoint's disk.
        shares: What each part is multiplied by, [batch, tasks] float32.

    Raises:
        UnsupportedArchitecture: A matrix is used by no layer of a kind that can be mixed; while it runs: a layer is
            given something that does not begin with the rows.
    """
    with ExitStack() as stack:
        for name, part in parts.items():
            for module in _layers(model, name):
                hook = module.register_forward_hook(_adding(name, module, part, shares))
                stack.callback(hook.remove)
        yield


def _layers(model: TaskModel, name: str) -> list[_Layer]:
    """Returns the layers that use a matrix; several where it is tied."""
    slot = model.slots[name]
    places = [] if isinstance(slot, PartSlot) else [module for module, _ in slot.places]
    # What inherits from these may do more than they do.
    layers = [module for module in places if isinstance(module, _Layer) and type(module) in get_args(_Layer)]
    other = next((module for module in places if module not in layers), None)
    if other is not None or not layers:
        found = "fused with others" if other is None else f"in {type(other).__name__}"
        raise UnsupportedArchitecture(
            f"{type(model.module).__name__} runs '{name}' {found}, where rows cannot be mixed; they can in linear "
            "layers and embeddings."
        )
    return layers


def _adding(
    name: str, module: _Layer, part: Exclusives, shares: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Returns the hook that adds a matrix's parts to what its layer gives."""
    tasks, rank = part.b.shape[0], part.b.shape[2]
    dtype = module.weight.dtype
    tall = part.b.transpose(0, 1).reshape(-1, tasks * rank).to(dtype)  # [rows of the matrix, tasks * rank]
    wide = part.a.reshape(tasks * rank, -1).to(dtype)  # [tasks * rank, columns]
    into, out = (wide.T, tall.T) if isinstance(module, nn.Linear) else (tall, wide)
    each = shares.to(dtype).repeat_interleave(rank, dim=1)  # [batch, tasks * rank]

    def add(_: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        inputs = given[0]
        if inputs.shape[0] not in (1, len(each)):
            raise UnsupportedArchitecture(
                f"'{name}' is given {list(inputs.shape)} for {len(each)} rows, so that rows cannot be mixed."
            )
        middle = nn.functional.embedding(inputs, into) if isinstance(module, nn.Embedding) else inputs @ into
        scale = each.view(len(each), *(1 for _ in middle.shape[1:-1]), -1)
        return result + (middle * scale) @ out

    return add
