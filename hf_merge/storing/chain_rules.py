"""What must hold between the parts of a chain map: each rule is one function, each breach has its own message.

A map may be well-formed and still lie: a chain that lacks a component, an expert that serves a task it was not made
for. Whoever gets a map from `chains.parse` may rely on all of these rules.
"""

from collections import Counter
from collections.abc import Mapping

from hf_merge.errors import LimitExceeded, MalformedChainMap, UnsafeName
from hf_merge.storing.chain_entries import (
    CONFIG_FILE,
    LANGUAGE_TYPES,
    ORIGIN,
    ROUTER_FILE,
    SETTINGS_FILES,
    SHARD_NAME,
    TOKENIZER_FILES,
    ChainMap,
    ExpertEntry,
)
from hf_merge.storing.limits import LIMITS


def check(chain_map: ChainMap) -> None:
    """Refuses a chain map whose parts contradict each other.

    Raises:
        MalformedChainMap: A rule is broken; the message names the place.
        UnsafeName: A file of a name that this format does not know.
        LimitExceeded: A file is declared larger than its kind may be.
    """
    _check_files(chain_map)
    _check_components(chain_map)
    experts = _check_experts(chain_map)
    for task in chain_map.chains:
        _check_chain(chain_map, task, experts)
    _check_use(chain_map)
    _check_shards(chain_map)
    _check_tasks(chain_map)
    _check_heads(chain_map)


def _broken(place: str, reason: str) -> MalformedChainMap:
    return MalformedChainMap(f"{ORIGIN}: {place}: {reason}.")


def _check_files(chain_map: ChainMap) -> None:
    """Only files that this format knows, none larger than its kind may be."""
    for name, entry in chain_map.files.items():
        if name in SETTINGS_FILES:
            limit = LIMITS.config_bytes
        elif name in TOKENIZER_FILES:
            limit = LIMITS.tokenizer_bytes
        elif name == ROUTER_FILE or SHARD_NAME.fullmatch(name):
            continue
        else:
            raise UnsafeName(f"{ORIGIN}: files: '{name}' is no file that a member folder holds.")
        if entry.bytes > limit:
            raise LimitExceeded(f"{ORIGIN}: files.{name}: {entry.bytes} bytes where at most {limit} are read.")
    if CONFIG_FILE not in chain_map.files:
        raise _broken("files", f"lacks '{CONFIG_FILE}', without which no model can be built")


def _check_components(chain_map: ChainMap) -> None:
    """Distinct names, disjoint tensors, none named like a part of another."""
    owners: dict[str, str] = {}
    names: set[str] = set()
    for index, component in enumerate(chain_map.components):
        place = f"components[{index}]"
        if component.name in names:
            raise _broken(place, f"the component '{component.name}' is given twice")
        names.add(component.name)
        for tensor in component.tensors:
            if tensor in owners:
                raise _broken(place, f"the tensor '{tensor}' is already in component '{owners[tensor]}'")
            owners[tensor] = component.name
    for tensor in owners:
        whole, _, _ = tensor.rpartition(".")  # a part of whatever codec is its tensor's name, a dot and a word
        if whole in owners:
            raise _broken("components", f"'{tensor}' is named like a part of the quantised '{whole}'")


def _check_experts(chain_map: ChainMap) -> dict[str, ExpertEntry]:
    """Distinct experts of known components, tasks and files; returns them by id."""
    experts: dict[str, ExpertEntry] = {}
    components = {component.name for component in chain_map.components}
    for index, expert in enumerate(chain_map.experts):
        place = f"experts[{index}]"
        if expert.id in experts:
            raise _broken(f"{place}.id", f"the expert '{expert.id}' is given twice")
        experts[expert.id] = expert
        if expert.component not in components:
            raise _broken(f"{place}.component", f"there is no component '{expert.component}'")
        _check_members(chain_map, expert, f"{place}.members")
        if (expert.method is None) != (len(expert.members) <= 1):
            raise _broken(f"{place}.method", "must be null for one member or none, and name the method for several")
        if not SHARD_NAME.fullmatch(expert.file):
            raise _broken(f"{place}.file", f"'{expert.file}' is no shard of experts")
        if expert.file not in chain_map.files:
            raise _broken(f"{place}.file", f"'{expert.file}' is not in files, so nothing vouches for its bytes")
    for index, expert in enumerate(chain_map.experts):
        if expert.reference is not None:
            _check_reference(expert, experts, f"experts[{index}].reference")
    return experts


def _check_reference(expert: ExpertEntry, experts: Mapping[str, ExpertEntry], place: str) -> None:
    """A difference is one from a whole expert of the same component, which serves the same tasks and maybe more."""
    shared = experts.get(expert.reference or "")
    if shared is None:
        raise _broken(place, f"there is no expert '{expert.reference}'")
    if shared.component != expert.component:
        raise _broken(
            place, f"is an expert of component '{shared.component}' where one of '{expert.component}' must be"
        )
    if shared.reference is not None:
        raise _broken(place, f"'{shared.id}' is a difference itself")
    if shared.members and not set(expert.members) <= set(shared.members):
        stranger = next(task for task in expert.members if task not in shared.members)
        raise _broken(place, f"'{shared.id}' was not made for '{stranger}'")


def _check_members(chain_map: ChainMap, expert: ExpertEntry, place: str) -> None:
    unknown = next((task for task in expert.members if task not in chain_map.chains), None)
    if unknown is not None:
        raise _broken(place, f"'{unknown}' is no task of chains")
    if len(set(expert.members)) != len(expert.members):
        raise _broken(place, f"the task '{_doubled(expert.members)}' is given twice")


def _check_chain(chain_map: ChainMap, task: str, experts: Mapping[str, ExpertEntry]) -> None:
    """One expert for each component, in the components' order, each made for this task."""
    chain, place = chain_map.chains[task], f"chains.{task}"
    for identifier in chain:
        if identifier not in experts:
            raise _broken(place, f"there is no expert '{identifier}'")
        if experts[identifier].members and task not in experts[identifier].members:
            raise _broken(place, f"the expert '{identifier}' was not made for this task")
    wanted = [component.name for component in chain_map.components]
    given = [experts[identifier].component for identifier in chain]
    if given == wanted:
        return
    if len(set(given)) != len(given):
        raise _broken(place, f"the component '{_doubled(given)}' is given twice")
    missing = next((name for name in wanted if name not in set(given)), None)
    if missing is not None:
        raise _broken(place, f"lacks an expert for the component '{missing}'")
    index = next(index for index, name in enumerate(given) if name != wanted[index])
    raise _broken(
        f"{place}[{index}]", f"is an expert of component '{given[index]}' where one of '{wanted[index]}' must stand"
    )


def _check_use(chain_map: ChainMap) -> None:
    """Every expert is used, by each of its members; one without members, the base's own weights, by every task.

    What a used expert is the difference from is used as well.
    """
    used = {task: chain_map.experts_of([task]) for task in chain_map.chains}
    everywhere = set().union(*used.values())
    for index, expert in enumerate(chain_map.experts):
        if expert.id not in everywhere:
            raise _broken(
                f"experts[{index}]", f"the expert '{expert.id}' is in no chain, and no reference there names it"
            )
        idle = next((task for task in expert.members or used if expert.id not in used[task]), None)
        if idle is not None:
            raise _broken(f"experts[{index}].members", f"the chain of '{idle}' does not use '{expert.id}'")


def _check_shards(chain_map: ChainMap) -> None:
    """Shards numbered without gaps, each used, each large enough for its experts and heads."""
    held: Counter[str] = Counter()
    for expert in chain_map.experts:
        held[expert.file] += expert.bytes
    for head in chain_map.heads.values():
        held[head.file] += head.bytes
    shards = sorted(name for name in chain_map.files if SHARD_NAME.fullmatch(name))
    for number, name in enumerate(shards, start=1):
        expected = f"experts-{number:05}-of-{len(shards):05}.safetensors"
        if name != expected:
            raise _broken("files", f"has '{name}' where '{expected}' must stand: shards are numbered from 1")
        if name not in held:
            raise _broken(f"files.{name}", "holds no expert and no head")
        length = chain_map.files[name].bytes
        if held[name] >= length:
            raise _broken(
                f"files.{name}.bytes", f"is {length}, too few for the {held[name]} bytes of its experts and heads"
            )


def _check_tasks(chain_map: ChainMap) -> None:
    """Performance and metric for exactly the tasks of the chains; heads for all or none of them, wordings for all."""
    tasks = chain_map.chains.keys()
    speaks = chain_map.model.type in LANGUAGE_TYPES
    if chain_map.heads if speaks else chain_map.wordings:
        raise _broken("heads", f"are not those of a model of type '{chain_map.model.type}'")
    parts: dict[str, Mapping[str, object]] = {
        "performance": chain_map.performance,
        "metrics": chain_map.metrics,
        "heads": chain_map.wordings if speaks else chain_map.heads,
    }
    for place, given in parts.items():
        unknown = next((task for task in given if task not in tasks), None)
        if unknown is not None:
            raise _broken(place, f"'{unknown}' is no task of chains")
        missing = next((task for task in tasks if task not in given), None)
        if missing is not None and (place != "heads" or given or speaks):
            raise _broken(place, f"lacks the task '{missing}'")


def _check_heads(chain_map: ChainMap) -> None:
    """As many labels as logits, distinct tensors, and a shard that holds them."""
    for task, head in chain_map.heads.items():
        place = f"heads.{task}"
        if head.labels is not None and len(head.labels) != head.num_labels:
            raise _broken(f"{place}.labels", f"names {len(head.labels)} labels where num_labels is {head.num_labels}")
        if len(set(head.tensors)) != len(head.tensors):
            raise _broken(f"{place}.tensors", f"the tensor '{_doubled(head.tensors)}' is given twice")
        if not SHARD_NAME.fullmatch(head.file):
            raise _broken(f"{place}.file", f"'{head.file}' is no shard of experts and heads")
        if head.file not in chain_map.files:
            raise _broken(f"{place}.file", f"'{head.file}' is not in files, so nothing vouches for its bytes")


def _doubled(names: tuple[str, ...] | list[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)
