"""Which configuration of a folder to load under a storage budget.

A folder is either one member (`chains.json`) or a family (`front.json` and `members/`), from which the best member
within the budget is taken.
"""

import re
from pathlib import Path

from hf_merge.errors import BudgetTooSmall, CheckpointDamaged, MalformedChainMap, RunFolderError
from hf_merge.merging.cost import parse_budget
from hf_merge.storing import front as fronts
from hf_merge.storing.chain_entries import CONFIG_FILE
from hf_merge.storing.library import MAP_FILE, Member
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import read_json


FRONT_FILE, MEMBERS_FOLDER = "front.json", "members"
_TASK_CLASS = re.compile(r"[A-Za-z0-9]{1,80}?(For[A-Z][A-Za-z]{1,80})")


def choose_member(folder: Path, budget: float | str | None) -> Member:
    """Returns the member of a folder to load: the folder itself, or the best-performing of a family within the budget.

    Args:
        folder: A member or family folder.
        budget: In units of one full-precision base model, or bytes as `"250MB"`; None is no limit.

    Raises:
        BudgetTooSmall: Nothing fits; the message names the cheapest.
        BudgetError: The budget is no storage size.
        RunFolderError: The folder is a run whose members were not built yet.
        CheckpointDamaged: The folder is neither member nor family.
        UntrustedContentError: A map breaks a rule of the format, or is not the one that the front speaks of.
    """
    if (folder / MAP_FILE).is_file():
        member = Member(folder)
        limit = parse_budget(budget, member.chain_map.base.parameters)
        if limit is not None and member.chain_map.cost > limit:
            raise BudgetTooSmall(limit, member.chain_map.cost, member.chain_map.id)
        return member
    if not (folder / FRONT_FILE).is_file():
        raise CheckpointDamaged(
            f"{folder} holds neither {MAP_FILE} nor {FRONT_FILE}, so hf-merge did not write it.{_other_loader(folder)}"
        )
    front = fronts.read(folder / FRONT_FILE)
    limit = parse_budget(budget, front.parameters)
    built = [point for point in front.points if (folder / MEMBERS_FOLDER / point.id / MAP_FILE).is_file()]
    if not built:
        raise RunFolderError(f"No configuration of {folder} is built yet. Run: hf-merge build {folder}")
    return _member_of(folder, fronts.within(built, limit))


def _member_of(folder: Path, point: fronts.FrontPoint) -> Member:
    member = Member(folder / MEMBERS_FOLDER / point.id)
    found = member.chain_map
    if (found.id, found.cost) != (point.id, point.cost):
        raise MalformedChainMap(
            f"{member.folder} holds {found.id} at cost {found.cost} where {FRONT_FILE} speaks of {point.id} at cost "
            f"{point.cost}. Build it again: hf-merge build {folder}"
        )
    return member


def _other_loader(folder: Path) -> str:
    """Returns the end of a message: what loads a folder that is not ours."""
    if (folder / "adapter_config.json").is_file():
        return " It is an adapter: load it with peft.AutoPeftModel.from_pretrained."
    if not (folder / CONFIG_FILE).is_file():
        return ""
    config = read_json(folder / CONFIG_FILE, LIMITS.config_bytes)
    names = config.get("architectures") if isinstance(config, dict) else None
    match = _TASK_CLASS.fullmatch(str(names[0])) if isinstance(names, list) and names else None
    return f" It is an ordinary model: load it with transformers.AutoModel{match[1] if match else ''}.from_pretrained."
