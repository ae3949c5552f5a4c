"""Tasks that answer in their own words: what is written, compared with what should be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.generation import written
from hf_merge.modeling.inputs import Batch
from hf_merge.recipe.wording import normalised


@dataclass(frozen=True, eq=False)
class Judge:
    """Has a model write, and says where it met the target.

    Attributes:
        decode: Turns tokens into texts.
        targets: What should be written, by row.
        max_new_tokens: How many tokens are written, at the most.
    """

    decode: Callable[[list[list[int]]], list[str]]
    targets: Sequence[str]
    max_new_tokens: int

    def __call__(self, model: TaskModel, batch: Batch) -> Tensor:
        """Returns [batch, 2] float32: 1 in the second place where the target was met, else in the first."""
        ids = written(model.module, model.moved(batch.inputs), self.max_new_tokens)
        return judged(self.decode(ids), [self.targets[row] for row in batch.rows])


def judged(texts: Sequence[str], targets: Sequence[str]) -> Tensor:
    """Returns which texts are their targets, but for case and white space, as `Judge` does: [texts, 2] float32."""
    met = torch.tensor([normalised(text) == normalised(target) for text, target in zip(texts, targets, strict=True)])
    return torch.stack([~met, met], dim=1).float()
