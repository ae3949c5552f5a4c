"""What a card's head says, and what is read from a head that anybody may have written."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from hf_merge.errors import LimitExceeded, MalformedChainMap
from hf_merge.recipe import Recipe
from hf_merge.storing.card_head import Subject, metadata, recorded_licence, recorded_scores
from hf_merge.storing.limits import LIMITS
from tests.storing import families


RESULT = {"task": {"name": "t"}, "metrics": [{"name": "accuracy (task known)", "value": 0.5}]}


def subject(**data: Any) -> Subject:
    """Returns what a card is about; `data` changes where every task's rows are."""
    front = families.front()
    origin = families.origin(front.tasks)
    recipe = yaml.safe_load(origin.recipe)
    for task in recipe["tasks"]:
        task["data"] |= data
    read = Recipe.parse(recipe, "recipe.yaml")
    scored = front.points[0].id
    return Subject(front, families.report(front), origin, families.places(front), read, "demo", scored, None)


def head(about: Subject) -> dict[str, Any]:
    """Returns a head as a safe reader of YAML reads it."""
    read = yaml.safe_load(metadata(about).to_yaml())
    assert isinstance(read, dict)
    return read


def card(head: object) -> str:
    return f"---\n{yaml.safe_dump(head)}---\n\n# x\n"


def test_every_task_has_both_results_as_plain_floats() -> None:
    [model] = head(subject())["model-index"]
    assert model["name"].startswith("demo, c")
    assert [result["task"]["name"] for result in model["results"]] == ["task_0", "task_1", "task_2"]
    for result in model["results"]:
        assert [metric["name"] for metric in result["metrics"]] == ["accuracy (task known)", "accuracy (task routed)"]
        assert all(type(metric["value"]) is float for metric in result["metrics"])
        assert result["dataset"]["type"] == "org/data" and result["dataset"]["split"] == "test"
        assert result["dataset"]["revision"] == "e" * 40


def test_tasks_on_the_same_data_are_not_thrown_together() -> None:
    [model] = head(subject(name="shared"))["model-index"]
    assert [result["dataset"]["config"] for result in model["results"]] == [
        "shared",
        "shared, task_1",
        "shared, task_2",
    ]


def test_local_data_are_not_taken_for_a_data_set_of_that_name() -> None:
    local = subject(path="parquet", data_files={"train": "a", "test": "b"}, revision=None, name=None)
    [model] = head(local)["model-index"]
    assert {result["dataset"]["type"] for result in model["results"]} == {"local-files"}
    assert len(model["results"]) == 3


def test_without_a_report_there_are_no_results() -> None:
    assert "model-index" not in head(replace(subject(), report=None))


def test_results_of_others_are_passed_over() -> None:
    others = [
        {"task": {"name": "t"}, "metrics": [{"name": "accuracy", "value": 0.1}, {"name": 3, "value": 0.2}]},
        {"task": "t", "metrics": [{"name": "f1 (task known)", "value": 0.3}]},
        {"task": {"name": "u"}, "metrics": [{"name": "f1 (task known)", "value": "0.4"}]},
        {"task": {"name": "v"}, "metrics": [{"name": "f1 (task known)", "value": float("nan")}]},
        {"task": {"name": "w"}, "metrics": "none"},
        "nothing",
    ]
    found = recorded_scores(card({"model-index": [{"results": [*others, RESULT]}, 7]}))
    assert found == {"oracle": {"t": 0.5}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no head\n",
        "---\n",
        "---\n---\n",
        "---\nmodel-index: 3\n---\n",
        "---\n- a\n---\n",
        "---\nx: 1\n",
        "\ufeff---\n---",
    ],
)
def test_a_card_without_scores_records_none(text: str) -> None:
    assert recorded_scores(text) == {}


@pytest.mark.parametrize(
    "head", ["a: [", "a: b: c", "\tx", "a: !!python/object/apply:os.system [x]", "d: 2001-99-99", "[" * 3000]
)
def test_a_head_that_is_no_plain_yaml_is_refused(head: str) -> None:
    with pytest.raises(MalformedChainMap, match=r"README\.md"):
        recorded_scores(f"---\n{head}\n---\n")


def test_a_card_beyond_the_limit_is_refused() -> None:
    with pytest.raises(LimitExceeded):
        recorded_scores("x" * (LIMITS.card_bytes + 1))


def test_a_head_that_grows_when_it_is_read_takes_no_time() -> None:
    layers = ["a0: &a0 {name: x, value: 0.5}"]
    layers += [f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]" for index in range(1, 30)]
    text = "\n".join(
        ["---", *layers, "model-index: [{results: [{task: {name: *a29}, metrics: [{name: *a29}]}]}]", "---"]
    )
    assert recorded_scores(text) == {}


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ({"license": "mit"}, "mit"),
        ({"license": ["mit"]}, "mit"),
        ({"license": "other", "license_name": "ours"}, "ours"),
        ({"license": "mit", "license_name": "ours"}, "mit"),
        ({"license": ["mit", "gpl"]}, None),
        ({"license": 3}, None),
        ({}, None),
        ([], None),
    ],
)
def test_the_licence_of_a_card_is_its_own_word(head: object, licence: str | None) -> None:
    assert recorded_licence(card(head)) == licence


def test_a_licence_as_long_as_a_book_is_cut() -> None:
    assert recorded_licence(card({"license": "x" * 5000})) == "x" * LIMITS.name_characters
