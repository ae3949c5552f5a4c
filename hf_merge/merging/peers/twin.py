"""Twin-Merging: a shared expert for what tasks have in common, and of each task its own part at low rank.

The shared expert is task arithmetic. A task's exclusive expert is what its fine-tune still differs by, of each matrix
the leading part of its singular value decomposition; vectors, and tensors of more than two axes, are the shared
expert's in every task. For an input the exclusive experts are added with the softmax of a router as weights, and where
the task is known the one of the task alone.

The paper counts what it keeps by the share of singular values, and MERGE's tables 0.02 of a model per task. Here the
factors are counted as they are stored: a tenth of the rank of a square matrix takes a fifth of its numbers.

Source: Twin-Merging, arXiv 2406.15479, section 3; that classifiers and biases are left out: the authors' program.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hf_merge.merging import factors
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Shape, decompose
from hf_merge.merging.experts import merged_tensors
from hf_merge.merging.group_reader import GroupReader, TensorSource
from hf_merge.merging.methods import MethodSpec


KEEP = 0.1  # what is left of the rank at the authors' mask rate of 0.9


@dataclass(frozen=True, eq=False)
class Exclusives:
    """Every task's own part of one matrix: task t adds `b[t] @ a[t]`.

    Attributes:
        b: [tasks, rows, rank] float32.
        a: [tasks, rank, columns] float32.
    """

    b: Tensor
    a: Tensor

    def mixed(self, shares: Sequence[float]) -> Tensor:
        """Returns the sum of all parts, each times its share, [rows, columns] float32."""
        rows, columns = self.b.shape[1], self.a.shape[2]
        total = torch.zeros(rows, columns)
        for share, b, a in zip(shares, self.b, self.a, strict=True):
            if share:
                total.addmm_(b, a, alpha=share)
        return total


@dataclass(frozen=True, eq=False)
class Twin:
    """What Twin-Merging keeps of a family.

    Attributes:
        tasks: The tasks, in the order of shares.
        shared: The shared expert, float32, by tensor.
        exclusives: The tasks' own parts, by matrix.
    """

    tasks: tuple[str, ...]
    shared: Mapping[str, Tensor]
    exclusives: Mapping[str, Exclusives]

    @property
    def parameters(self) -> int:
        """What it takes, in full-precision parameters: the shared expert and all factors."""
        own = sum(part.b.numel() + part.a.numel() for part in self.exclusives.values())
        return own + sum(tensor.numel() for tensor in self.shared.values())

    def shares(self, task: str) -> list[float]:
        """Returns the shares of an input whose task is known: all for that task."""
        return [float(name == task) for name in self.tasks]

    def weights(self, shares: Sequence[float]) -> dict[str, Tensor]:
        """Returns the model for an input: the shared expert plus all exclusive ones, each times its share, float32."""
        return {
            name: tensor + self.exclusives[name].mixed(shares) if name in self.exclusives else tensor
            for name, tensor in self.shared.items()
        }


def twin_merge(
    shapes: Mapping[str, Shape],
    base: TensorSource,
    members: Mapping[str, TensorSource],
    shared: MethodSpec,
    keep: float = KEEP,
    advance: Callable[[int], object] = lambda _: None,
) -> Twin:
    """Returns the Twin-Merging of all members.

    Args:
        shapes: The shape of every backbone tensor.
        base: Reads the pre-trained weights.
        members: Reads the fine-tuned weights, by task name.
        shared: What makes the shared expert.
        keep: The share of a matrix's rank that an exclusive expert keeps, in (0, 1]; at least one direction stays.
        advance: Called with the number of parameters done since the last call.

    Raises:
        NonFiniteWeights: A member or the base holds NaN or infinity.
    """
    tasks = tuple(members)
    reader = GroupReader(tasks, CodecSpec.resolve("full"), shapes, base, members)
    common: dict[str, Tensor] = {}
    own: dict[str, Exclusives] = {}
    for name, values in merged_tensors(tasks, shared, decompose(shapes, "model")[0], reader):
        common[name] = values.reshape(shapes[name]).clone()
        if is_matrix(shapes[name]):
            rank = max(1, round(keep * min(shapes[name])))
            read = ((reader.read_member(task, (name,), reader.buffer((name,)))) for task in tasks)
            own[name] = _exclusives(common[name], read, rank)
        advance(prod(shapes[name]))
    return Twin(tasks, common, own)


def is_matrix(shape: Shape) -> bool:
    """Returns whether a tensor has a part of its own in each task: it has two axes, and neither holds everything."""
    return len(shape) == 2 and prod(shape) > max(shape)


def _exclusives(shared: Tensor, members: Iterable[Tensor], rank: int) -> Exclusives:
    """Returns the tasks' own parts of a matrix, which `members` hold flat, one after the other."""
    pairs = [factors.factored(member.view(shared.shape) - shared, rank) for member in members]
    return Exclusives(torch.stack([b for _, b in pairs]), torch.stack([a for a, _ in pairs]))
