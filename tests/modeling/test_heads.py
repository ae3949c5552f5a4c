import json
from typing import Any

import pytest

from hf_merge.errors import CheckpointDamaged, LimitExceeded, UnsafeName, UntrustedContentError
from hf_merge.modeling.heads import Head
from hf_merge.recipe.wording import Wording
from hf_merge.storing.limits import LIMITS


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Head(2)),
        ({"num_labels": 4}, Head(4)),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, Head(3)),
        ({"id2label": {"1": "b", "0": "a"}}, Head(2, ("a", "b"))),
        ({"id2label": {0: "LABEL_0"}, "problem_type": "regression"}, Head(1, None, "regression")),
        ({"id2label": {str(index): f"c{index}" for index in range(11)}}, Head(11, tuple(f"c{i}" for i in range(11)))),
    ],
)
def test_heads_are_read_off_configurations(config: dict[str, Any], expected: Head) -> None:
    assert Head.of(config) == expected
    assert Head.of(json.loads(json.dumps(expected.settings()))) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {}},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"zero": "a"}},
        {"id2label": ["a", "b"]},
        {"num_labels": 0},
        {"num_labels": "two"},
    ],
)
def test_labels_that_cannot_be_counted_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointDamaged, match=r"config\.json: (id2label|num_labels) is"):
        Head.of(config)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            {"id2label": {"0": "good\tnews", "1": "bad"}},
            UnsafeName,
            r"id2label\.0: .*control.* Rename the label",
        ),
        ({"id2label": {"0": "good", "1": "\u202ebad"}}, UnsafeName, r"id2label\.1: .* Rename the label"),
        (
            {"id2label": {"0": "x" * 1025}},
            LimitExceeded,
            r"id2label\.0: has 1025 characters where 1024 are",
        ),
        ({"id2label": {str(index): "x" for index in range(LIMITS.labels + 1)}}, LimitExceeded, "id2label gives 65537"),
        ({"num_labels": LIMITS.labels + 1}, LimitExceeded, "num_labels gives 65537 labels"),
    ],
)
def test_labels_that_no_member_may_hold_are_refused_before_a_search(
    config: dict[str, Any], error: type[UntrustedContentError], message: str
) -> None:
    with pytest.raises(error, match=rf"config\.json: {message}"):
        Head.of(config)


def test_a_language_models_options_are_its_labels() -> None:
    wording = Wording("{text}", (" no", " yes"), None)
    assert Head.worded(wording) == Head(2, ("no", "yes"), None, wording)
    assert Head.worded(Wording("{text}", None, 4)).num_labels == 0
    assert Head.worded(wording).settings() == {}, "its configuration knows of no labels"
