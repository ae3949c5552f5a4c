"""Merged weights whose coefficients are being fitted: of each group of tasks, the base plus its scaled task vectors.

What a model is run with are plain tensors, set by reference. A gradient reaches a coefficient by the chain rule alone:
it is the gradient of the merged tensor times the task vector, summed over the chunk. So the model runs as it always
does, whatever it ties or shares, and one gradient per merged tensor serves all coefficients in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from hf_merge.merging.components import Shape
from hf_merge.merging.group_reader import TensorSource
from hf_merge.merging.methods._coefficients import add_scaled_, chunk_sums
from hf_merge.merging.statistics import is_statistic, pooled, units_of


Group = tuple[str, ...]  # task names
KEPT_BYTES = 2 << 30  # of task vectors; beyond them they are read anew at each change


@dataclass(frozen=True)
class Link:
    """How a number that an optimiser changes becomes a coefficient.

    Attributes:
        forward: From the number to the coefficient, differentiable.
        inverse: From the first coefficient to the first number.
        low, high: Where the number is kept.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float = float("-inf")
    high: float = float("inf")


SIGMOID = Link(torch.sigmoid, torch.logit)
CLAMPED = Link(lambda number: number, lambda coefficient: coefficient, 0.0, 1.0)


class Mixture:
    """The merged tensors of all groups, and their coefficients.

    Attributes:
        numbers: What an optimiser changes, [members, chunks] float32, by tensor and group; only where there is
            anything to fit.
        start: What every coefficient starts from; it holds where nothing is fitted.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Group]],
        base: TensorSource,
        tuned: Mapping[str, TensorSource],
        shapes: Mapping[str, Shape],
        start: float,
        link: Link,
        chunks: Callable[[str, Group], int],
        factors: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Reads the weights and merges them with every coefficient at `start`.

        Args:
            groups: For each tensor the groups of tasks that share it; a group of one is its task's own weights.
            base: Reads the pre-trained weights.
            tuned: Reads the fine-tuned weights, by task.
            shapes: The tensors' shapes.
            start: What every coefficient starts from.
            link: How coefficients are kept in their range.
            chunks: How many coefficients a group's tensor has for each member; 0 leaves all at `start`.
            factors: What a tensor's task vectors are multiplied by beside their coefficients; 1 where nothing is said.
        """
        self.start, self._link = start, link
        self._shapes, self._tuned, self._factors = shapes, tuned, factors
        self._base = {name: base.read(name).reshape(-1) for name in groups}
        self._kept: dict[tuple[str, str], Tensor] = {}
        self._kept_bytes = 0
        self._owner = {(name, task): group for name, parts in groups.items() for group in parts for task in group}
        self.numbers: dict[tuple[str, Group], nn.Parameter] = {}
        first = link.inverse(torch.tensor(start))
        for name, parts in groups.items():
            for group in parts:
                count = chunks(name, group) if len(group) > 1 and not is_statistic(name) else 0
                if count:
                    self.numbers[name, group] = nn.Parameter(first.repeat(len(group), count))
        self._merged: dict[tuple[str, Group], Tensor] = {}
        self._gradients: dict[tuple[str, Group], Tensor] = {}
        for name, parts in groups.items():
            for group in parts:
                self._merge(name, group)
        self._pool(groups)

    def weights(self, task: str) -> dict[str, Tensor]:
        """Returns a task's merged tensors by name, by reference."""
        return {
            name: self._merged[name, group].view(self._shapes[name])
            for (name, owner), group in self._owner.items()
            if owner == task
        }

    def fitted(self, task: str) -> list[str]:
        """Returns the tensors of a task whose coefficients are fitted."""
        return [
            name for (name, owner), group in self._owner.items() if owner == task and (name, group) in self.numbers
        ]

    def add_gradients(self, task: str, gradients: Mapping[str, Tensor]) -> None:
        """Adds the gradients of a loss by a task's merged tensors, by name; they count until `pull_back`."""
        for name, gradient in gradients.items():
            key = name, self._owner[name, task]
            flat = gradient.reshape(-1).float()
            self._gradients[key] = self._gradients[key] + flat if key in self._gradients else flat

    def pull_back(self, penalty: float) -> None:
        """Gives every number its gradient: of the losses added, and of `penalty` times the mean |coefficient - start|.

        Source of the penalty: arXiv 2509.25712, eq. 6.
        """
        coefficients = {key: self._link.forward(number) for key, number in self.numbers.items()}
        count = sum(number.numel() for number in self.numbers.values())
        terms = []
        for (name, group), coefficient in coefficients.items():
            terms.append(penalty / count * (coefficient - self.start).abs().sum())
            gradient = self._gradients.get((name, group))
            if gradient is not None:
                pulls = [chunk_sums(gradient * self._vector(name, task), coefficient.shape[1]) for task in group]
                terms.append((torch.stack(pulls) * coefficient).sum())
        self._gradients.clear()
        if terms:
            torch.autograd.backward(torch.stack(terms).sum())

    def settle(self) -> None:
        """Keeps the numbers in their range, and merges anew after they have changed."""
        with torch.no_grad():
            for number in self.numbers.values():
                number.clamp_(self._link.low, self._link.high)
        for name, group in self.numbers:
            self._merge(name, group)

    def coefficients(self, task: str) -> dict[str, Tensor]:
        """Returns a task's fitted coefficients [chunks] float32, by tensor."""
        found = {}
        with torch.no_grad():
            for (name, group), number in self.numbers.items():
                if task in group:
                    found[name] = self._link.forward(number)[group.index(task)].clone()
        return found

    def importance(self) -> dict[tuple[str, Group], float]:
        """Returns how much weight each fitted tensor moves: the sum over members of |coefficient| times sum |vector|.

        Source: arXiv 2509.25712, section 3.3.
        """
        found = {}
        for (name, group), number in self.numbers.items():
            means = self._link.forward(number.detach()).abs().mean(dim=1).tolist()
            sizes = [float(self._vector(name, task).abs().double().sum()) for task in group]
            found[name, group] = sum(mean * size for mean, size in zip(means, sizes, strict=True))
        return found

    def _merge(self, name: str, group: Group) -> None:
        """Merges a group's tensor with its present coefficients, in the memory that it has."""
        if len(group) == 1:
            self._merged[name, group] = self._tuned[group[0]].read(name).reshape(-1)
            return
        base, number = self._base[name], self.numbers.get((name, group))
        merged = self._merged.setdefault((name, group), torch.empty_like(base)).zero_()
        start = torch.full((len(group), 1), self.start)
        values = start if number is None else self._link.forward(number.detach())
        for task, coefficients in zip(group, values, strict=True):
            add_scaled_(merged, self._vector(name, task), coefficients)
        merged.add_(base)

    def _pool(self, groups: Mapping[str, Sequence[Group]]) -> None:
        """Pools the statistics of batch normalisation, which no coefficient scales."""
        for unit in units_of(groups):
            for group in groups[unit[0]]:
                if len(group) == 1:
                    continue
                members = [torch.cat([self._tuned[task].read(name).reshape(-1) for name in unit]) for task in group]
                parts = pooled(unit, members).split([self._base[name].numel() for name in unit])
                for name, part in zip(unit, parts, strict=True):
                    self._merged[name, group] = part.clone()

    def _vector(self, name: str, task: str) -> Tensor:
        """Returns a task vector's tensor [n] float32, times its factor; kept while there is room."""
        if (name, task) in self._kept:
            return self._kept[name, task]
        vector = self._tuned[task].read(name).reshape(-1) - self._base[name]
        if (factor := self._factors.get(name, 1.0)) != 1.0:  # what finds no room is read anew in every step
            vector *= factor
        if self._kept_bytes + vector.nbytes <= KEPT_BYTES:
            self._kept[name, task] = vector
            self._kept_bytes += vector.nbytes
        return vector
