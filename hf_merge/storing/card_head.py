"""The head of a card, which the Hub reads: what a family is made from, its licence, and its test scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hf_merge.errors import LimitExceeded, MalformedChainMap
from hf_merge.recipe import Recipe
from hf_merge.storing import disk
from hf_merge.storing.front import Front
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.member_files import CARD_FILE
from hf_merge.storing.provenance import OTHER, Origin, Places, licence_of
from hf_merge.storing.results import Report, Scores


PAPER = "2602.06552"
ORACLE, ROUTED = "oracle", "routed"
_WAYS = {ORACLE: "task known", ROUTED: "task routed"}
_METRICS = {"matthews": "matthews_correlation"}
_TAGS = ("merge", "hf-merge", "model-merging", f"arxiv:{PAPER}")
_MOST_RESULTS, _MOST_VALUES = LIMITS.chains, 16


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        front: The front.
        report: What it scores on test rows, if that was measured.
        origin: What it was made from.
        places: Where it is.
        recipe: The recipe, read.
        title: What stands at the top.
        scored: The configuration whose test results the head gives.
        config: The configuration that the card is about, or None for a family.
    """

    front: Front
    report: Report | None
    origin: Origin
    places: Places
    recipe: Recipe
    title: str
    scored: str
    config: str | None

    @property
    def image(self) -> bool:
        """Whether the tasks read images."""
        return any(task.data.image is not None for task in self.recipe.tasks)

    @property
    def audio(self) -> bool:
        """Whether the tasks read sounds."""
        return any(task.data.audio is not None for task in self.recipe.tasks)


def metadata(subject: Subject) -> ModelCardData:
    """Returns the head of a card."""
    origin, licence = subject.origin, licence_of(subject.origin)
    scores = None if subject.report is None else subject.report.scores(subject.scored)
    results = [] if scores is None else _results(subject, scores)
    return ModelCardData(
        library_name="hf-merge",
        pipeline_tag=_pipeline(subject),
        tags=list(_TAGS),
        base_model=origin.on_the_hub or None,
        base_model_relation="merge" if origin.on_the_hub else None,
        datasets=list(origin.datasets) or None,
        license=licence.id,
        license_name=licence.name,
        metrics=list(dict.fromkeys(_METRICS.get(metric, metric) for metric in subject.front.tasks.values())),
        model_name=f"{subject.title}, {subject.scored}" if results else None,
        eval_results=results or None,
    )


def _results(subject: Subject, scores: Scores) -> list[EvalResult]:
    """Returns the test results of a configuration, every value a plain float: the Hub reads no other."""
    results: list[EvalResult] = []
    taken: set[tuple[str, str]] = set()
    for task in subject.recipe.tasks:
        name, data = task.name, task.data
        known = data.path in subject.origin.datasets
        kind, config = (data.path, data.name or "default") if known else ("local-files", name)
        # huggingface_hub puts results of one data set and configuration together, so two tasks must differ in these.
        config = f"{config}, {name}" if (kind, config) in taken else config
        taken.add((kind, config))
        values = {ORACLE: scores.oracle_scores.get(name), ROUTED: scores.routed_scores.get(name)}
        results += [
            EvalResult(
                task_type=_pipeline(subject),
                task_name=name,
                dataset_type=kind,
                dataset_name=data.path if known else name,
                dataset_config=config,
                dataset_split=data.splits.get("test", "test"),
                dataset_revision=data.revision if known else None,
                metric_type=_METRICS.get(task.metric, task.metric),
                metric_name=f"{task.metric} ({_WAYS[way]})",
                metric_value=float(value),
            )
            for way, value in values.items()
            if value is not None
        ]
    return results


def _pipeline(subject: Subject) -> str:
    if any(task.data.wording is not None for task in subject.recipe.tasks):
        return "text-generation"
    if subject.audio:
        return "audio-classification"
    return "image-classification" if subject.image else "text-classification"


def recorded_scores(card: str) -> dict[str, dict[str, float]]:
    """Returns the test scores in a card's head, by `oracle` and `routed`, then by task; empty where it gives none.

    Whatever in the head is not of our making is passed over: people may add results of their own.

    Raises:
        LimitExceeded: The card is larger than any card.
        MalformedChainMap: Its head is no YAML.
    """
    if len(card) > LIMITS.card_bytes:
        raise LimitExceeded(f"README.md: holds more than the {LIMITS.card_bytes} characters that are read.")
    found: dict[str, dict[str, float]] = {ORACLE: {}, ROUTED: {}}
    for model in _entries(_head(card), "model-index"):
        for result in _entries(model, "results"):
            task = result.get("task")
            name = task.get("name") if isinstance(task, dict) else None
            for metric in _entries(result, "metrics"):
                way, value = _way(metric.get("name")), metric.get("value")
                if way is not None and isinstance(name, str) and type(value) is float and isfinite(value):
                    found[way][name] = value
    return {way: scores for way, scores in found.items() if scores}


def read_card(folder: Path) -> str | None:
    """Returns the card in a folder, of which at most the limit is read, None where there is none.

    Raises:
        ResourceError: It cannot be read.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return None
    with disk.naming(path), path.open("rb") as file:
        return file.read(LIMITS.card_bytes).decode(errors="replace")


def recorded_licence(card: str) -> str | None:
    """Returns the licence in a card's head: its `license`, or where that is `other` its `license_name`.

    Raises:
        MalformedChainMap: The head is no YAML.
    """
    head = _head(card)
    if not isinstance(head, dict):
        return None
    found, name = head.get("license"), head.get("license_name")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if found == OTHER and isinstance(name, str):
        found = name
    return found[: LIMITS.name_characters] if isinstance(found, str) and found else None


def _head(card: str) -> object:
    lines = card.removeprefix("\ufeff").splitlines()
    if "---" not in lines[1:] or lines[0].strip() != "---":
        return {}
    try:
        return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MalformedChainMap(f"README.md: its head is no YAML: {' '.join(str(error).split())[:200]}.") from error


def _entries(value: object, key: str) -> Iterator[dict[Any, Any]]:
    """Yields the objects of a list in an object; a head from outside may hold anything, and any amount of it."""
    listed = value.get(key) if isinstance(value, dict) else None
    if isinstance(listed, list):
        limit = _MOST_RESULTS if key == "results" else _MOST_VALUES
        yield from (item for item in listed[:limit] if isinstance(item, dict))


def _way(name: object) -> str | None:
    """Returns how the value of that name was measured, or None where it is no name that a card of ours gives."""
    return next((way for way, words in _WAYS.items() if isinstance(name, str) and name.endswith(f"({words})")), None)
