"""What a search notes in its journal, as data and as records (docs/format.md); read as strictly as everything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_merge.errors import RunFolderError, UntrustedContentError
from hf_merge.merging.grouping import Grouping
from hf_merge.storing.json_fields import Field
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import JsonValue


_INPUTS, _REFERENCES, _EVALUATION = "inputs", "references", "evaluation"


@dataclass(frozen=True)
class Inputs:
    """What decides every score of a run, beside its recipe.

    Attributes:
        sources: The SHA-256 of every checkpoint's weights, by `base` and `task <name>`.
        rows: The SHA-256 of every task's search rows, as `Rows.digest` tells it, by task.
    """

    sources: Mapping[str, str]
    rows: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """Returns the record to append."""
        return {"kind": _INPUTS, "sources": dict(self.sources), "rows": dict(self.rows)}

    def require_same(self, found: "Inputs", origin: str) -> None:
        """Checks that what is there now is what a run began with; `origin` names its journal.

        Raises:
            RunFolderError: Weights or rows are others.
        """
        changed = [name for name, digest in found.sources.items() if self.sources.get(name) != digest]
        if changed:
            raise RunFolderError(
                f"{origin}: the checkpoint of {', '.join(changed)} is not the one that this run began with "
                "(its weights have another SHA-256). Search again into another folder."
            )
        changed = [f"'{name}'" for name, digest in found.rows.items() if self.rows.get(name) != digest]
        if changed:
            raise RunFolderError(
                f"{origin}: the validation rows of task {', '.join(changed)} are not those that this run began with "
                "(other contents or labels, or drawn otherwise). Put the data back as they were, or search again into "
                "another folder."
            )


@dataclass(frozen=True)
class References:
    """The scores that bound a front, by task: the fine-tunes' own, and the base's under each task's head."""

    individual: Mapping[str, float]
    pretrained: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Returns the record to append."""
        return {"kind": _REFERENCES, "individual": dict(self.individual), "pretrained": dict(self.pretrained)}


@dataclass(frozen=True)
class Evaluated:
    """One real evaluation.

    Attributes:
        number: 1, 2, 3 and so on.
        grouping: The configuration's groups.
        methods: The numbers of its methods; empty where there is one for all.
        codecs: The same of its codecs.
        cost: C, exact.
        performance: P.
        scores: The metric of every task.
        experts: What each expert takes, in full-precision parameters, by expert id.
    """

    number: int
    grouping: Grouping
    cost: float
    performance: float
    scores: Mapping[str, float]
    experts: Mapping[str, float]
    methods: tuple[int, ...] = ()
    codecs: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns the record to append."""
        return {
            "kind": _EVALUATION,
            "number": self.number,
            "grouping": [list(column) for column in self.grouping],
            "cost": self.cost,
            "performance": self.performance,
            "scores": dict(self.scores),
            "experts": dict(self.experts),
            **({"methods": list(self.methods)} if self.methods else {}),
            **({"codecs": list(self.codecs)} if self.codecs else {}),
        }


@dataclass(frozen=True)
class History:
    """What an earlier part of a run left.

    Attributes:
        inputs: What it began with, or None in a new journal.
        references: None where they were not measured yet.
        evaluations: In the order in which they were done.
    """

    inputs: Inputs | None
    references: References | None
    evaluations: tuple[Evaluated, ...]


def read_history(records: Iterable[Mapping[str, JsonValue]], origin: str) -> History:
    """Returns what a journal's records say; `origin` names the journal in messages.

    Raises:
        RunFolderError: A record is none that a search writes.
    """
    inputs: Inputs | None = None
    references: References | None = None
    evaluations: list[Evaluated] = []
    for index, record in enumerate(records):
        top = Field(dict(record), f"{origin}, line {index + 1}")
        try:
            if record.get("kind") == _EVALUATION:
                evaluations.append(_evaluated(top))
            elif record.get("kind") == _REFERENCES:
                references = _references(top)
            else:
                inputs = _inputs(top)
        except UntrustedContentError as error:
            raise RunFolderError(f"{error} Another version wrote it? Search again into another folder.") from error
    return History(inputs, references, tuple(evaluations))


def _inputs(top: Field) -> Inputs:
    fields = top.record(("kind", "sources", "rows"))
    fields["kind"].choice((_INPUTS,))
    return Inputs(_digests(fields["sources"]), _digests(fields["rows"]))


def _digests(field: Field) -> dict[str, str]:
    if not isinstance(field.value, dict):
        raise field.refusal("is no object")
    return {name: Field(item, field.origin, f"{field.path}.{name}").text() for name, item in field.value.items()}


def _references(top: Field) -> References:
    fields = top.record(("kind", "individual", "pretrained"))
    return References(_numbers(fields["individual"], LIMITS.chains), _numbers(fields["pretrained"], LIMITS.chains))


def _evaluated(top: Field) -> Evaluated:
    fields = top.record(("kind", *Evaluated.__dataclass_fields__), optional=("methods", "codecs"))
    chosen = {
        name: tuple(number.integer(0) for number in fields[name].items(LIMITS.components)) if name in fields else ()
        for name in ("methods", "codecs")
    }
    columns = [column.items(LIMITS.chains) for column in fields["grouping"].items(LIMITS.components)]
    return Evaluated(
        number=fields["number"].integer(1),
        grouping=tuple(tuple(label.integer(0, LIMITS.chains) for label in column) for column in columns),
        cost=fields["cost"].number(),
        performance=fields["performance"].number(),
        scores=_numbers(fields["scores"], LIMITS.chains),
        experts=_numbers(fields["experts"], LIMITS.experts),
        **chosen,
    )


def _numbers(field: Field, limit: int) -> dict[str, float]:
    return {name: item.number() for name, item in field.mapping(limit).items()}
