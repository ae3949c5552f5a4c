"""Batches run over chains (Eq. 10): rows are grouped by identical chain, each chain runs once, heads answer per task.

Tasks that share every expert share the backbone's run: their rows go through it together, and each task's own head
then reads its rows of the result. Where a head cannot be told from its backbone, such tasks run one after the other.

Source: MERGE, arXiv 2602.06552, Eq. 10.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from hf_merge.errors import InputError
from hf_merge.modeling.assembly import TaskModel
from hf_merge.serving.router import UNCLAIMED


class Recombiner:
    """The tasks' models, and which of them share a backbone. Threads may share a recombiner; they take turns.

    Attributes:
        models: One model per task, in task order, backbone and head set; only those that are needed are asked for.
        runs: How often a backbone was run.
    """

    def __init__(self, models: Sequence[TaskModel], chains: Sequence[tuple[str, ...]], width: int) -> None:
        """Takes the models, the chain (expert ids) of each task, and the labels of the widest head."""
        self.models = models
        self.runs = 0
        self._lock = Lock()
        self._chains, self._width = tuple(chains), width

    def logits(self, inputs: Mapping[str, Tensor], tasks: Tensor) -> Tensor:
        """Returns the logits [batch, widest head], padded with -inf, in the rows' order.

        Args:
            inputs: The batch's model inputs, each [batch, ...], on the device of the models.
            tasks: The task of each row, [batch] int64, on the processor. Rows of none (`UNCLAIMED`) are not run, and
                have -inf throughout.

        Raises:
            InputError: The batch is empty.
        """
        if not inputs or not len(tasks):
            raise InputError("The batch is empty: give at least one row.")
        with self._lock:  # a shared run puts something else in a backbone's place for a moment
            parts = list(self._parts(inputs, tasks))
        like = parts[0][1] if parts else torch.empty(0)
        answers = like.new_full((len(tasks), self._width), -torch.inf)
        for rows, logits in parts:
            answers[rows, : logits.shape[1]] = logits
        return answers

    def _parts(self, inputs: Mapping[str, Tensor], tasks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields row numbers and their logits, chain by chain."""
        chosen = sorted(set(tasks.tolist()) - {UNCLAIMED})
        groups = {task: self._group(task) for task in chosen}
        for group in dict.fromkeys(groups.values()):
            together = [task for task in chosen if groups[task] == group]
            rows = torch.isin(tasks, torch.tensor(together)).nonzero().squeeze(1)
            self.runs += 1
            if len(together) == 1:
                yield rows, self.models[together[0]].logits(_select(inputs, rows))
            else:
                yield from self._shared(together, _select(inputs, rows), tasks[rows], rows)

    def _group(self, task: int) -> tuple[tuple[str, ...], int | None]:
        """Returns what tasks have in common that run together: the chain, if head and backbone can be told apart."""
        return self._chains[task], None if self.models[task].backbone_module() is not None else task

    def _shared(
        self, together: Sequence[int], inputs: Mapping[str, Tensor], tasks: Tensor, rows: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields row numbers and their logits for tasks of one chain, whose backbone runs once."""
        recorded: list[Any] = []
        with _recording(self.models[together[0]], recorded):
            self.models[together[0]].logits(inputs)
        for task in together:
            own = (tasks == task).nonzero().squeeze(1)
            with _answering(self.models[task], _rows_of(recorded[0], own, len(tasks))):
                logits = self.models[task].logits(_select(inputs, own))
            yield rows[own], logits


@contextmanager
def _recording(model: TaskModel, into: list[Any]) -> Iterator[None]:
    """Keeps what the backbone gives."""
    backbone = _backbone(model)
    run = backbone.forward

    def record(*args: Any, **kwargs: Any) -> Any:
        into.append(run(*args, **kwargs))
        return into[-1]

    with _replaced(backbone, record):
        yield


@contextmanager
def _answering(model: TaskModel, output: Any) -> Iterator[None]:
    """Lets the backbone give `output` whatever it is asked."""
    with _replaced(_backbone(model), lambda *args, **kwargs: output):
        yield


@contextmanager
def _replaced(backbone: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Puts a function in the place of a module's `forward` for a while; the rest of it stays, for heads that look."""
    vars(backbone)["forward"] = forward
    try:
        yield
    finally:
        del vars(backbone)["forward"]


def _backbone(model: TaskModel) -> nn.Module:
    backbone = model.backbone_module()
    if backbone is None:
        raise RuntimeError("Only models with a backbone of their own are grouped.")
    return backbone


def _rows_of(output: Any, rows: Tensor, batch: int) -> Any:
    """Returns the chosen rows of a backbone's output; what has no row for each of the batch stays as it is."""
    if isinstance(output, Tensor):
        return output[rows] if output.ndim and len(output) == batch else output
    if isinstance(output, tuple):  # the states of every layer, which a head may weigh
        return tuple(_rows_of(part, rows, batch) for part in output)
    if isinstance(output, Mapping):
        return type(output)(**{key: _rows_of(value, rows, batch) for key, value in output.items()})
    return output


def _select(inputs: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in inputs.items()}
