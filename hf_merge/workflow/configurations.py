"""Configurations of a project: how they become points of a front, and points become configurations again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_merge.merging import methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.grouping import Grouping
from hf_merge.merging.identity import configuration_id
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.task_vectors import Geometry
from hf_merge.recipe import settings_of
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.codec_ladder import codec_ladder, ways_to_store
from hf_merge.searching.configuration import Configuration, is_separate
from hf_merge.searching.evaluation import Evaluation
from hf_merge.searching.search import normalised_performance
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.workflow.bars import waiting
from hf_merge.workflow.gathering import GatheredOnce
from hf_merge.workflow.project import Project
from hf_merge.workflow.run_folder import GATHERED_FOLDER


def new_builder(
    project: Project, run: Path | None = None, front: Front | None = None, *, progress: bool = False
) -> ExpertBuilder:
    """Returns a builder for a project, which keeps encoded experts up to `kept_bytes`.

    Args:
        project: The opened recipe.
        run: The run folder, which keeps what the merge method needs beside the weights; None where it needs nothing.
        front: A front whose configurations are to be built; the methods that they name join the recipe's.
        progress: Show progress on stderr while that is gathered.
    """
    points = () if front is None else (*front.points, *front.controls.values())
    named = [methods_of(point) for point in points]
    specs = tuple(dict.fromkeys([*project.methods, *(spec for part in named for spec in part)]))
    needy = next((spec.name for spec in specs if methods.get(spec.name).needs is not None), None)
    if run is None and needy is not None:
        raise ValueError(f"'{needy}' needs a run folder to keep what it gathers.")
    within = {
        str(spec.mapping["within"]): point.grouping
        for point, part in zip(points, named, strict=True)
        for spec in part
        if "within" in spec.mapping
    }
    known = GatheredOnce(project, (run or Path()) / GATHERED_FOLDER, within=within, progress=progress)
    stored = tuple(dict.fromkeys([*project.codecs, *(codec for point in points for codec in codecs_of(point))]))
    limit = kept_bytes(project)
    return ExpertBuilder(project.family, project.components, specs, stored, limit_bytes=limit, gathered=known)


def kept_bytes(project: Project) -> int:
    """Returns how many bytes of encoded experts a search keeps: half of a full-precision base.

    Of fewer than four tasks it is less, for what a search may hold grows with their number. Where differences are
    stored it is two bases: a task's own experts then come in many codecs, are small, and take long to encode.
    """
    family = project.family
    if project.space().residual:
        return 8 * family.parameters
    return min(4, len(family.tasks)) * family.parameters // 2


def proposals(project: Project, builder: ExpertBuilder, geometry: Geometry, *, progress: bool) -> list[Configuration]:
    """Returns configurations that deserve to be tried first where tasks may be stored as differences; else none.

    They keep tasks apart, so of a search for one merged model there are none. Of adapters there are none either: what
    lies close in their factors need not do the same.

    Args:
        project: The opened recipe.
        builder: Builds the experts.
        geometry: The Gram matrices of the task vectors.
        progress: Show progress on stderr.
    """
    space, search = project.space(), project.recipe.search
    if space.merged or not space.residual or search.initial != "ladder" or project.family.adapted:
        return []
    experts = len(space.searched) * (1 + space.codecs * len(space.tasks))
    grams = [geometry.grams[component.name] for component in project.components]
    with waiting(progress, "codecs", experts, "expert") as bar:
        ways = ways_to_store(space, builder, grams, bar.update)
    return codec_ladder(space, ways, max(2, search.population // 3))


def methods_of(point: FrontPoint) -> tuple[MethodSpec, ...]:
    """Returns the merge method of every component, where a configuration names them.

    Raises:
        RecipeError: The installed version does not know a method.
    """
    return tuple(MethodSpec.resolve(*settings_of(method)) for method in point.methods or ())


def codecs_of(point: FrontPoint) -> tuple[CodecSpec, ...]:
    """Returns the codec of every component, where a configuration names them.

    Raises:
        RecipeError: The installed version does not know a codec.
    """
    return tuple(CodecSpec.resolve(*settings_of(codec)) for codec in point.codecs or ())


def configuration_of(point: FrontPoint, builder: ExpertBuilder) -> Configuration:
    """Returns the configuration of a point, for a builder that knows its methods and codecs."""
    stored = codecs_of(point)
    chosen = zip(point.grouping, methods_of(point), stored or [builder.codecs[0]] * len(point.grouping), strict=False)
    numbers = (
        builder.methods.index(spec) if codec.residual or not is_separate(partition) else 0
        for partition, spec, codec in chosen
    )
    return Configuration(point.grouping, tuple(numbers), tuple(map(builder.codecs.index, stored)))


def front_point(
    project: Project,
    grouping: Grouping,
    specs: Sequence[MethodSpec],
    stored: Sequence[CodecSpec],
    evaluation: Evaluation,
    individual: Mapping[str, float],
) -> FrontPoint:
    """Returns a configuration that was measured as a point of a front.

    Args:
        project: The opened recipe.
        grouping: The configuration's groups.
        specs: Its merge method for every component; none where it is the recipe's everywhere.
        stored: Its codec for every component, in the same way.
        evaluation: What it scored.
        individual: The fine-tunes' own scores.
    """
    name = configuration_id(
        project.components,
        tuple(project.family.tasks),
        grouping,
        specs or project.method,
        stored or project.codec,
        evaluation.cost,
    )
    return FrontPoint(
        name,
        evaluation.cost,
        evaluation.performance,
        normalised_performance(evaluation.scores, individual),
        dict(evaluation.scores),
        grouping,
        methods=tuple(spec.as_json() for spec in specs) or None,
        codecs=tuple(codec.as_json() for codec in stored) or None,
    )
