"""`report.json`: what configurations score on test rows, as strict data; no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_merge.errors import MalformedChainMap
from hf_merge.storing import disk
from hf_merge.storing.json_fields import Field
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import dumps, loads


ORIGIN = "report.json"
ROLES = ("front", "all-merged", "all-separate", "individual", "member")


@dataclass(frozen=True)
class Scores:
    """What one configuration scores on test rows.

    Attributes:
        id: The configuration, or `individual` for the fine-tunes at full precision.
        role: `front`, `all-merged`, `all-separate`, `individual` or `member`.
        cost: C.
        validation: P on the validation rows that the search saw.
        oracle: P on test rows, the task known.
        routed: P on test rows, the task found by the router; None without routing.
        oracle_normalised: Mean over tasks of the oracle score over the fine-tune's own; None where not measured.
        routed_normalised: The same for the routed scores.
        oracle_scores: The oracle score of every task.
        routed_scores: The routed score of every task; empty without routing.
    """

    id: str
    role: str
    cost: float
    validation: float
    oracle: float
    routed: float | None
    oracle_normalised: float | None
    routed_normalised: float | None
    oracle_scores: Mapping[str, float]
    routed_scores: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The test table of a run.

    Attributes:
        rows: The fine-tunes, both controls, and the front by rising cost.
        router_accuracy: The share of each task's test rows that the router sends to it.
        test_rows: How many test rows each task has.
    """

    rows: tuple[Scores, ...]
    router_accuracy: Mapping[str, float]
    test_rows: Mapping[str, int]

    def scores(self, identifier: str) -> Scores | None:
        """Returns the row of a configuration, or of `individual`; None where it was not measured."""
        return next((row for row in self.rows if row.id == identifier), None)


def dump(report: Report) -> bytes:
    """Returns the bytes of `report.json`: the same for equal reports, and always what `parse` reads.

    Raises:
        UntrustedContentError: The report breaks a rule of the format, as `parse` says.
    """
    try:
        data = dumps(asdict(report), indent=1)
    except ValueError as error:
        raise MalformedChainMap(f"{ORIGIN}: cannot be written: {error}.") from error
    parse(data)  # what we publish must be what everyone else can read
    return data


def read(path: Path) -> Report:
    """Returns the report in a `report.json`, of which at most the limit is read.

    Raises:
        UntrustedContentError: It breaks a rule of the format, as `parse` says.
        ResourceError: It cannot be read.
    """
    with disk.naming(path), path.open("rb") as file:
        return parse(file.read(LIMITS.front_bytes + 1))


def parse(data: bytes) -> Report:
    """Returns the report in the bytes of a `report.json`.

    Raises:
        MalformedChainMap: They break a rule of the format; the message names the place.
        UnsafeName: A name is not one that we would ever write.
        LimitExceeded: Something in them is larger than its limit.
    """
    top = Field(loads(data, ORIGIN, limit_bytes=LIMITS.front_bytes), ORIGIN)
    fields = top.record(tuple(Report.__dataclass_fields__))
    rows = {task: field.integer(1) for task, field in fields["test_rows"].mapping(LIMITS.chains).items()}
    if not rows:
        raise fields["test_rows"].refusal("is empty")
    accuracy = fields["router_accuracy"].record(tuple(rows))
    found = tuple(_scores(field, rows) for field in fields["rows"].items(LIMITS.experts))
    return Report(found, {task: _share(accuracy[task]) for task in rows}, rows)


def _scores(field: Field, tasks: Mapping[str, int]) -> Scores:
    parts = field.record(tuple(Scores.__dataclass_fields__))
    routed = _optional(parts["routed"])
    routed_scores = {} if routed is None else _by_task(parts["routed_scores"], tasks)
    if routed is None and parts["routed_scores"].value != {}:
        raise parts["routed_scores"].refusal("gives scores where routed is null")
    return Scores(
        id=parts["id"].name(),
        role=parts["role"].choice(ROLES),
        cost=parts["cost"].cost(),
        validation=parts["validation"].number(),
        oracle=parts["oracle"].number(),
        routed=routed,
        oracle_normalised=_optional(parts["oracle_normalised"]),
        routed_normalised=_optional(parts["routed_normalised"]),
        oracle_scores=_by_task(parts["oracle_scores"], tasks),
        routed_scores=routed_scores,
    )


def _by_task(field: Field, tasks: Mapping[str, int]) -> dict[str, float]:
    scores = field.record(tuple(tasks))
    return {task: scores[task].number() for task in tasks}


def _share(field: Field) -> float:
    share = field.number()
    if not 0 <= share <= 1:
        raise field.refusal(f"is {share}, not in 0 to 1")
    return share


def _optional(field: Field) -> float | None:
    return None if field.value is None else field.number()
