"""The dynamic peers of `hf-merge compare`: EMR-Merging and Twin-Merging, made of a family and run on its tasks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_merge.errors import InputError, UnsupportedArchitecture
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.peers.emr import emr_merge
from hf_merge.merging.peers.twin import KEEP, Exclusives, Twin, twin_merge
from hf_merge.merging.statistics import is_statistic
from hf_merge.modeling.inputs import restore
from hf_merge.modeling.mixing import mixed
from hf_merge.searching.running import TaskRun
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.project import DTYPES, Project


# How far rows mixed in one batch may answer from rows with weights of their own, of the largest logit.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True, eq=False)
class Peer:
    """A dynamic merge, ready to be asked.

    Attributes:
        settings: What it was made with.
        parameters: What it takes beside the heads, in full-precision parameters.
        remark: How its cost is counted.
        weights: Returns a task's backbone, float32, by the base's names.
        routed: Returns the logits [rows, labels] of a task's rows, given a router's probabilities [rows, tasks]; None
            where finding the task decides nothing but whose model is asked.
    """

    settings: Mapping[str, Any]
    parameters: float
    remark: str
    weights: Callable[[str], dict[str, Tensor]]
    routed: Callable[[TaskRun, Tensor], Tensor] | None = None


class MakePeer(Protocol):
    """How a peer is made."""

    def __call__(self, project: Project, *, progress: bool) -> Peer:
        """Returns the peer of a project's fine-tunes."""


def emr(project: Project, *, progress: bool) -> Peer:
    """Returns the EMR-Merging of a project's fine-tunes.

    Raises:
        InputError: The tasks are adapters, or have tensors that are no weights.
    """
    family = project.family
    _require_weights("EMR-Merging", project)
    with waiting(progress, "EMR-Merging", family.parameters, "parameter") as bar:
        found = emr_merge(family.shapes, family.origin, family.tasks, bar.update)
    return Peer(
        {},
        found.parameters,
        "C as published, one dense vector and T masks of one bit; with the base, which it needs too, 1 more",
        found.weights,
    )


def twin(project: Project, *, progress: bool) -> Peer:
    """Returns the Twin-Merging of a project's fine-tunes, its shared expert by the recipe's task arithmetic if it has.

    Raises:
        InputError: The tasks are adapters, or have tensors that are no weights.
    """
    family = project.family
    _require_weights("Twin-Merging", project)
    default = MethodSpec.resolve("task_arithmetic")
    shared = next((spec for spec in project.methods if spec.name == default.name), default)
    with waiting(progress, "Twin-Merging", family.parameters, "parameter") as bar:
        found = twin_merge(family.shapes, family.origin, family.tasks, shared, KEEP, bar.update)
    return Peer(
        {**shared.mapping, "keep": KEEP},
        found.parameters,
        "C counts one dense model and every task's factors as they are stored, without the router",
        lambda task: found.weights(found.shares(task)),
        lambda run, shares: routed_rows(project, found, run, shares, progress=progress),
    )


# What the command calls each, its title in the table, and how it is made.
PEERS: Mapping[str, tuple[str, MakePeer]] = {"emr": ("EMR-Merging", emr), "twin": ("Twin-Merging", twin)}


def answers(project: Project, run: TaskRun, weights: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits [rows, labels] of a task's rows with a backbone, float32 by the base's names."""
    with _set(project, run, weights):
        return run.answers()


def routed_rows(project: Project, twin: Twin, run: TaskRun, shares: Tensor, *, progress: bool) -> Tensor:
    """Returns the logits [rows, labels] of a task's rows, each under a merge of its own.

    Args:
        project: The opened recipe.
        twin: What is merged.
        run: The task and its rows.
        shares: What each exclusive expert is multiplied by for each row, [rows, tasks] float32.
        progress: Show progress on stderr.

    Raises:
        UnsupportedArchitecture: Rows of this model cannot be mixed in a batch, or come out otherwise than alone.
    """
    if project.kind in ("causal", "seq2seq"):
        raise UnsupportedArchitecture("Rows are merged one by one for classifiers, not for language models.")
    trunk = project.family.base.trunk
    parts = {run.model.own_name(name, trunk): part for name, part in twin.exclusives.items()}
    _require_mixable(project, twin, run, parts)
    outputs = []
    with (
        _set(project, run, twin.shared),
        waiting(progress, f"Twin-Merging, {run.name} routed", len(run.labels), "row") as bar,
    ):
        for batch in run.batches:
            with mixed(run.model, parts, shares[torch.from_numpy(batch.rows)]):
                outputs.append(run.model.logits(batch.inputs).float().cpu())
            bar.update(len(batch.rows))
    return restore(run.batches, outputs)


def _require_mixable(project: Project, twin: Twin, run: TaskRun, parts: Mapping[str, Exclusives]) -> None:
    """Raises UnsupportedArchitecture unless two rows of different tasks answer together as each does alone."""
    inputs = {name: value[:2] for name, value in run.batches[0].inputs.items()}
    shares = torch.tensor([twin.shares(twin.tasks[0]), twin.shares(twin.tasks[-1])])[: len(run.batches[0].rows)]
    alone = []
    for row, own in enumerate(shares.tolist()):
        with _set(project, run, twin.weights(own)):
            alone.append(run.model.logits({name: value[row : row + 1] for name, value in inputs.items()}))
    expected, title = torch.cat(alone).float(), type(run.model.module).__name__
    try:
        with _set(project, run, twin.shared), mixed(run.model, parts, shares):
            found = run.model.logits(inputs).float()
    except (RuntimeError, ValueError, IndexError) as error:  # what ran for each row alone: its shapes broke here
        raise UnsupportedArchitecture(
            f"{title} cannot run rows mixed in one batch: some tensors hold no rows."
        ) from error
    allowed = _TOLERANCE[DTYPES[project.recipe.search.dtype]] * max(1.0, float(expected.abs().max()))
    apart = float((found - expected).abs().max())
    if apart > allowed:
        raise UnsupportedArchitecture(
            f"{title} answers rows mixed in one batch otherwise than alone (logits "
            f"{apart:.2g} apart, {allowed:.2g} allowed)."
        )


@contextmanager
def _set(project: Project, run: TaskRun, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Gives a task's model a backbone for a while."""
    dtype = DTYPES[project.recipe.search.dtype]
    try:
        given = {name: tensor.to(run.model.device, dtype) for name, tensor in weights.items()}
        run.model.set_backbone(given, project.family.base.trunk)
        run.model.require_complete()
        yield
    finally:
        run.model.clear()


def _require_weights(title: str, project: Project) -> None:
    """Raises InputError where tasks bring anything else than weights that a task vector is made of."""
    if project.family.adapted:
        raise InputError(f"{title} works on whole fine-tunes, and these tasks are adapters.")
    statistic = next((name for name in project.family.shapes if is_statistic(name)), None)
    if statistic is not None:
        raise InputError(f"{title} knows weights alone, and '{statistic}' is a statistic of batch normalisation.")
