"""`hf-merge build`: the configurations of a front become member folders, and the family gets its router."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from hf_merge.errors import InputError, RunFolderError, UntrustedContentError, nearest
from hf_merge.modeling.assembly import skeleton_config
from hf_merge.searching.building import ExpertBuilder
from hf_merge.searching.pareto import thin
from hf_merge.serving.selection import MEMBERS_FOLDER
from hf_merge.storing import disk, hub
from hf_merge.storing import front as fronts
from hf_merge.storing.card import member_card
from hf_merge.storing.chains import BaseRef, ChainMap, ComponentEntry, ModelEntry
from hf_merge.storing.durable import FolderLock, sweep_partials, write_atomic
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.member_writing import MemberContent, StoredHead, write_member
from hf_merge.storing.provenance import Places
from hf_merge.storing.results import Report
from hf_merge.version import VERSION
from hf_merge.workflow.configurations import configuration_of, new_builder
from hf_merge.workflow.family_router import ROUTER_FILE, ROUTER_REPORT, provide_router
from hf_merge.workflow.origin import read_origin
from hf_merge.workflow.project import Project, open_project
from hf_merge.workflow.run_folder import (
    FRONT_FILE,
    LOCK_FILE,
    PLOT_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    read_report,
    read_run,
    require_same_weights,
    require_still,
)


logger = logging.getLogger(__name__)
_FAMILY_FILES = (
    RECIPE_FILE, FRONT_FILE, MEMBERS_FOLDER, ROUTER_FILE, ROUTER_REPORT, REPORT_FILE, PLOT_FILE, LOCK_FILE,
)  # fmt: skip


def build(
    run: Path,
    out: Path | None = None,
    *,
    configs: Sequence[str] = (),
    max_configs: int | None = None,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> list[Path]:
    """Builds configurations of a run's front, and returns their member folders.

    Args:
        run: A run folder whose search has ended.
        out: The family folder to write; the run folder itself by default.
        configs: Ids of the configurations to build; all of the front, and both controls, by default.
        max_configs: Thin the front to so many configurations, the cheapest and the best among them.
        progress: Show progress on stderr.
        access: How to reach the Hub, where the sources are there.

    Raises:
        RunFolderError: `run` holds no finished search, or `out` is not ours to write.
        InputError: A configuration is not on the front.
    """
    front, recipe = read_run(run)
    family_folder = run if out is None or out.resolve() == run.resolve() else out
    chosen = choose_points(front, configs, max_configs)
    with open_project(recipe, access=access) as project:
        require_same_weights(run, front, project.family.digests())
        _require_ours(family_folder, run)
        with disk.naming(family_folder):
            family_folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(family_folder):
            require_still(run, front)
            sweep_partials(family_folder)
            if family_folder != run:
                _require_same_family(family_folder, project)
                write_atomic(family_folder / RECIPE_FILE, (run / RECIPE_FILE).read_bytes())
                write_atomic(family_folder / FRONT_FILE, fronts.dump(front))
            router = None
            if len(project.recipe.tasks) > 1:  # of one task there is nothing to find
                provide_router(project, family_folder, progress=progress)
                router = (family_folder / ROUTER_FILE).read_bytes()
            builder, card = new_builder(project, run, front), _card_writer(project, front, run, access)
            with tqdm(chosen, desc="build", unit="configuration", disable=not progress) as bar:
                return [_write(project, builder, front, point, router, family_folder, card) for point in bar]


def choose_points(front: Front, configs: Sequence[str], max_configs: int | None) -> list[FrontPoint]:
    """Returns the points to build: those named, or the front (thinned to `max_configs`) and the controls."""
    if configs:
        known = {point.id: point for point in (*front.points, *front.controls.values())}
        unknown = next((name for name in configs if name not in known), None)
        if unknown is not None:
            raise InputError(f"There is no configuration '{unknown}' on this front.{nearest(unknown, known)}")
        return [known[name] for name in configs]
    if max_configs is None:
        return list({point.id: point for point in (*front.points, *front.controls.values())}.values())
    if max_configs < 1:
        raise InputError(f"--max-configs is {max_configs}; give at least 1.")
    kept = thin([point.cost for point in front.points], [point.performance for point in front.points], max_configs)
    return [front.points[index] for index in kept]


def _write(
    project: Project,
    builder: ExpertBuilder,
    front: Front,
    point: FrontPoint,
    router: bytes | None,
    family_folder: Path,
    card: Callable[[ChainMap], str],
) -> Path:
    """Writes one member folder and returns it."""
    family, names = project.family, tuple(component.name for component in project.components)
    if front.components != names:
        raise RunFolderError(
            f"The front was searched over {', '.join(front.components)}; the recipe gives {', '.join(names)}. "
            "Search again."
        )
    configuration = configuration_of(point, builder)
    search = project.recipe.search
    empty = ChainMap(
        id=point.id,
        library_version=VERSION,
        base=_base(project),
        cost=point.cost,
        performance=dict(point.scores),
        metrics=dict(front.tasks),
        granularity=front.granularity,
        dtype=front.dtype,
        model=ModelEntry(project.kind, None if project.kind in ("image", "audio") else search.max_length),
        components=tuple(ComponentEntry(component.name, component.tensors) for component in project.components),
        experts=(),
        chains={task: tuple(key.id for key in builder.chain(configuration, task)) for task in family.tasks},
        heads={},
        files={},
        wordings={task: head.wording for task, head in project.heads.items() if head.wording is not None},
    )
    folder = family_folder / MEMBERS_FOLDER / point.id
    keys = {key.id: key for key in builder.keys(configuration)}
    content = MemberContent(
        chain_map=empty,
        experts=lambda identifier: builder.expert(keys[identifier]),
        heads=_heads(project),
        router=router,
        config=skeleton_config(family.base.config),
        settings=project.reader_folders(),
        card=card,
        references={key.id: key.reference.id for key in keys.values() if key.reference is not None},
    )
    write_member(folder, content)
    return folder


def _card_writer(project: Project, front: Front, run: Path, access: hub.Access) -> Callable[[ChainMap], str]:
    """Returns what writes the cards of member folders: without links, as other members may or may not lie there."""
    report, origin = _measured(run, front), read_origin(project.recipe, access)
    places = Places(None, {}, None)
    return lambda chain_map: member_card(chain_map, front, report, origin, places)


def _measured(run: Path, front: Front) -> Report | None:
    """Returns the test table of a run, or None where there is none of this front: cards can do without."""
    try:
        return read_report(run, front)
    except (RunFolderError, UntrustedContentError) as error:
        logger.warning("The cards show no test scores: %s", error)
        return None


def _heads(project: Project) -> dict[str, StoredHead]:
    stored = {}
    for task, tuned in project.family.tasks.items():
        head = project.heads[task]
        if head.wording is not None:
            continue
        tensors = {name: tuned.read_head(name) for name in tuned.head}
        stored[task] = StoredHead(head.num_labels, head.labels, tensors, head.problem_type)
    return stored


def _base(project: Project) -> BaseRef:
    recipe = project.recipe.base
    name = recipe.model if recipe.revision is not None else Path(recipe.model).name
    return BaseRef(name, recipe.revision, project.family.parameters, 32)


def _require_same_family(folder: Path, project: Project) -> None:
    """Checks that the members which may lie in a family folder are of these weights: others' could pass for them."""
    if not (folder / FRONT_FILE).is_file():
        return
    try:
        require_same_weights(folder, fronts.read(folder / FRONT_FILE), project.family.digests())
    except RunFolderError as error:
        raise RunFolderError(f"{error} To build into another folder, choose it with --out.") from error


def _require_ours(folder: Path, run: Path) -> None:
    if folder == run or not folder.exists():
        return
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; give --out a folder.")
    names = (path.name for path in folder.iterdir() if not path.name.endswith(".part"))
    foreign = sorted(name for name in names if name not in _FAMILY_FILES)
    if foreign:
        raise RunFolderError(
            f"{folder} holds '{foreign[0]}', which hf-merge did not write. Choose a new or empty folder with --out."
        )
    if (folder / RECIPE_FILE).is_file() and (folder / RECIPE_FILE).read_bytes() != (run / RECIPE_FILE).read_bytes():
        raise RunFolderError(f"{folder} holds the family of another recipe. Choose a new or empty folder with --out.")
