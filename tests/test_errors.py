"""Errors are drawn as a tree, each with its exit code, and messages end with what the user may have meant."""

import inspect
import re

import pytest

from hf_merge import errors
from hf_merge.errors import BudgetTooSmall, HfMergeError, nearest, some


EVERY = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, HfMergeError)}


def test_the_tree_in_the_documentation_is_the_tree_of_classes() -> None:
    drawn = re.findall(r"^ {4}([│ ├└─]*)(\w+)", errors.__doc__ or "", re.MULTILINE)
    depths = {name: len(lines) // 4 for lines, name in drawn}
    assert depths == {name: kind.__mro__.index(HfMergeError) for name, kind in EVERY.items()}


def test_exit_codes_are_those_of_the_tree() -> None:
    codes = {name: kind.exit_code for name, kind in EVERY.items()}
    others = {"HfMergeError": 1, "HubError": 4, "ResourceError": 5, "WorkerError": 7}
    assert codes == {name: others.get(name, 2) for name in EVERY}


@pytest.mark.parametrize("least", [0.28774, 0.28776, 0.2877, 1.0])
def test_the_budget_that_a_message_advises_is_enough(least: float) -> None:
    error = BudgetTooSmall(0.1, least, "c0288-abcdef")
    assert (error.asked, error.least, error.configuration) == (0.1, least, "c0288-abcdef")
    advised = re.search(r"budget=([\d.]+) or more", str(error))
    assert advised is not None and float(advised[1]) >= least
    assert "c0288-abcdef" in str(error)


def test_the_nearest_word_is_offered_and_all_are_listed() -> None:
    assert nearest("acuracy", ["f1", "accuracy"]) == " Did you mean 'accuracy'? Known: accuracy, f1."
    assert nearest("zzz", {"f1", "accuracy"}) == " Known: accuracy, f1."


def test_what_begins_with_the_word_goes_before_what_is_nearest() -> None:
    ids = ["c0258-325f40", "c0258-c0827d", "c0258f", "c0642-54b87a"]
    assert nearest("c0642", ids).startswith(" Did you mean 'c0642-54b87a'?")
    assert nearest("c0258-", ids).startswith(" Did you mean 'c0258-325f40' or 'c0258-c0827d'?")
    assert nearest("", ids).startswith(" Known: ")
    assert nearest("c", [f"c{number}" for number in range(10)]).count("'") == 2, "too many begin so: one is offered"


def test_long_lists_of_names_are_cut() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d, e, ... (2 more)"
