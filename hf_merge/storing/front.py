"""`front.json`: the Pareto front of one search, with its controls, as strict data; no torch.

The file says which configurations a family offers, what each costs and scores on the validation rows, and against
which reference its hypervolume was measured. Whoever has a budget chooses a point here. See docs/format.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hf_merge.errors import BudgetTooSmall, MalformedChainMap, UnsafeName
from hf_merge.merging.components import BASE
from hf_merge.merging.grouping import Grouping, Partition, is_canonical
from hf_merge.storing import disk
from hf_merge.storing.json_fields import Field
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.ordering import in_order, named_first
from hf_merge.storing.sources import FULL_HUB_ID
from hf_merge.storing.strict_json import dumps, loads


FORMAT_VERSION = 1
ORIGIN = "front.json"
_MOST_SETTINGS, _MOST_CONTROLS = 64, 8
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PUBLISHED = ("repo", "revision", "map_sha256")
_CHOICES = ("methods", "codecs")  # written where components differ from the front's own


@dataclass(frozen=True)
class FrontPoint:
    """One configuration of the front.

    Attributes:
        id: The configuration's name, and the name of its member folder.
        cost: C, exact.
        performance: P, the mean of the tasks' metrics on validation rows, with the task known; weighted where the
            search had a `deviation`.
        normalised: The mean over tasks of the metric over the fine-tune's own.
        scores: The metric of every task.
        grouping: Per component, the group of every task (canonical form).
        repo: The Hub id of its member repo, or None where it was not pushed.
        revision: The commit of that repo at which the member is whole; None with `repo`.
        map_sha256: SHA-256 of the `chains.json` at that commit; None with `repo`.
        methods: For each component the merge method with every hyperparameter; None where it is the front's own
            everywhere, and then not written.
        codecs: The same of codecs.
    """

    id: str
    cost: float
    performance: float
    normalised: float
    scores: Mapping[str, float]
    grouping: Grouping
    repo: str | None = None
    revision: str | None = None
    map_sha256: str | None = None
    methods: tuple[Mapping[str, Any], ...] | None = None
    codecs: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class Front:
    """A Pareto front and what it was measured on.

    Attributes:
        base: Hub id or path of the base.
        revision: The base's commit, or None for a local folder.
        base_sha256: SHA-256 over the weight files of the base.
        task_sha256: The same of every task's checkpoint.
        parameters: d, the parameters of the base backbone as saved.
        granularity: How components were cut.
        components: The components' names.
        tasks: The tasks' names with their metrics.
        method: The merge method with every hyperparameter.
        codec: The codec with every setting.
        dtype: What the search computed in.
        individual: The fine-tunes' own scores at full precision.
        pretrained: The base's scores under each task's head.
        reference: The hypervolume's reference point: cost and performance.
        hypervolume: Of the front, in [0, 1].
        history: Real evaluations done and hypervolume reached, per generation.
        points: The front, by rising cost.
        controls: `all-merged` and `all-separate`, whether or not they lie on the front.
    """

    base: str
    revision: str | None
    base_sha256: str
    task_sha256: Mapping[str, str]
    parameters: int
    granularity: str
    components: tuple[str, ...]
    tasks: Mapping[str, str]
    method: Mapping[str, Any]
    codec: Mapping[str, Any]
    dtype: str
    individual: Mapping[str, float]
    pretrained: Mapping[str, float]
    reference: tuple[float, float]
    hypervolume: float
    history: tuple[tuple[int, float], ...]
    points: tuple[FrontPoint, ...]
    controls: Mapping[str, FrontPoint]

    @property
    def whole_models(self) -> int:
        """How many whole models the fine-tunes take as they are: one each, or one for all adapters together."""
        return 1 if BASE in self.components else len(self.tasks)

    def point(self, identifier: str) -> FrontPoint | None:
        """Returns the point or control of that id, or None."""
        return next((point for point in (*self.points, *self.controls.values()) if point.id == identifier), None)


def within(points: Sequence[FrontPoint], budget: float | None) -> FrontPoint:
    """Returns the best-performing of `points` with cost <= `budget`; ties go to the cheaper. None is no limit.

    Raises:
        BudgetTooSmall: Every point costs more.
    """
    affordable = [point for point in points if budget is None or point.cost <= budget]
    if not affordable:
        least = min(points, key=lambda point: point.cost)
        raise BudgetTooSmall(budget or 0.0, least.cost, least.id)
    return min(affordable, key=lambda point: (-point.performance, point.cost))


def dump(front: Front) -> bytes:
    """Returns the bytes of `front.json`: the same for equal fronts, and always what `parse` reads.

    Raises:
        UntrustedContentError: The front breaks a rule of the format, as `parse` says.
    """
    tasks = list(front.tasks)
    document = {
        "format_version": FORMAT_VERSION,
        "base": front.base,
        "revision": front.revision,
        "base_sha256": front.base_sha256,
        "task_sha256": in_order(front.task_sha256, tasks),
        "parameters": front.parameters,
        "granularity": front.granularity,
        "components": front.components,
        "tasks": front.tasks,
        "method": named_first(front.method),
        "codec": named_first(front.codec),
        "dtype": front.dtype,
        "individual": in_order(front.individual, tasks),
        "pretrained": in_order(front.pretrained, tasks),
        "reference": {"cost": front.reference[0], "performance": front.reference[1]},
        "hypervolume": front.hypervolume,
        "history": [{"evaluations": count, "hypervolume": value} for count, value in front.history],
        "points": [_point_document(point, front) for point in front.points],
        "controls": {name: _point_document(front.controls[name], front) for name in sorted(front.controls)},
    }
    try:
        data = dumps(document, indent=1)
    except ValueError as error:
        raise MalformedChainMap(f"{ORIGIN}: cannot be written: {error}.") from error
    parse(data)  # what we publish must be what everyone else can read
    return data


def read(path: Path) -> Front:
    """Returns the front in a `front.json`, of which at most the limit is read.

    Raises:
        UntrustedContentError: It breaks a rule of the format, as `parse` says.
        ResourceError: It cannot be read.
    """
    with disk.naming(path), path.open("rb") as file:
        return parse(file.read(LIMITS.front_bytes + 1))


def parse(data: bytes) -> Front:
    """Returns the front in the bytes of a `front.json`.

    Raises:
        UnknownFormatVersion: They were written in another version of the format.
        MalformedChainMap: They break a rule of the format; the message names the place.
        UnsafeName: A name is not one that we would ever write.
        LimitExceeded: Something in them is larger than its limit.
    """
    top = Field(loads(data, ORIGIN, limit_bytes=LIMITS.front_bytes), ORIGIN)
    top.check_version(FORMAT_VERSION)
    fields = top.record(("format_version", *Front.__dataclass_fields__))
    fields["format_version"].integer(FORMAT_VERSION, FORMAT_VERSION)
    components = tuple(item.name() for item in fields["components"].items(LIMITS.components))
    tasks = {name: field.text() for name, field in fields["tasks"].mapping(LIMITS.chains).items()}
    if len(set(components)) < len(components):
        raise fields["components"].refusal("names a component twice")
    if not tasks:
        raise fields["tasks"].refusal("is empty")
    reference = fields["reference"].record(("cost", "performance"))
    controls = fields["controls"].mapping(_MOST_CONTROLS)
    return Front(
        base=fields["base"].text(),
        revision=_or_none(fields["revision"], _commit),
        base_sha256=_digest(fields["base_sha256"]),
        task_sha256={task: _digest(field) for task, field in fields["task_sha256"].record(tuple(tasks)).items()},
        parameters=fields["parameters"].integer(1),
        granularity=fields["granularity"].name(),
        components=components,
        tasks=tasks,
        method=_settings(fields["method"]),
        codec=_settings(fields["codec"]),
        dtype=fields["dtype"].choice(("float32", "bfloat16")),
        individual=_scores(fields["individual"], tasks),
        pretrained=_scores(fields["pretrained"], tasks),
        reference=(reference["cost"].number(), reference["performance"].number()),
        hypervolume=fields["hypervolume"].number(),
        history=tuple(_history(item) for item in fields["history"].items(LIMITS.experts)),
        points=_points(fields["points"], components, tasks),
        controls={name: _point(item, components, tasks) for name, item in controls.items()},
    )


def _or_none(field: Field, read: Callable[[Field], str]) -> str | None:
    return None if field.value is None else read(field)


def _commit(field: Field) -> str:
    return field.match(_COMMIT, "is no commit of 40 hex digits, nor null")


def _digest(field: Field) -> str:
    return field.match(_DIGEST, "is no SHA-256 of 64 hex digits")


def _repo(field: Field) -> str:
    return field.match(FULL_HUB_ID, "is no repo on the Hub (org/name), nor null", UnsafeName)


def _points(field: Field, components: Sequence[str], tasks: Mapping[str, str]) -> tuple[FrontPoint, ...]:
    points = tuple(_point(item, components, tasks) for item in field.items(LIMITS.experts))
    if len({point.id for point in points}) < len(points):
        raise field.refusal("gives two configurations one id")
    if any(first.cost > second.cost for first, second in pairwise(points)):
        raise field.refusal("does not stand by rising cost")
    return points


def _point(field: Field, components: Sequence[str], tasks: Mapping[str, str]) -> FrontPoint:
    parts = field.record(tuple(FrontPoint.__dataclass_fields__), optional=_CHOICES)
    columns = parts["grouping"].record(components)
    published = [name for name in _PUBLISHED if parts[name].value is not None]
    if published and len(published) < len(_PUBLISHED):
        raise field.refusal(f"gives {published[0]} and leaves others of {', '.join(_PUBLISHED)} null")
    return FrontPoint(
        id=parts["id"].name(),
        cost=parts["cost"].cost(),
        performance=parts["performance"].number(),
        normalised=parts["normalised"].number(),
        scores=_scores(parts["scores"], tasks),
        grouping=tuple(_partition(columns[name], len(tasks)) for name in components),
        repo=_or_none(parts["repo"], _repo),
        revision=_or_none(parts["revision"], _commit),
        map_sha256=_or_none(parts["map_sha256"], _digest),
        **{name: _choices(parts[name], components) if name in parts else None for name in _CHOICES},
    )


def _choices(field: Field, components: Sequence[str]) -> tuple[Mapping[str, Any], ...]:
    parts = field.record(components)
    return tuple(_settings(parts[name]) for name in components)


def _partition(field: Field, tasks: int) -> Partition:
    labels = tuple(item.integer(0, tasks - 1) for item in field.items(tasks))
    if len(labels) != tasks or not is_canonical(labels):
        raise field.refusal(f"is no partition of {tasks} tasks in canonical form")
    return labels


def _scores(field: Field, tasks: Mapping[str, str]) -> dict[str, float]:
    return {name: item.number() for name, item in field.record(tuple(tasks)).items()}


def _settings(field: Field) -> dict[str, Any]:
    fields = field.mapping(_MOST_SETTINGS)
    if "name" not in fields:
        raise field.refusal("lacks 'name'")
    settings: dict[str, Any] = {"name": fields.pop("name").name()}
    for key, item in fields.items():
        settings[key] = item.text() if isinstance(item.value, str) else item.number()
    return settings


def _history(field: Field) -> tuple[int, float]:
    parts = field.record(("evaluations", "hypervolume"))
    return parts["evaluations"].integer(0), parts["hypervolume"].number()


def _point_document(point: FrontPoint, front: Front) -> dict[str, Any]:
    grouping = dict(zip(front.components, point.grouping, strict=True))
    document = vars(point) | {"scores": in_order(point.scores, list(front.tasks)), "grouping": grouping}
    for label in _CHOICES:
        chosen = document.pop(label)
        if chosen is not None:
            named = zip(front.components, chosen, strict=True)
            document[label] = {name: named_first(entry) for name, entry in named}
    return document
