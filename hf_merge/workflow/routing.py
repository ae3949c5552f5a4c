"""Where a router sends test rows: what a configuration is scored with when the task of each row has to be found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.modeling.features import FeatureExtractor
from hf_merge.modeling.inputs import Batch
from hf_merge.searching.rows import Rows
from hf_merge.searching.running import TaskRun
from hf_merge.searching.tasks import TaskData
from hf_merge.serving.router import Router
from hf_merge.workflow.family_router import provide_router, read_router
from hf_merge.workflow.project import Project, Reader


_NOBODY = -1


@dataclass(frozen=True, eq=False)
class Routing:
    """What a router makes of every task's rows.

    Attributes:
        shares: For each task, in the recipe's order, the probability that each row is of each task, [rows, tasks]
            float32.
    """

    shares: Mapping[str, Tensor]

    def own(self, task: str) -> NDArray[np.bool_]:
        """Returns which rows of a task are sent to that task, [rows] bool."""
        sent: NDArray[np.bool_] = (self.shares[task].argmax(dim=1) == list(self.shares).index(task)).numpy()
        return sent


def as_routed(answers: NDArray[np.generic], own: NDArray[np.bool_]) -> NDArray[np.generic]:
    """Returns a task's predictions [rows] as scored under routing: only rows in `own` met the task's own head."""
    if np.issubdtype(answers.dtype, np.floating):
        return np.where(own, answers, answers[own].mean() if own.any() else 0.0)
    return np.where(own, answers, _NOBODY)


def routing_of(
    project: Project,
    data: Mapping[str, TaskData],
    runs: Mapping[str, TaskRun],
    reader: Reader,
    folder: Path,
    *,
    progress: bool,
) -> Routing:
    """Returns what the recipe's router makes of test rows; trained now where `folder` does not hold it.

    Args:
        project: The opened recipe.
        data: Every task's rows.
        runs: The tasks ready to be evaluated on their test rows.
        reader: Makes batches of rows.
        folder: Where the router is kept, with what it was trained from; made if need be.
        progress: Show progress on stderr.
    """
    rows = {task: data[task].test for task in runs}
    if len(runs) == 1:
        return _unrouted(runs)
    provide_router(project, folder, data, progress=progress)
    router, eyes = read_router(folder, project)
    return _routed(router, eyes, project, rows, runs, reader)


def read_routing(
    project: Project, rows: Mapping[str, Rows], runs: Mapping[str, TaskRun], reader: Reader, run: Path
) -> Routing:
    """Returns what the router of a run folder makes of rows; with a single task there is none, and nothing to find.

    Args:
        project: The opened recipe of the run.
        rows: Every task's rows.
        runs: The tasks ready to be evaluated on them.
        reader: Makes batches of rows.
        run: The run folder, which `build` has put a router into.

    Raises:
        MalformedChainMap: The file is no router.
    """
    return _unrouted(runs) if len(runs) == 1 else _routed(*read_router(run, project), project, rows, runs, reader)


def router_scores(router: Router, eyes: FeatureExtractor, batches: Iterable[Batch], rows: int) -> Tensor:
    """Returns what a router scores each row for each task, [rows, tasks] float32; batches hold every row once."""
    scores = torch.empty(rows, router.tasks)
    for batch in batches:
        scores[torch.from_numpy(batch.rows)] = router.scores(eyes.pooled(batch.inputs))
    return scores


def _unrouted(runs: Mapping[str, TaskRun]) -> Routing:
    """Returns the routing of a single task's rows, which can only be its own."""
    return Routing({task: torch.ones(len(run.labels), 1) for task, run in runs.items()})


def _routed(
    router: Router,
    eyes: FeatureExtractor,
    project: Project,
    rows: Mapping[str, Rows],
    runs: Mapping[str, TaskRun],
    reader: Reader,
) -> Routing:
    shares = {}
    for task, run in runs.items():
        # A language model's batches hold prompts, and the router sees the rows as they came.
        seen = run.batches if project.heads[task].wording is None else reader.batches(rows[task])
        shares[task] = router_scores(router, eyes, seen, len(run.labels)).softmax(dim=1)
    return Routing(shares)
