"""Coefficients of task vectors, fitted once for groups of a recipe's tasks and kept in files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_merge.errors import InputError, NonFiniteWeights
from hf_merge.merging import methods
from hf_merge.merging.components import keeps_full_precision
from hf_merge.merging.grouping import Grouping, groups
from hf_merge.merging.methods import Gathered, MethodSpec, Need
from hf_merge.modeling.fitting import Fit, Pupil, allocate, chunk_key, fit_alignment, fit_confidence
from hf_merge.modeling.mixture import CLAMPED, SIGMOID, Group, Mixture
from hf_merge.storing import disk
from hf_merge.storing.gathered import GatheredFile, gathered_path, write_gathered
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.project import Project, headed_model
from hf_merge.workflow.unlabelled import origin, rows_together, unlabelled_rows


Groups = Mapping[str, Sequence[Group]]  # for each component, the groups of tasks that share it
_KEPT_ROLES = ("embedding", "norm", "head")  # Expert Merging leaves these at its scale


def merged_groups(project: Project, tasks: Iterable[str]) -> dict[str, Sequence[Group]]:
    """Returns the groups of a model in which these tasks are merged everywhere."""
    together = tuple(tasks)
    return {component.name: (together,) for component in project.components}


def groups_within(project: Project, grouping: Grouping) -> dict[str, Sequence[Group]]:
    """Returns the groups of a configuration of all tasks."""
    names = tuple(project.family.tasks)
    return {
        component.name: [tuple(names[index] for index in group) for group in groups(partition)]
        for component, partition in zip(project.components, grouping, strict=True)
    }


def fitted(
    project: Project, method: MethodSpec, folder: Path, wanted: Groups, *, progress: bool
) -> dict[str, GatheredFile]:
    """Returns the coefficients of every task in the groups; fitted now where `folder` does not hold them.

    Args:
        project: The opened recipe.
        method: The method, with its settings.
        folder: Where coefficients are kept; made if need be.
        wanted: The groups of every component, over one set of tasks.
        progress: Show progress on stderr.

    Raises:
        NonFiniteWeights: Coefficients come out infinite or NaN.
        DatasetError: A task's data lack what they need.
    """
    need = methods.get(method.name).needs
    if need is None or not need.is_joint:
        raise ValueError(f"'{method.name}' has no coefficients to fit.")
    names = sorted({task for parts in wanted.values() for group in parts for task in group})
    tasks = [task for task in project.recipe.tasks if task.name in names]
    known = {task.name: origin(project, task, method, need) for task in tasks}
    decided = {
        "method": json.dumps(method.as_json(), sort_keys=True),
        "base": project.family.base.digest(),
        "components": json.dumps({component.name: component.tensors for component in project.components}),
        "groups": json.dumps({name: [list(group) for group in parts] for name, parts in wanted.items()}),
        "tasks": json.dumps(known, sort_keys=True),
        "weights": json.dumps({task.name: task.weight for task in tasks}),
    }
    paths = {task: gathered_path(folder, task, {**decided, "task": task}) for task in known}
    if not all(path.is_file() for path in paths.values()):
        with disk.naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        fitting = _Fitting(project, method, need, wanted, _pupils(project, names, method))
        for task, coefficients in fitting.run(progress=progress).items():
            _require_finite(task, coefficients, method)
            write_gathered(paths[task], {name: Gathered(values) for name, values in coefficients.items()})
    return {task: GatheredFile(path) for task, path in paths.items()}


def _pupils(project: Project, names: Sequence[str], method: MethodSpec) -> list[Pupil]:
    """Returns the tasks with their rows and their models."""
    tasks = [task for task in project.recipe.tasks if task.name in names]
    rows, reader, family = unlabelled_rows(project, tasks, method), project.reader, project.family
    pupils, together = [], rows_together(project, method)
    for task in tasks:
        model = headed_model(project, task, reader, torch.float32)
        own = {name: model.own_name(name, family.base.trunk) for name in family.shapes}
        batches = reader.run(project, task, model, rows[task.name], together).batches
        pupils.append(Pupil(task.name, model, own, family.base.trunk, batches, task.weight))
    return pupils


@dataclass(frozen=True, eq=False)
class _Fitting:
    """One fit: what is merged how, and the tasks on whose rows it is fitted."""

    project: Project
    method: MethodSpec
    need: Need
    groups: Groups
    pupils: Sequence[Pupil]

    def run(self, *, progress: bool) -> dict[str, dict[str, Tensor]]:
        """Returns the fitted coefficients by task and tensor."""
        settings, rounds = self.method.mapping, 2 if self.need is Need.ALIGNED_CHUNKS else 1
        rows = sum(len(batch.rows) for pupil in self.pupils for batch in pupil.batches)
        steps = settings["steps"] if "steps" in settings else rows * float(settings["epochs"]) * rounds
        with waiting(progress, f"fitting {self.method.name}", int(steps), "step") as bar:
            fit, mixed = Fit(self.pupils, settings, bar.update), self._mixture({})
            if self.need is Need.CONFIDENT_COEFFICIENTS:
                fit_confidence(mixed, fit)
            else:
                fit_alignment(mixed, fit, self._own)
            if self.need is Need.ALIGNED_CHUNKS:
                counts = allocate(mixed.importance(), float(settings["budget"]), float(settings["sharpness"]))
                mixed = self._mixture(counts)
                fit_alignment(mixed, fit, self._own)
        return {pupil.task: mixed.coefficients(pupil.task) for pupil in self.pupils}

    def _mixture(self, counts: Mapping[str, int]) -> Mixture:
        """Returns all groups merged by the method's scale, in so many chunks where not in one.

        What merging scales by depth is scaled here too, so that what is fitted is the model that is built.
        """
        family, chosen = self.project.family, _trained(self.project, self.need)
        return Mixture(
            {name: self.groups[part.name] for part in self.project.components for name in part.tensors},
            family.origin,
            family.tasks,
            family.shapes,
            float(self.method.mapping["scale"]),
            CLAMPED if self.need is Need.CONFIDENT_COEFFICIENTS else SIGMOID,
            lambda name, group: counts.get(chunk_key((name, group)), 1) if name in chosen else 0,
            {
                name: self.method.factor_at(depth)
                for part in self.project.components
                for name, depth in zip(part.tensors, part.depths, strict=True)
            },
        )

    def _own(self, task: str) -> dict[str, Tensor]:
        """Returns a task's own backbone."""
        family = self.project.family
        return {name: family.tasks[task].read(name).view(shape) for name, shape in family.shapes.items()}


def _require_finite(task: str, coefficients: Mapping[str, Tensor], method: MethodSpec) -> None:
    broken = next((name for name, held in coefficients.items() if not bool(held.isfinite().all())), None)
    if broken is not None:
        raise NonFiniteWeights(
            f"Task '{task}': the coefficients that {method.name} fitted for '{broken}' are not finite. Lower its "
            "rate, or repair the checkpoint."
        )


def _trained(project: Project, need: Need) -> frozenset[str]:
    """Returns the tensors whose coefficients are fitted: all, or for Expert Merging the blocks' matrices.

    Raises:
        InputError: There are none.
    """
    if need is Need.CONFIDENT_COEFFICIENTS:
        return frozenset(project.family.shapes)
    places = project.places()
    found = frozenset(
        name
        for name, shape in project.family.shapes.items()
        if places[name].role not in _KEPT_ROLES and not keeps_full_precision(name, shape)
    )
    if not found:
        raise InputError("Expert Merging fits the matrices of blocks, and this model has none. Choose another method.")
    return found
