"""Sources opened, pulled first where they are on the Hub, and the backbone cut into components; no model is loaded."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_merge.merging.components import BASE, Component, Place, cut, places, require_granularity
from hf_merge.merging.segments import segment
from hf_merge.recipe import MergeSpec, TaskSpec
from hf_merge.recipe.merging import REST
from hf_merge.storing import hub
from hf_merge.storing.adapters import Adapter
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family


class Opening(ExitStack):
    """Checkpoints being opened, and closed again together."""

    def __init__(self, headers_only: bool, access: hub.Access, checkpoint: type[Checkpoint]) -> None:
        """Prepares to open checkpoints of a class, all of their weights or their headers only."""
        super().__init__()
        self._access, self._scratch, self._checkpoint = access, Path(), checkpoint
        self._headers_only = headers_only
        if headers_only:
            self._scratch = Path(self.enter_context(TemporaryDirectory(prefix="hf-merge-")))

    def open(self, name: str, source: str, revision: str | None) -> Checkpoint:
        """Returns a checkpoint opened, pulled first where it is on the Hub."""
        if self._headers_only:
            resolved = hub.pull_headers(source, revision, self._scratch / name, access=self._access)
        else:
            resolved = hub.pull_checkpoint(source, revision, access=self._access)
        checkpoint = self._checkpoint(source, resolved.folder, resolved.revision, headers_only=self._headers_only)
        return self.enter_context(checkpoint)

    def open_task(self, task: TaskSpec) -> Checkpoint | Adapter:
        """Returns a task's checkpoint or adapter opened, pulled first where it is on the Hub."""
        if task.adapter is None:
            return self.open(f"task {task.name}", task.source, task.revision)
        resolved = hub.pull_checkpoint(task.adapter, task.revision, access=self._access)
        return self.enter_context(Adapter(task.adapter, resolved.folder, resolved.revision))


def places_in(family: Family) -> dict[str, Place]:
    """Returns where every tensor stands in its model; an adapter's stands with the weight that it acts on."""
    of_base = places(family.of_base)
    return {name: of_base[family.adapted.get(name, name)] for name in family.shapes}


def require_cut(how: MergeSpec) -> None:
    """Raises RecipeError, naming the nearest, where a recipe's granularity is none."""
    if how.segments is None:
        require_granularity(how.granularity)


def components_of(family: Family, how: MergeSpec) -> tuple[Component, ...]:
    """Returns the partition of the backbone: of adapters their own tensors, and the base as one more component.

    Raises:
        RecipeError: The granularity is unknown, or a segment that the recipe names gets no tensor.
    """
    placed = places_in(family)
    if not family.adapted:
        return _cut(placed, how)
    shared = tuple(sorted(name for name in placed if name not in family.adapted))
    return (Component(BASE, shared, shared=True), *_cut({name: placed[name] for name in family.adapted}, how))


def _cut(placed: Mapping[str, Place], how: MergeSpec) -> tuple[Component, ...]:
    if how.segments is not None:
        return segment(cut(placed, "model")[0], how.segments, REST)
    return cut(placed, how.granularity, stages=how.stages)
