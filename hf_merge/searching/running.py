"""Running a task's rows under a chain: the model assembled, and begun as deep as kept hidden states allow.

One model is assembled at a time: the experts of the present chain stay, and only components whose expert changes are
decoded anew. A pass that begins at a block needs no experts for the blocks before it.
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import astuple, dataclass, field
from operator import add, sub

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging.experts import ExpertKey
from hf_merge.modeling.assembly import CPU, TaskModel
from hf_merge.modeling.inputs import Batch, restore
from hf_merge.modeling.passes import Boundary, Passes, State
from hf_merge.searching.building import Chain, ExpertBuilder
from hf_merge.searching.states import StateCache, StateKey


@dataclass(frozen=True, eq=False)
class TaskRun:
    """A task made ready to be evaluated.

    Attributes:
        name: The task's name.
        model: Its skeleton and head.
        batches: Its rows as model inputs.
        labels: What the rows should give, [rows].
        metric: The metric's name.
        judge: Of a task that writes: has the model write for a batch, and returns which targets it met,
            [batch, 2] float32 with the larger number at 1 where it did. None where the model's logits say all.
    """

    name: str
    model: TaskModel
    batches: Sequence[Batch]
    labels: NDArray[np.generic]
    metric: str
    judge: Callable[[TaskModel, Batch], Tensor] | None = None

    def answers(self) -> Tensor:
        """Returns the logits [rows, labels] float32 of whole passes, in the rows' order."""
        ask = self.judge or (lambda model, batch: model.logits(batch.inputs).float().cpu())
        return restore(self.batches, [ask(self.model, batch) for batch in self.batches])


@dataclass(frozen=True)
class Reuse:
    """How much work was asked for, and how much of it was really done; the rest was there from before.

    Attributes:
        pairs_asked: (task, chain) pairs whose score was asked for.
        pairs_run: Those that were run.
        blocks_asked: The model's blocks that the pairs run would pass, counted per batch of rows.
        blocks_run: Those that were run; the others' hidden states were kept.
    """

    pairs_asked: int = 0
    pairs_run: int = 0
    blocks_asked: int = 0
    blocks_run: int = 0

    def __add__(self, other: "Reuse") -> "Reuse":
        return Reuse(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: "Reuse") -> "Reuse":
        return Reuse(*map(sub, astuple(self), astuple(other)))


@dataclass(eq=False)
class ChainRunner:
    """Runs tasks under chains.

    Attributes:
        builder: Where experts come from.
        dtype: What the model computes in.
        states: Hidden states at block boundaries; changes speed, never a bit of the logits.
        device: Where the tasks' models compute, and so where experts and states are kept.
    """

    builder: ExpertBuilder
    dtype: torch.dtype
    states: StateCache
    device: torch.device = CPU
    _loaded: dict[str, tuple[ExpertKey, dict[str, Tensor]]] = field(default_factory=dict)
    _passes: dict[str, Passes] = field(default_factory=dict)

    def logits(self, run: TaskRun, chain: Chain) -> tuple[Tensor, Reuse]:
        """Returns the logits [rows, num_labels] float32 of a task's rows, in the rows' order, and the blocks it took.

        Raises:
            ModelMismatch: The fine-tune lacks a tensor that its model needs.
            NonFiniteWeights: The base or a member holds NaN or infinity.
        """
        try:
            # What is written passes the blocks once for each token, so that no state stands for a whole pass.
            if not self.states.limit_bytes or run.judge is not None:
                self._assemble(run, chain, range(len(chain)))
                run.model.require_complete()
                return run.answers(), Reuse()
            return self._resumed(run, chain, self._passes.get(run.name) or self._watched(run, chain))
        finally:
            run.model.clear()

    def _watched(self, run: TaskRun, chain: Chain) -> Passes:
        """Returns the passes of a task's model, found on its first two rows."""
        self._assemble(run, chain, range(len(chain)))
        run.model.require_complete()
        few = {name: value[:2] for name, value in run.batches[0].inputs.items()}
        self._passes[run.name] = Passes(run.model, self._parts(run), few)
        return self._passes[run.name]

    def _parts(self, run: TaskRun) -> list[Set[str]]:
        """Returns the tensors of each component, as the task's own checkpoint names them."""
        trunk = self.builder.family.base.trunk
        return [
            {run.model.own_name(name, trunk) for name in component.tensors} for component in self.builder.components
        ]

    def _resumed(self, run: TaskRun, chain: Chain, passes: Passes) -> tuple[Tensor, Reuse]:
        """Returns the logits of passes that begin at the deepest boundary whose states are kept, and record behind."""
        start, behind, states = 0, tuple(range(len(chain))), None
        for boundary in reversed(passes.boundaries):
            states = self.states.find(_key(run, chain, boundary))
            if states is not None:
                start, behind = boundary.block, boundary.behind
                break
        self._assemble(run, chain, behind)
        recording = {
            boundary.block: _key(run, chain, boundary) for boundary in passes.boundaries if boundary.block > start
        }
        self.states.begin(list(recording.values()))
        outputs = []
        for index, batch in enumerate(run.batches):
            state: State = None if states is None else states[index]
            logits, recorded = passes.run(batch.inputs, start=start, state=state, record=list(recording))
            outputs.append(logits.float().cpu())
            for block, found in recorded.items():
                self.states.add(recording[block], found)
        self.states.finish()
        count = len(run.batches)
        return restore(run.batches, outputs), Reuse(
            blocks_asked=passes.blocks * count, blocks_run=(passes.blocks - start) * count
        )

    def _assemble(self, run: TaskRun, chain: Chain, components: Sequence[int]) -> None:
        for index in components:
            run.model.set_backbone(self._weights(chain[index]), self.builder.family.base.trunk)

    def _weights(self, key: ExpertKey) -> dict[str, Tensor]:
        """Returns an expert's weights in the computing type; its component's last expert is dropped before."""
        if key.component in self._loaded and self._loaded[key.component][0] == key:
            return self._loaded[key.component][1]
        self._loaded.pop(key.component, None)
        weights = {name: tensor.to(self.device, self.dtype) for name, tensor in self.builder.decoded(key).items()}
        self._loaded[key.component] = (key, weights)
        return weights


def _key(run: TaskRun, chain: Chain, boundary: Boundary) -> StateKey:
    return run.name, boundary.block, tuple(chain[index] for index in boundary.before)
