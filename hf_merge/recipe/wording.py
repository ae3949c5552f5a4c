"""How a task of a generative model is put in words: what is asked of each row, and what may be answered.

A template turns a row into a prompt; the answer is one of several options, or text that the model writes. Templates
come from recipes and from `chains.json`: they are filled by replacing two names, and no part of them is ever run.
"""

import re
from dataclasses import dataclass


TEXT, PAIR = "text", "text_pair"
DEFAULT_NEW_TOKENS = 32
MOST_ANSWERS, MOST_CHARACTERS, MOST_NEW_TOKENS = 1024, 1024, 4096
_PLACE = re.compile(r"\{(text|text_pair)\}")
# What `chains.json` may not hold: control characters but for ends of lines and tabs, and turns of direction.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.\[\]!:]*)\}")


@dataclass(frozen=True)
class Wording:
    """What is asked of a row, and what may be answered; either `answers` or `max_new_tokens` is given.

    Attributes:
        template: A text with `{text}` in it, and `{text_pair}` where rows are pairs; the rest stands for itself.
        answers: The options in label order, as they follow the prompt: a decoder's mostly begin with a space.
        max_new_tokens: How many tokens the model writes, at the most, where it answers in its own words.
    """

    template: str
    answers: tuple[str, ...] | None
    max_new_tokens: int | None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """What the options are called: without the white space around them."""
        return None if self.answers is None else tuple(answer.strip() for answer in self.answers)

    @property
    def paired(self) -> bool:
        """Whether the template asks for a second text."""
        return PAIR in _PLACE.findall(self.template)

    def prompt(self, text: str, pair: str | None = None) -> str:
        """Returns the prompt of a row; braces in the row itself mean nothing.

        A second text that the template has no place for follows the first on a line of its own; where the template
        asks for one and there is none, its place stays empty.
        """
        if pair is not None and not self.paired:
            text, pair = f"{text}\n{pair}", None
        parts = {TEXT: text, PAIR: pair or ""}
        return _PLACE.sub(lambda found: parts[found[1]], self.template)


def default_template(paired: bool) -> str:
    """Returns what is asked where nobody said: the text as it is, or both texts, one to a line."""
    return f"{{{TEXT}}}\n{{{PAIR}}}" if paired else f"{{{TEXT}}}"


def normalised(text: str) -> str:
    """Returns a text as `exact_match` compares it: lower case, runs of white space as one space, none at the ends."""
    return " ".join(text.casefold().split())


def find_fault(wording: Wording) -> str | None:
    """Returns what is wrong with a wording, as the end of a sentence that names it; None where nothing is."""
    if (wording.answers is None) == (wording.max_new_tokens is None):
        return "must have either answers or max_new_tokens"
    if wording.max_new_tokens is not None and not 1 <= wording.max_new_tokens <= MOST_NEW_TOKENS:
        return f"has max_new_tokens {wording.max_new_tokens}, not 1 to {MOST_NEW_TOKENS}"
    hidden = [text for text in (wording.template, *(wording.answers or ())) if _UNSHOWABLE.search(text)]
    if hidden:
        return f"has words with control characters in them: {hidden[0]!r:.80}"
    return _fault_of_template(wording.template) or _fault_of_answers(wording.answers)


def _fault_of_template(template: str) -> str | None:
    if len(template) > MOST_CHARACTERS:
        return f"has a template of {len(template)} characters where {MOST_CHARACTERS} are allowed"
    unknown = next((name for name in _NAMED.findall(template) if name not in (TEXT, PAIR)), None)
    if unknown is not None:
        return f"has a template that names {{{unknown}}}; the places are {{{TEXT}}} and {{{PAIR}}}"
    places = _PLACE.findall(template)
    if places.count(TEXT) != 1 or places.count(PAIR) > 1:
        return f"has a template that must hold {{{TEXT}}} once, and {{{PAIR}}} at most once"
    return None


def _fault_of_answers(answers: tuple[str, ...] | None) -> str | None:
    if answers is None:
        return None
    if not 2 <= len(answers) <= MOST_ANSWERS:
        return f"has {len(answers)} answers where there must be a choice of two or more, {MOST_ANSWERS} at most"
    for index, answer in enumerate(answers):
        if not answer.strip():
            return f"has a blank answer (number {index})"
        if len(answer) > MOST_CHARACTERS:
            return f"has an answer (number {index}) of {len(answer)} characters where {MOST_CHARACTERS} are allowed"
    names = [answer.strip() for answer in answers]
    doubled = next((name for name in names if names.count(name) > 1), None)
    return None if doubled is None else f"has the answer '{doubled:.80}' twice (white space around it does not count)"
