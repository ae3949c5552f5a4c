import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.recipe.wording import MOST_CHARACTERS, MOST_NEW_TOKENS, Wording, default_template, find_fault, normalised


OPTIONS = (" negative", " positive")


@given(st.text(), st.text())
def test_what_a_row_holds_is_never_looked_into(text: str, pair: str) -> None:
    wording = Wording("<{text}|{text_pair}>{{}}{0}", OPTIONS, None)
    assert wording.prompt(text, pair) == f"<{text}|{pair}>{{{{}}}}{{0}}"


def test_a_row_that_names_a_place_is_not_filled_again() -> None:
    assert Wording("{text} {text_pair}", OPTIONS, None).prompt("{text_pair}", "{text}") == "{text_pair} {text}"


def test_pairs_and_single_texts_fit_any_template() -> None:
    assert Wording("{text}: {text_pair}?", OPTIONS, None).prompt("one") == "one: ?"
    assert Wording("{text}?", OPTIONS, None).prompt("one", "two") == "one\ntwo?"
    assert default_template(True) == "{text}\n{text_pair}" and default_template(False) == "{text}"


def test_labels_are_the_options_without_white_space() -> None:
    assert Wording("{text}", (" yes\n", "no"), None).labels == ("yes", "no")
    assert Wording("{text}", None, 3).labels is None


@pytest.mark.parametrize(
    ("wording", "fault"),
    [
        (Wording("{text}", OPTIONS, 3), "either answers or max_new_tokens"),
        (Wording("{text}", None, None), "either answers or max_new_tokens"),
        (Wording("{text}", None, 0), "max_new_tokens 0, not 1 to"),
        (Wording("{text}", None, MOST_NEW_TOKENS + 1), "not 1 to"),
        (Wording("no place", OPTIONS, None), "must hold {text} once"),
        (Wording("{text}{text}", OPTIONS, None), "must hold {text} once"),
        (Wording("{text}{text_pair}{text_pair}", OPTIONS, None), "at most once"),
        (Wording("{text} {label}", OPTIONS, None), "names {label}; the places are {text} and {text_pair}"),
        (Wording("{text.__class__}{text}", OPTIONS, None), "names {text.__class__}"),
        (Wording("{text!r}", OPTIONS, None), "names {text!r}"),
        (Wording("{text}" + "a" * MOST_CHARACTERS, OPTIONS, None), "are allowed"),
        (Wording("{text}", ("one",), None), "a choice of two or more"),
        (Wording("{text}", ("one", " \n"), None), "a blank answer (number 1)"),
        (Wording("{text}", ("one", "a" * 2000), None), "2000 characters"),
        (Wording("{text}", ("one", " one"), None), "'one' twice"),
        (Wording("{text}", tuple(map(str, range(1025))), None), "has 1025 answers"),
        (Wording("{text}\r", OPTIONS, None), "control characters in them"),
        (Wording("{text}", ("one", "t\x1b[31mwo"), None), "control characters in them"),
    ],
)
def test_a_wording_that_cannot_be_used_is_told_apart(wording: Wording, fault: str) -> None:
    assert fault in (find_fault(wording) or "")


@pytest.mark.parametrize(
    "wording", [Wording("{text}", OPTIONS, None), Wording('{"q": "{text}"} {text_pair}', None, 1)]
)
def test_a_good_wording_has_no_fault(wording: Wording) -> None:
    assert find_fault(wording) is None


@given(st.text())
def test_comparing_is_blind_to_case_and_white_space_alone(text: str) -> None:
    assert normalised(f"  {text}\n") == normalised(text)
    assert normalised(normalised(text)) == normalised(text)
    assert normalised("a b") != normalised("ab")
