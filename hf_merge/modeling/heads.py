"""What a task answers: the labels of a classifier's head, or the options and words of a language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_merge.errors import CheckpointDamaged, LimitExceeded, UntrustedContentError
from hf_merge.recipe.wording import Wording
from hf_merge.storing.json_fields import Field
from hf_merge.storing.limits import LIMITS


@dataclass(frozen=True)
class Head:
    """What a task's head answers.

    Attributes:
        num_labels: The width of its logits; 1 is a regression, 0 a task that answers in its own words.
        labels: The label names in order, or None where nobody named them.
        problem_type: `single_label_classification`, `multi_label_classification` or `regression`, as in transformers;
            None where nobody said.
        wording: How a language model is asked; its logits are the scores of the answers. None for a classifier.
    """

    num_labels: int
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None
    wording: Wording | None = None

    @classmethod
    def worded(cls, wording: Wording) -> "Head":
        """Returns what a task of a language model answers: its options are the labels."""
        return cls(len(wording.answers or ()), wording.labels, None, wording)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Head":
        """Returns the head that a fine-tuned checkpoint's configuration declares; two labels where it says nothing.

        Raises:
            CheckpointDamaged: `id2label` does not name the labels from 0 on, or `num_labels` is no number of labels.
            UnsafeName: A label holds what no text of a member may, such as control characters.
            LimitExceeded: A label is longer than a member may have it, or there are more labels.
        """
        names, problem = config.get("id2label"), config.get("problem_type")
        if names is None:
            width = config.get("num_labels", 2)
            if not isinstance(width, int) or width < 1:
                raise CheckpointDamaged(f"config.json: num_labels is {width!r:.80}; a head has one label or more.")
            _check_count(width, "num_labels")
            return cls(width, None, problem)
        ordered = {str(key): str(name) for key, name in names.items()} if isinstance(names, Mapping) else {}
        keys = [str(index) for index in range(len(ordered))]
        if not keys or set(keys) != set(ordered):
            raise CheckpointDamaged(
                f"config.json: id2label is {names!r:.80}; it must name the labels 0, 1, 2 and so on."
            )
        _check_count(len(keys), "id2label")
        labels = tuple(_label(ordered[key], key) for key in keys)
        return cls(len(labels), None if labels == _unnamed(len(labels)) else labels, problem)

    def settings(self) -> dict[str, Any]:
        """Returns the keys of a configuration that say the same; none for a language model, which has no labels."""
        if self.wording is not None:
            return {}
        names = dict(enumerate(self.labels or _unnamed(self.num_labels)))
        settings = {"id2label": names, "label2id": {label: index for index, label in names.items()}}
        return settings if self.problem_type is None else settings | {"problem_type": self.problem_type}


def _unnamed(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(count))


def _check_count(count: int, key: str) -> None:
    if count > LIMITS.labels:
        raise LimitExceeded(
            f"config.json: {key} gives {count} labels, and a merged member holds at most {LIMITS.labels}. Fine-tune "
            "with fewer labels, or leave this task out."
        )


def _label(name: str, key: str) -> str:
    """Returns a label by the rule of a member's `chains.json`, which would refuse it only once all is searched."""
    try:
        return Field(name, "config.json", f"id2label.{key}").text()
    except UntrustedContentError as error:
        raise type(error)(f"{error} Rename the label in id2label, and in label2id alike; weights stay.") from error
