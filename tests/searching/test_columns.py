from typing import Any

import datasets
import numpy as np
import pytest

from hf_merge.errors import DatasetError
from hf_merge.recipe import DataSpec
from hf_merge.searching.columns import read_answers, refuse_missing, refuse_other_than_text


DATA = datasets.Dataset.from_dict(
    {"text": ["a", "b", "c"], "label": [0, 1, 1], "word": ["no", "yes", "maybe"], "gap": ["x", None, "z"]}
)


def spec(**given: Any) -> DataSpec:
    return DataSpec.model_validate({"path": "p", "text": "text", **given})


def test_options_take_indices_and_their_own_names() -> None:
    labels, targets = read_answers(spec(answers=[" no", " yes"]), DATA, (2, ("no", "yes")), "here")
    assert labels.tolist() == [0, 1, 1] and labels.dtype == np.int64 and targets is None
    answers = spec(answers=["no", "yes", "maybe"], label="word")
    assert read_answers(answers, DATA, (3, ("no", "yes", "maybe")), "here")[0].tolist() == [0, 1, 2]


def test_what_the_data_call_their_classes_does_not_bind_the_words() -> None:
    named = DATA.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    labels, _ = read_answers(spec(answers=[" bad", " good"]), named, (2, ("bad", "good")), "here")
    assert labels.tolist() == [0, 1, 1]
    with pytest.raises(DatasetError, match="the data name the classes neg, pos"):
        read_answers(spec(), named, (2, ("bad", "good")), "here")


def test_a_label_beyond_the_options_is_shown_with_them() -> None:
    many = DATA.remove_columns("label").add_column("label", [0, 4, 1])
    with pytest.raises(DatasetError, match=r"label 4 in row 1 is outside 0 to 1: data\.answers names 2, no, yes\."):
        read_answers(spec(answers=["no", "yes"]), many, (2, ("no", "yes")), "here")
    with pytest.raises(DatasetError, match=r"label 'maybe' in row 2 .* is none of the answers: no, yes"):
        read_answers(spec(answers=["no", "yes"], label="word"), DATA, (2, ("no", "yes")), "here")


def test_a_target_is_what_should_be_written() -> None:
    labels, targets = read_answers(spec(target="word"), DATA, (0, None), "here")
    assert labels.tolist() == [1, 1, 1] and targets == ("no", "yes", "maybe")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("words", r"here: there is no column 'words'.*word"),
        ("gap", r"1 of 3 rows have nothing in column 'gap', the first is row 1"),
        ("label", r"column 'label' holds int64, not texts"),
    ],
)
def test_a_target_that_is_none_is_refused(column: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_answers(spec(target=column), DATA, (0, None), "here")


def test_columns_are_checked_one_by_one() -> None:
    refuse_missing(DATA, "text", "here")
    refuse_other_than_text(DATA, ("text", "word"), "here")
    with pytest.raises(DatasetError, match="holds int64"):
        refuse_other_than_text(DATA, ("text", "label"), "here")
