"""Typed reading with places: exact types, ranges, counts; the message shows the place and what stands there."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from hf_merge.errors import HfMergeError, LimitExceeded, MalformedChainMap, UnsafeName
from hf_merge.storing.json_fields import Field
from hf_merge.storing.strict_json import JsonValue


def field(value: JsonValue) -> Field:
    return Field(value, "front.json", "points[2].x")


@pytest.mark.parametrize(
    ("value", "getter", "error", "message"),
    [
        (True, lambda f: f.integer(0), MalformedChainMap, "is true, not an integer"),
        (1.0, lambda f: f.integer(0), MalformedChainMap, "is the number 1.0, not an integer"),
        ("1", lambda f: f.integer(0), MalformedChainMap, "is the text '1', not an integer"),
        (-1, lambda f: f.integer(0, 5), MalformedChainMap, "is -1, not in 0 to 5"),
        (10**30, lambda f: f.integer(0), MalformedChainMap, "not in 0 to 9223372036854775807"),
        (False, lambda f: f.number(), MalformedChainMap, "is false, not a number"),
        (None, lambda f: f.number(), MalformedChainMap, "is null, not a number"),
        (float("nan"), lambda f: f.number(), MalformedChainMap, "is nan, not finite"),
        (3, lambda f: f.text(), MalformedChainMap, "is the number 3, not a text"),
        ("abc", lambda f: f.text(2), LimitExceeded, "has 3 characters where 2 are allowed"),
        ("a\x1b[2J", lambda f: f.text(), UnsafeName, r"'a\x1b[2J' holds control characters"),
        ("a\u202eb", lambda f: f.text(), UnsafeName, r"'a\u202eb' holds control characters"),
        ([], lambda f: f.name(), MalformedChainMap, "is an array, not a text"),
        ("-a", lambda f: f.name(), UnsafeName, "'-a' is no name"),
        ("a\n", lambda f: f.name(), UnsafeName, r"'a\n' is no name"),
        ("x" * 129, lambda f: f.name(), UnsafeName, "is no name"),
        ("a b", lambda f: f.tensor_name(), UnsafeName, "'a b' is no tensor name"),
        ("x" * 513, lambda f: f.tensor_name(), UnsafeName, "is no tensor name"),
        ("flaot32", lambda f: f.choice(("float32", "int8")), MalformedChainMap, "Did you mean 'float32'?"),
        ({}, lambda f: f.items(9), MalformedChainMap, "is an object, not an array"),
        ([], lambda f: f.items(9), MalformedChainMap, "is empty"),
        ([1, 2], lambda f: f.items(1), LimitExceeded, "has 2 entries where 1 are allowed"),
        ([], lambda f: f.mapping(9), MalformedChainMap, "is an array, not an object"),
        ({"a": 1, "b": 2}, lambda f: f.mapping(1), LimitExceeded, "has 2 entries where 1 are allowed"),
        ({"../a": 1}, lambda f: f.mapping(9), UnsafeName, "the key '../a' is no name"),
        ({"bites": 1}, lambda f: f.record(("bytes",)), MalformedChainMap, "'bites' is unknown. Did you mean 'bytes'?"),
        ({"x\x1b": 1}, lambda f: f.record(("bytes",)), MalformedChainMap, r"the key 'x\x1b' is unknown"),
        ({"a": 1}, lambda f: f.record(("a", "b", "c")), MalformedChainMap, "lacks 'b', 'c'"),
    ],
)  # fmt: skip
def test_anything_else_than_what_is_asked_for_is_refused_with_its_place(
    value: JsonValue, getter: Callable[[Field], object], error: type[HfMergeError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        getter(field(value))
    assert str(caught.value).startswith("front.json: points[2].x: ")
    assert str(caught.value).endswith(".")


def test_what_fits_is_returned_in_its_type() -> None:
    assert field(7).integer(7, 7) == 7
    assert (field(1).number(), type(field(1).number())) == (1.0, float)
    assert str(field(-0.0).number()) == "0.0"
    assert field("é \U0001f600").text() == "é \U0001f600"
    assert field("a.b_c-1").name() == "a.b_c-1"
    assert field("x/y.weight").tensor_name() == "x/y.weight"
    assert field("a").choice("ab") == "a"


def test_parts_know_their_own_places() -> None:
    top: Any = Field({"a": [{"b": 1}]}, "front.json")
    part = top.record(("a",))["a"].items(1)[0].mapping(1)["b"]
    assert (part.value, part.path) == (1, "a[0].b")
    assert str(top.refusal("is wrong")) == "front.json: is wrong."
