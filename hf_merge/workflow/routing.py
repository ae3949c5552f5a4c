"""Where a router sends test rows: what every row of a comparison is scored with when its task has to be found."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.modeling.features import FeatureExtractor
from hf_merge.searching.running import TaskRun
from hf_merge.searching.splits import data_origin
from hf_merge.searching.tasks import TaskData
from hf_merge.serving.router import Router
from hf_merge.serving.router_file import router_tensors
from hf_merge.storing import disk
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.strict_json import dumps, read_json
from hf_merge.storing.tensors import tensor_bytes
from hf_merge.workflow.build import ROUTER_FILE, ROUTER_REPORT, read_router, train_router
from hf_merge.workflow.project import Project, Reader


_REPORT_BYTES = 1 << 20


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
    if len(runs) == 1:
        return Routing({task: torch.ones(len(run.labels), 1) for task, run in runs.items()})
    router, eyes = _router(project, data, folder, progress)
    shares = {}
    for task, run in runs.items():
        # A language model's batches hold prompts, and the router sees the rows as they came.
        seen = run.batches if project.heads[task].wording is None else reader.batches(data[task].test)
        shares[task] = torch.empty(len(run.labels), len(runs))
        for batch in seen:
            shares[task][torch.from_numpy(batch.rows)] = router.scores(eyes.pooled(batch.inputs)).softmax(dim=1)
    return Routing(shares)


def _router(
    project: Project, data: Mapping[str, TaskData], folder: Path, progress: bool
) -> tuple[Router, FeatureExtractor]:
    """Returns the recipe's router and its eyes: those that `folder` holds, or new ones."""
    origin = _origin(project)
    if (folder / ROUTER_FILE).is_file() and _kept_origin(folder) == origin:
        return read_router(folder, project)
    router, eyes, accuracy = train_router(project, data, progress)
    with disk.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # The report last and the router of another recipe without one: a report always speaks of the file beside it.
    (folder / ROUTER_REPORT).unlink(missing_ok=True)
    write_atomic(folder / ROUTER_FILE, tensor_bytes(router_tensors(router, eyes)))
    report = {"layers": eyes.layers, "accuracy": accuracy, "origin": origin}
    write_atomic(folder / ROUTER_REPORT, dumps(report, indent=1))
    return router, eyes


def _kept_origin(folder: Path) -> object:
    """Returns what the router in a folder was trained from, or None where nobody says."""
    if not (folder / ROUTER_REPORT).is_file():
        return None
    report = read_json(folder / ROUTER_REPORT, _REPORT_BYTES)
    return report.get("origin") if isinstance(report, dict) else None


def _origin(project: Project) -> str:
    """Returns a digest of everything that decides a router."""
    recipe = project.recipe
    decides = {
        "base": project.family.base.digest(),
        "tasks": [[task.name, data_origin(task)] for task in recipe.tasks],
        "labels": [project.heads[task.name].labels for task in recipe.tasks],
        "router": recipe.router.model_dump(mode="json"),
        "search": [recipe.search.seed, recipe.search.validation_rows, recipe.search.max_length],
    }
    return hashlib.sha256(dumps(decides)).hexdigest()
