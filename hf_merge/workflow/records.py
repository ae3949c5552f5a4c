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
        sources: The SHA-256 of every checkpoint it began with, or None in a new journal.
        references: None where they were not measured yet.
        evaluations: In the order in which they were done.
    """

    sources: Mapping[str, str] | None
    references: References | None
    evaluations: tuple[Evaluated, ...]


def inputs_record(sources: Mapping[str, str]) -> dict[str, Any]:
    """Returns the first record of a journal: the SHA-256 of every checkpoint, by `base` and `task <name>`."""
    return {"kind": _INPUTS, "sources": dict(sources)}


def read_history(records: Iterable[Mapping[str, JsonValue]], origin: str) -> History:
    """Returns what a journal's records say; `origin` names the journal in messages.

    Raises:
        RunFolderError: A record is none that a search writes.
    """
    sources: dict[str, str] | None = None
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
                sources = _sources(top)
        except UntrustedContentError as error:
            raise RunFolderError(f"{error} Another version wrote it? Search again into another folder.") from error
    return History(sources, references, tuple(evaluations))


def _sources(top: Field) -> dict[str, str]:
    fields = top.record(("kind", "sources"))
    fields["kind"].choice((_INPUTS,))
    value = fields["sources"].value
    if not isinstance(value, dict):
        raise fields["sources"].refusal("is no object")
    return {name: Field(item, top.origin, f"sources.{name}").text() for name, item in value.items()}


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
