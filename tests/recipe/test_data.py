from typing import Any

import pytest
import yaml

from hf_merge.errors import RecipeError
from hf_merge.recipe import Recipe
from hf_merge.recipe.wording import DEFAULT_NEW_TOKENS, Wording


def recipe_of(data: dict[str, Any], **task: Any) -> Recipe:
    document = {
        "base": {"model": "base"},
        "tasks": [{"name": "one", "model": "model", "data": {"path": "data", **data}, **task}],
    }
    return Recipe.parse(document, "a test")


def test_options_make_a_task_one_of_a_language_model() -> None:
    task = recipe_of({"text": "text", "answers": [" no", " yes"], "template": "{text}\nAnswer:"}).tasks[0]
    assert task.data.wording == Wording("{text}\nAnswer:", (" no", " yes"), None)
    assert task.metric == "accuracy"


def test_a_target_is_scored_by_exact_match_unless_said_otherwise() -> None:
    task = recipe_of({"text": "text", "text_pair": "more", "target": "answer"}).tasks[0]
    assert task.data.wording == Wording("{text}\n{text_pair}", None, DEFAULT_NEW_TOKENS)
    assert task.metric == "exact_match"
    assert recipe_of({"text": "text", "target": "a", "max_new_tokens": 5}).tasks[0].data.wording == Wording(
        "{text}", None, 5
    )


def test_a_classifier_has_no_words() -> None:
    assert recipe_of({"text": "text"}).tasks[0].data.wording is None


def test_a_dumped_recipe_is_read_as_the_same() -> None:
    recipe = recipe_of({"text": "text", "target": "answer", "template": "{text}\n\tNow:"})
    assert Recipe.parse(yaml.safe_load(recipe.dump()), "its dump") == recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "text", "answers": ["a", "b"], "target": "c"}, r"either 'answers' .* or 'target'"),
        ({"text": "text", "template": "{text}?"}, "'template' is for generative models"),
        ({"text": "text", "max_new_tokens": 3}, "'max_new_tokens' is for generative models"),
        ({"text": "text", "answers": ["a", "b"], "max_new_tokens": 3}, "'max_new_tokens' belongs to 'target'"),
        ({"image": "image", "answers": ["a", "b"]}, "belong to a 'text' column, not to an 'image' column"),
        ({"audio": "audio", "target": "c"}, "belong to a 'text' column, not to an 'audio' column"),
        ({"audio": "audio", "text_pair": "p"}, "'text_pair' belongs to a 'text' column, not to an 'audio' column"),
        ({"audio": "audio", "image": "image"}, "name either a 'text' column .*, an 'image' column or an 'audio'"),
        ({}, "name either a 'text' column .*, an 'image' column or an 'audio' column"),
        ({"text": "text", "answers": ["a"]}, "two or more"),
        ({"text": "text", "answers": ["a", "b"], "template": "{txt}"}, r"names \{txt\}"),
        ({"text": "text", "target": "b", "max_new_tokens": 0}, "max_new_tokens 0"),
        ({"text": "text", "answers": ["a", "b"], "template": "{text}{text_pair}"}, "no column 'text_pair'"),
        ({"text": "t", "text_pair": "p", "answers": ["a", "b"], "template": "{text}"}, r"without \{text_pair\}"),
        ({"text": "text", "anwsers": ["a", "b"]}, r"unknown setting.*answers"),
    ],
)
def test_words_that_do_not_fit_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(data)


@pytest.mark.parametrize(
    "name", ["train[:80", "train[80]", "train[:5]+test[:5]", "[:5]", "train[a:]", "train [:5] ", ""]
)
def test_splits_are_names_or_one_slice(name: str) -> None:
    for good in ("train", "validation_matched", "train[:80%]", "train[-10%:]", "train[5:]", "train[:]"):
        assert recipe_of({"text": "t", "splits": {"test": good}}).tasks[0].data.splits == {"test": good}
    with pytest.raises(RecipeError, match=r"tasks.0.data.splits: .*for test, is neither a split nor one slice"):
        recipe_of({"text": "t", "splits": {"test": name}})


@pytest.mark.parametrize(
    ("data", "metric"), [({"text": "t"}, "exact_match"), ({"text": "t", "target": "c"}, "accuracy")]
)
def test_exact_match_goes_with_targets_alone(data: dict[str, Any], metric: str) -> None:
    with pytest.raises(RecipeError, match=rf"the metric '{metric}' does not fit"):
        recipe_of(data, metric=metric)
