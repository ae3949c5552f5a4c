"""Which configuration to load under a storage budget, and no more of it than is needed.

A source is a folder or a repo on the Hub, and either one member (`chains.json`) or a family (`front.json`): of a
family the best member within the budget is taken, from `members/` beside its front or from the repo and commit that
the front names. From the Hub come first the maps, a few kilobytes, and then exactly the files that the chosen tasks
need.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hf_merge.errors import (
    BudgetTooSmall,
    CheckpointDamaged,
    HubError,
    MalformedChainMap,
    PickleRefused,
    RunFolderError,
)
from hf_merge.merging.cost import parse_budget
from hf_merge.storing import front as fronts
from hf_merge.storing import hub
from hf_merge.storing.chain_entries import CONFIG_FILE
from hf_merge.storing.hub.pulling import NotThere
from hf_merge.storing.library import MAP_FILE, Member
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.member_files import CARD_FILE
from hf_merge.storing.repo_files import PICKLE_FILES, WEIGHT_FILES, matching
from hf_merge.storing.sources import local_folder
from hf_merge.storing.strict_json import quote, read_json


FRONT_FILE, MEMBERS_FOLDER = "front.json", "members"
_ADAPTER_FILE = "adapter_config.json"
_MAPS = (MAP_FILE, FRONT_FILE, CONFIG_FILE, _ADAPTER_FILE)
_TASK_CLASS = re.compile(r"[A-Za-z0-9]{1,80}?(For[A-Z][A-Za-z]{1,80})")


@dataclass(frozen=True)
class _Place:
    """Where a member or a family lies.

    Attributes:
        name: What messages call it.
        folder: The local folder, or the one that the first files of the repo were pulled into.
        repo: The repo, or None for a local folder.
    """

    name: str
    folder: Path
    repo: hub.Repo | None

    def holds(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def member_folder(self, point: fronts.FrontPoint) -> Path:
        return self.folder / MEMBERS_FOLDER / point.id

    def has_built(self, point: fronts.FrontPoint) -> bool:
        return self.repo is None and (self.member_folder(point) / MAP_FILE).is_file()

    def listing(self) -> list[str]:
        """Returns the names of its files, none where that is not known."""
        if self.repo is not None:
            return self.repo.listing() or []
        return [path.name for path in self.folder.iterdir()]


def open_member(
    source: str | os.PathLike[str],
    budget: float | str | None = None,
    *,
    revision: str | None = None,
    tasks: Sequence[str] | None = None,
    access: hub.Access = hub.AS_USUAL,
) -> Member:
    """Returns the member to load: the source itself, or the best-performing of a family within the budget.

    Its map is read and checked. The other files that its tasks need are there, but are not compared with the map yet.

    Args:
        source: A member or family folder, or a Hub repo of either.
        budget: In units of one full-precision base model, or bytes as `"250MB"`; None is no limit. It limits what the
            whole configuration takes, whatever the tasks.
        revision: Branch, tag or commit of a Hub repo; without meaning for a folder.
        tasks: The tasks to load, None for all; they do not change which configuration is chosen.
        access: How to reach the Hub.

    Raises:
        BudgetTooSmall: Nothing fits; the message names the cheapest.
        BudgetError: The budget is no storage size.
        InputError: The source is neither a folder nor a Hub id, or a task is unknown or named twice.
        RunFolderError: The folder is a run whose members were not built yet.
        CheckpointDamaged: The source is neither member nor family; the message says what loads it.
        PickleRefused: The same, and all its weights are pickles.
        UntrustedContentError: A map breaks a rule of the format, or is not the one that the front speaks of.
        HubError: The Hub does not have it, refuses it or cannot be reached, or we are offline and the cache lacks it.
        ResourceError: The files cannot be written.
    """
    name = os.fspath(source)
    folder = local_folder(name)
    if folder is not None:
        place = _Place(name, folder, None)
    else:
        repo = hub.Repo(name, revision, access)
        place = _Place(f"'{name}' at {repo.revision[:12]}", repo.pull(_MAPS), repo)
    if place.holds(MAP_FILE):
        return _affordable(place, budget, tasks)
    if place.holds(FRONT_FILE):
        return _of_family(place, budget, tasks, access)
    raise _no_member(place)


def _affordable(place: _Place, budget: float | str | None, tasks: Sequence[str] | None) -> Member:
    """Returns a member that was named itself, if it is within the budget."""
    member = Member(place.folder, tasks, source=place.name)
    limit = parse_budget(budget, member.chain_map.base.parameters)
    if limit is not None and member.chain_map.cost > limit:
        raise BudgetTooSmall(limit, member.chain_map.cost, member.chain_map.id)
    if place.repo is not None:
        _pull_files(place.repo, member)
    return member


def _of_family(place: _Place, budget: float | str | None, tasks: Sequence[str] | None, access: hub.Access) -> Member:
    """Returns the best member of a family within the budget, of those that were built here or published."""
    front = fronts.read(place.folder / FRONT_FILE)
    limit = parse_budget(budget, front.parameters)
    offered = [point for point in front.points if point.repo is not None or place.has_built(point)]
    if not offered:
        raise _nothing_offered(place)
    point = fronts.within(offered, limit)
    if not place.has_built(point):
        return _published(place, point, tasks, access)
    member = Member(place.member_folder(point), tasks, map_sha256=point.map_sha256)
    _require_same(member, point)
    return member


def _published(place: _Place, point: fronts.FrontPoint, tasks: Sequence[str] | None, access: hub.Access) -> Member:
    """Returns the member that a front names on the Hub; a local folder of that name is none of our business."""
    if point.repo is None or point.revision is None:
        raise RuntimeError("A point that is offered is built or published.")
    source = f"'{point.repo}' at {point.revision[:12]}"
    repo = hub.Repo(point.repo, point.revision, access)
    try:
        member = Member(repo.pull((MAP_FILE,)), tasks, source=source, map_sha256=point.map_sha256)
        _require_same(member, point)
        _pull_files(repo, member)
    except HubError as error:
        raise HubError(f"The family {place.name} keeps {point.id} in {source}. {error}{_gone(error)}") from error
    return member


def _gone(error: HubError) -> str:
    """Returns the end of a message: what to do about a member that was deleted or overwritten after its push."""
    if not isinstance(error, NotThere):
        return ""
    return " If it was deleted, another budget takes another member, and hf-merge push restores it."


def _pull_files(repo: hub.Repo, member: Member) -> None:
    """Pulls what the member needs into its folder, which is that of its commit; with a whole one comes its card."""
    repo.pull(member.files)
    if member.tasks == member.chain_map.tasks:
        with suppress(HubError):  # a card is worth having for whoever saves the member, but nothing is loaded from it
            repo.pull((CARD_FILE,))


def _require_same(member: Member, point: fronts.FrontPoint) -> None:
    """Raises MalformedChainMap where a member is not the one that the front speaks of."""
    found = member.chain_map
    if (found.id, found.cost) != (point.id, point.cost):
        raise MalformedChainMap(
            f"{member.source} holds {found.id} at cost {found.cost} where {FRONT_FILE} speaks of {point.id} at cost "
            f"{point.cost}. Build and push it again."
        )


def _nothing_offered(place: _Place) -> CheckpointDamaged | RunFolderError:
    """Returns the error for a front of which no configuration was built or pushed."""
    if place.repo is None:
        return RunFolderError(f"No configuration of {place.name} is built yet. Run: hf-merge build {place.name}")
    return CheckpointDamaged(
        f"The {FRONT_FILE} of {place.name} names no member repo, so there is nothing to load. Publish the run: "
        f"hf-merge push RUN {place.repo.name}"
    )


def _no_member(place: _Place) -> CheckpointDamaged | PickleRefused:
    """Returns the error for what hf-merge did not write: what it is, and what loads it."""
    names = place.listing()
    if place.repo is not None and not any(name for name in names if not name.startswith(".")):
        return CheckpointDamaged(
            f"{place.name} is empty: its push has not ended. Who pushed it runs the same hf-merge push again."
        )
    text = (
        f"{place.name} holds neither {MAP_FILE} nor {FRONT_FILE}, so hf-merge did not write it.{_other_loader(place)}"
    )
    pickles = matching(names, PICKLE_FILES)
    if pickles and not matching(names, WEIGHT_FILES):
        return PickleRefused(
            f"{text} Its weights are pickles ({quote(pickles[0])[1:-1]}), which can run code when opened."
        )
    return CheckpointDamaged(text)


def _other_loader(place: _Place) -> str:
    """Returns the end of a message: what loads a place that is not ours."""
    if place.holds(_ADAPTER_FILE):
        return " It is an adapter: load it with peft.AutoPeftModel.from_pretrained."
    if not place.holds(CONFIG_FILE):
        return ""
    config = read_json(place.folder / CONFIG_FILE, LIMITS.config_bytes)
    names = config.get("architectures") if isinstance(config, dict) else None
    match = _TASK_CLASS.fullmatch(str(names[0])) if isinstance(names, list) and names else None
    return f" It is an ordinary model: load it with transformers.AutoModel{match[1] if match else ''}.from_pretrained."
