"""`hf-merge push`: a run's front on the Hub, one repo per configuration and one for the family.

Members come first, each in one commit, tagged when it is whole. The family repo comes last: its `front.json` names the
commit of every member, so whoever loads sees the front before this push or after it, never a mixture. The same push
again sends what is missing, and nothing where nothing is.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from hf_merge.errors import HubError, InputError, RunFolderError, UntrustedContentError
from hf_merge.serving.selection import MEMBERS_FOLDER
from hf_merge.storing import front as fronts
from hf_merge.storing import hub, results
from hf_merge.storing.card import family_card, member_card
from hf_merge.storing.copying import whole_files
from hf_merge.storing.durable import FolderLock
from hf_merge.storing.front import Front, FrontPoint
from hf_merge.storing.library import Member
from hf_merge.storing.member_files import CARD_FILE, MAP_FILE
from hf_merge.storing.plots import plot_front, plot_grouping
from hf_merge.storing.provenance import Origin, Places
from hf_merge.storing.repo_files import MEMBER_FILES
from hf_merge.storing.results import Report
from hf_merge.workflow.build import build, choose_points
from hf_merge.workflow.origin import read_origin, shown
from hf_merge.workflow.run_folder import (
    FRONT_FILE,
    PLOT_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    read_report,
    read_run,
    require_still,
)


logger = logging.getLogger(__name__)
GROUPING_FILE = "grouping.png"
SENSIBLE = 8  # configurations that are pushed of a longer front, unless the caller says otherwise
_FAMILY_FILES = (FRONT_FILE, RECIPE_FILE, CARD_FILE, PLOT_FILE, GROUPING_FILE, REPORT_FILE)


@dataclass(frozen=True)
class Publication:
    """What a push did, or would do.

    Attributes:
        family: The family repo.
        members: Every member's repo, by configuration.
        collection: The slug of the collection that groups them, or None where there is none.
        revision: What to load the family by: None for its default branch, else a branch, or a pull request's commit.
        create_pr: Whether pull requests were opened.
        dry_run: Whether nothing was sent.
    """

    family: hub.Pushed
    members: Mapping[str, hub.Pushed]
    collection: str | None
    revision: str | None
    create_pr: bool
    dry_run: bool


@dataclass(frozen=True)
class _Push:
    """One push on its way: what is pushed, and where to."""

    run: Path
    front: Front
    report: Report | None
    origin: Origin
    places: Places
    family: str
    private: bool | None
    branch: str | None
    create_pr: bool
    dry_run: bool
    access: hub.Access


def push(
    run: Path,
    repo: str,
    *,
    configs: Sequence[str] = (),
    max_configs: int | None = None,
    everything: bool = False,
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    access: hub.Access = hub.AS_USUAL,
) -> Publication:
    """Pushes configurations of a run, each as a repo of its own, and the family repo that names them.

    Args:
        run: A run folder whose search has ended, or a family folder; configurations not built yet are built first.
        repo: The family repo: `user/name`, or `name` for one's own.
        configs: Ids of the configurations to push.
        max_configs: Thin the front to so many, the cheapest and the best among them; 8 by default.
        everything: The whole front and both controls.
        private: Whether new repos are private; None leaves it to the account's settings.
        branch: The branch to push to, made if need be; None is the default branch.
        create_pr: Open pull requests instead.
        dry_run: Ask the Hub what it has, and send nothing.
        progress: Show progress on stderr.
        access: How to reach the Hub.

    Raises:
        RunFolderError: `run` holds no finished search.
        InputError: A configuration is not on the front, or the repo's name cannot be one.
        DigestMismatch: A member folder is damaged; nothing of it is sent.
        HubError: The Hub refuses, or cannot be reached.
    """
    front, recipe = read_run(run)
    chosen = _choose(front, configs, max_configs, everything)
    family = hub.full_name(repo, access)
    _build_missing(run, chosen, dry_run, progress, access)
    with FolderLock(run):
        require_still(run, front)
        told = replace(front, base=shown(front.base, front.revision))
        report, origin = _report_of(run, front), read_origin(recipe, access)
        places = Places(family, member_repos(family, front), None)
        state = _Push(run, told, report, origin, places, family, private, branch, create_pr, dry_run, access)
        return _push(state, chosen, progress)


def member_repos(family: str, front: Front) -> dict[str, str]:
    """Returns the repo of every configuration: `family-c0359`, with the whole id where two share the short one."""
    identifiers = dict.fromkeys(point.id for point in (*front.points, *front.controls.values()))
    short = [identifier.split("-")[0] for identifier in identifiers]
    return {
        identifier: f"{family}-{name if short.count(name) == 1 else identifier}"
        for identifier, name in zip(identifiers, short, strict=True)
    }


def _choose(front: Front, configs: Sequence[str], max_configs: int | None, everything: bool) -> list[FrontPoint]:
    if sum((bool(configs), max_configs is not None, everything)) > 1:
        raise InputError("Give only one of --config, --max-configs and --all.")
    usual = None if everything or configs else SENSIBLE
    return choose_points(front, configs, usual if max_configs is None else max_configs)


def _build_missing(run: Path, chosen: Sequence[FrontPoint], dry_run: bool, progress: bool, access: hub.Access) -> None:
    missing = [point.id for point in chosen if not (run / MEMBERS_FOLDER / point.id / MAP_FILE).is_file()]
    if missing and dry_run:
        raise RunFolderError(
            f"{missing[0]} is not built yet, so nobody knows its bytes. Build first: hf-merge build {run}, with the "
            "same --config or --max-configs."
        )
    if missing:
        build(run, configs=missing, progress=progress, access=access)


def _report_of(run: Path, front: Front) -> Report | None:
    report = read_report(run, front)
    if report is None:
        logger.warning(
            "%s holds no %s: the cards will show validation scores only. Measure first: hf-merge report %s",
            run, REPORT_FILE, run,
        )  # fmt: skip
    return report


def _push(state: _Push, chosen: Sequence[FrontPoint], progress: bool) -> Publication:
    earlier = _earlier(state)
    if not state.dry_run:
        hub.claim_repo(state.family, private=state.private, marker=FRONT_FILE, access=state.access)
    members = {}
    with tqdm(chosen, desc="push", unit="configuration", disable=not progress) as bar:
        for point in bar:
            members[point.id] = _push_member(state, point)
    published = {**earlier, **{point.id: _publish(state, point, members[point.id]) for point in chosen}}
    collection = _collect(state, published)
    pushed = _push_family(state, published, collection)
    revision = pushed.revision if state.create_pr else state.branch
    return Publication(pushed, members, collection, revision, state.create_pr, state.dry_run)


def _push_member(state: _Push, point: FrontPoint) -> hub.Pushed:
    """Pushes one member folder, every file of it checked first."""
    member = Member(state.run / MEMBERS_FOLDER / point.id)
    files: dict[str, Path | bytes] = {**whole_files(member), MAP_FILE: member.folder / MAP_FILE}
    card = member_card(member.chain_map, state.front, state.report, state.origin, state.places)
    files |= {CARD_FILE: card.encode(), GROUPING_FILE: plot_grouping(state.front, [point])}
    return _send(state, state.places.members[point.id], files, MAP_FILE, (*MEMBER_FILES, GROUPING_FILE), tag=point.id)


def _push_family(state: _Push, published: Mapping[str, FrontPoint], collection: str | None) -> hub.Pushed:
    """Pushes front, recipe, card and plots: the commit with which loaders see this front."""
    front = _with(state.front, published)
    places = replace(state.places, collection=collection)
    listed = [point for point in front.points if point.repo is not None] or list(published.values())
    files: dict[str, Path | bytes] = {
        FRONT_FILE: fronts.dump(front),
        RECIPE_FILE: state.origin.recipe.encode(),
        CARD_FILE: family_card(front, state.report, state.origin, places).encode(),
        PLOT_FILE: plot_front(front, state.report),
        GROUPING_FILE: plot_grouping(front, listed),
    }
    if state.report is not None:
        files[REPORT_FILE] = results.dump(state.report)
    return _send(state, state.family, files, FRONT_FILE, _FAMILY_FILES)


def _send(
    state: _Push,
    repo: str,
    files: Mapping[str, Path | bytes],
    marker: str,
    owned: Sequence[str],
    tag: str | None = None,
) -> hub.Pushed:
    return hub.push_files(
        repo,
        files,
        message=f"Push {tag or 'the front'} with hf-merge",
        tag=tag,
        private=state.private,
        branch=state.branch,
        create_pr=state.create_pr,
        owned=owned,
        marker=marker,
        dry_run=state.dry_run,
        access=state.access,
    )


def _publish(state: _Push, point: FrontPoint, pushed: hub.Pushed) -> FrontPoint:
    """Returns a point that names what was pushed of it; in a dry run there may be no commit to name yet."""
    if not pushed.revision:
        return point
    digest = hashlib.sha256((state.run / MEMBERS_FOLDER / point.id / MAP_FILE).read_bytes()).hexdigest()
    return replace(point, repo=pushed.repo, revision=pushed.revision, map_sha256=digest)


def _earlier(state: _Push) -> dict[str, FrontPoint]:
    """Returns the points that the family names already, if it is of this very search: a push adds to them."""
    content = hub.read_file(state.family, FRONT_FILE, state.branch, access=state.access)
    if content is None:
        return {}
    try:
        there = fronts.parse(content)
    except UntrustedContentError as error:
        raise HubError(
            f"'{state.family}' holds a {FRONT_FILE} that cannot be read ({error}). Push to another name."
        ) from error
    points = {point.id: point for point in (*there.points, *there.controls.values()) if point.repo is not None}
    return points if _with(there, {}) == _with(state.front, {}) else {}


def _with(front: Front, published: Mapping[str, FrontPoint]) -> Front:
    """Returns a front whose points name what was published, and nothing else."""

    def named(point: FrontPoint) -> FrontPoint:
        return published.get(point.id, replace(point, repo=None, revision=None, map_sha256=None))

    controls = {name: named(point) for name, point in front.controls.items()}
    return replace(front, points=tuple(map(named, front.points)), controls=controls)


def _collect(state: _Push, published: Mapping[str, FrontPoint]) -> str | None:
    """Returns the slug of the collection that groups the family; a token without the right to make one is told so."""
    family = state.family
    namespace, name = family.split("/")
    if state.dry_run:
        return hub.find_collection(name, namespace, family, access=state.access)
    if state.create_pr:
        return None
    items = {family: "The family: load it with a budget."}
    items |= {point.repo: f"C = {point.cost:.4f}" for point in published.values() if point.repo is not None}
    try:
        return hub.make_collection(name, namespace, items, private=state.private, access=state.access)
    except HubError as error:
        logger.warning("No collection groups the repos: %s", error)
        return None
