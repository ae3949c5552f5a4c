"""Merge methods: how the fine-tuned weights of one group become the weights of one expert (Eq. 5).

Each method is one file that defines `METHOD = MergeMethod(...)`; files whose name starts with an underscore are shared
parts. A new method is a new file: the registry, the recipe, the search and the contract tests find it by themselves.
Importing this package loads no torch; asking for a method does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING

from hf_merge.errors import RecipeError, nearest
from hf_merge.merging.settings import Hyperparameter, Settings, Spec, discover, resolve


if TYPE_CHECKING:
    from torch import Tensor


SCOPE = Hyperparameter(
    "scope",
    "component",
    choices=("component", "tensor"),
    help="What one threshold spans: all tensors of the component together (as in MERGE), or each tensor on its own.",
)


ROWS = Hyperparameter(
    "rows",
    256,
    low=1,
    high=100_000,
    whole=True,
    help="How many rows of each task, without their labels, are run through its fine-tune beforehand.",
)


SHALLOW = Hyperparameter(
    "shallow",
    1.0,
    low=0.0,
    high=10.0,
    optional=True,
    help="What the merged change is multiplied by in the first block; it goes evenly to 1 in the last (LiNeS).",
)


class Need(Enum):
    """What a method must know of a fine-tune beside its weights; see `hf_merge/modeling/gathering.py`.

    Attributes:
        SQUARED_GRADIENTS: The diagonal of the Fisher information, shaped like the weights.
        INPUT_PRODUCTS: For the matrix of a linear layer, the mean of the outer products of its inputs [in, in].
        CONFIDENT_COEFFICIENTS: What the task vector's tensor is multiplied by, [1], fitted so that the merged model
            answers with little entropy; see `hf_merge/modeling/fitting.py`.
        ALIGNED_COEFFICIENTS: The same, [1], fitted so that the merged model answers as the fine-tunes do.
        ALIGNED_CHUNKS: The same, one for each chunk of the tensor, [chunks].
    """

    SQUARED_GRADIENTS = "squared_gradients"
    INPUT_PRODUCTS = "input_products"
    CONFIDENT_COEFFICIENTS = "confident_coefficients"
    ALIGNED_COEFFICIENTS = "aligned_coefficients"
    ALIGNED_CHUNKS = "aligned_chunks"

    @property
    def is_joint(self) -> bool:
        """Whether it depends on the other members of the group, and not on one fine-tune alone."""
        return self in (Need.CONFIDENT_COEFFICIENTS, Need.ALIGNED_COEFFICIENTS, Need.ALIGNED_CHUNKS)


@dataclass(frozen=True, eq=False)
class Gathered:
    """What was gathered of a fine-tune for one unit of weights.

    Attributes:
        values: float32; what the method's need says.
        axis: For products of inputs, which dimension of the weights meets the inputs: 1 in torch's linear layers, 0
            in GPT-2's.
    """

    values: Tensor
    axis: int = 1


@dataclass(frozen=True, eq=False)
class Member:
    """One fine-tuned model of a group, as a merge method sees it.

    Attributes:
        task: The name of its task.
        weights: The fine-tuned weights, float32, shaped like the base that the method is given. The method may
            overwrite this buffer, and must not keep it: the caller may read the next member into the same memory.
        seed: Where this member's random choices start; it does not depend on the other members.
        gathered: What the method's need asks for, or None where it has none, or the unit is nothing of that kind.
    """

    task: str
    weights: Tensor
    seed: int
    gathered: Gathered | None = None


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its kernel and what it declares.

    Attributes:
        name: What recipes call it; the name of its file.
        merge: `merge(base, members, settings)` returns the merged weights, float32 and shaped like `base`, in memory
            of its own. `base` float32 is only read: [n], or a tensor as it is where the method is `shaped`. `members`
            may be iterated more than once, and each member is then read anew; `settings` holds every hyperparameter.
            All of it happens on the processor.
        hyperparameters: The settings that it knows.
        source: The publication that defines it.
        summary: One sentence that says what it does.
        scoped: Whether its result depends on how tensors are flattened together; `scope` is then one of its settings.
        shaped: Whether it works on matrices: it is then given one tensor at a time in the tensor's own shape, and says
            itself what becomes of those that are none.
        needs: What it must know of every member beside its weights, or None; its setting `rows` then says from how
            many rows.
        linear: Whether the result is the base plus a sum of the task vectors with weights that depend on nothing but
            the settings and the number of members, so that it can be merged as factors too.
    """

    name: str
    merge: Callable[[Tensor, Iterable[Member], Settings], Tensor]
    hyperparameters: tuple[Hyperparameter, ...]
    source: str
    summary: str
    scoped: bool = False
    shaped: bool = False
    needs: Need | None = None
    linear: bool = False

    def weights(self, count: int, settings: Settings) -> list[float]:
        """Returns what a linear method multiplies each of `count` task vectors by.

        Raises:
            ValueError: The method is not linear.
        """
        import torch

        if not self.linear:
            raise ValueError(f"'{self.name}' is no weighted sum of task vectors.")
        # A linear method shows its weights on members that each move a coordinate of their own.
        members = (Member(str(index), row, index) for index, row in enumerate(torch.eye(count)))
        found: list[float] = self.merge(torch.zeros(count), members, settings).tolist()
        return found


@dataclass(frozen=True)
class MethodSpec(Spec):
    """A merge method with every hyperparameter: its own, and `shallow`, which every method has.

    Source of `shallow`: LiNeS, arXiv 2410.17146, which scales a merged task vector evenly from the first block to the
    last; its two numbers are this method's own scale, in the last block, and that times `shallow`.
    """

    @classmethod
    def resolve(cls, name: str, settings: Mapping[str, object] | None = None) -> MethodSpec:
        """Returns the method `name` with `settings`, every other hyperparameter at its default.

        Raises:
            RecipeError: The method or a setting is unknown, or a value is impossible.
        """
        return cls(name, resolve(f"Merge method '{name}'", (*get(name).hyperparameters, SHALLOW), settings or {}))

    def factor_at(self, depth: float) -> float:
        """Returns what the merged change is multiplied by at a depth in [0, 1]: from `shallow` evenly to 1."""
        shallow = float(self.mapping.get(SHALLOW.name, SHALLOW.default))
        return shallow + (1.0 - shallow) * depth


def available() -> dict[str, MergeMethod]:
    """Returns every merge method by name, sorted."""
    return dict(_registry())


def get(name: str) -> MergeMethod:
    """Returns the merge method called `name`.

    Raises:
        RecipeError: No method has this name; the message names the nearest.
    """
    known = _registry()
    if name not in known:
        raise RecipeError(f"Unknown merge method '{name}'.{nearest(name, known)}")
    return known[name]


@cache
def _registry() -> dict[str, MergeMethod]:
    return discover(__name__, __path__, "METHOD", MergeMethod)
