"""A value of a JSON document with its place: every getter returns exactly the type asked for, or says where it is not.

`true` is no integer, `1.0` is no integer, an unknown key is a mistake: what our writer never writes, this reader
never takes.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite

from hf_merge.errors import (
    LimitExceeded,
    MalformedChainMap,
    UnknownFormatVersion,
    UnsafeName,
    UntrustedContentError,
    nearest,
)
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import JsonValue, quote


NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LIMITS.name_characters - 1}}}")
_TENSOR_NAME = re.compile(rf"[!-~]{{1,{LIMITS.tensor_name_characters}}}")
# Control characters, line separators, halves of characters, and what turns the writing direction around.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Field:
    """A JSON value and where it stands.

    Attributes:
        value: The value.
        origin: The file: `chains.json`.
        path: The way to it from the top: `experts[3].bytes`; empty at the top.
    """

    value: JsonValue
    origin: str
    path: str = ""

    def refusal(self, reason: str, error: type[UntrustedContentError] = MalformedChainMap) -> UntrustedContentError:
        """Returns the error to raise for this field: its place and the reason."""
        return error(f"{self.origin}: {self.path}: {reason}." if self.path else f"{self.origin}: {reason}.")

    def record(self, keys: Collection[str], *, optional: Collection[str] = ()) -> dict[str, "Field"]:
        """Returns the fields of an object that has exactly `keys`, of which it may lack those that are optional."""
        value = self._object()
        unknown = next((key for key in value if key not in keys), None)
        if unknown is not None:
            raise self.refusal(f"the key {quote(unknown)} is unknown.{nearest(unknown[:64], keys).rstrip('.')}")
        missing = [key for key in keys if key not in value and key not in optional]
        if missing:
            raise self.refusal(f"lacks {', '.join(map(repr, missing))}")
        return {key: self._child(item, key) for key, item in value.items()}

    def check_version(self, supported: int) -> JsonValue:
        """Returns the `format_version` of the document that this field is the top of, None where it has none.

        Raises:
            UnknownFormatVersion: It is an integer other than `supported`. Ask first: other versions have other keys.
        """
        version = self.value.get("format_version") if isinstance(self.value, dict) else None
        if type(version) is int and version != supported:
            raise UnknownFormatVersion(
                f"{self.origin}: format_version is {version}; this release of hf-merge reads version {supported}. "
                "Update hf-merge, or load an older revision of the repository."
            )
        return version

    def mapping(self, limit: int) -> dict[str, "Field"]:
        """Returns the fields of an object whose keys are names, at most `limit` of them."""
        value = self._object()
        self._check_count(len(value), limit)
        for key in value:
            if not NAME.fullmatch(key):
                raise self.refusal(f"the key {quote(key)} {_NO_NAME}", UnsafeName)
        return {key: self._child(item, key) for key, item in value.items()}

    def items(self, limit: int, *, or_none: bool = False) -> list["Field"]:
        """Returns the fields of an array, at most `limit` of them, and at least one unless `or_none`."""
        if not isinstance(self.value, list):
            raise self.refusal(f"is {_kind(self.value)}, not an array")
        self._check_count(len(self.value), limit)
        if not self.value and not or_none:
            raise self.refusal("is empty")
        return [Field(item, self.origin, f"{self.path}[{index}]") for index, item in enumerate(self.value)]

    def integer(self, low: int, high: int = 2**63 - 1) -> int:
        """Returns an integer of [low, high]."""
        if type(self.value) is not int:
            raise self.refusal(f"is {_kind(self.value)}, not an integer")
        if not low <= self.value <= high:
            raise self.refusal(f"is {self.value}, not in {low} to {high}")
        return self.value

    def number(self) -> float:
        """Returns a finite number as a float; minus zero becomes zero, so that equal data are equal bytes."""
        if type(self.value) not in (int, float):
            raise self.refusal(f"is {_kind(self.value)}, not a number")
        number = float(self.value)  # type: ignore[arg-type]
        if not isfinite(number):
            raise self.refusal(f"is {number}, not finite")
        return number + 0.0

    def cost(self) -> float:
        """Returns what a configuration costs: a finite number above 0."""
        cost = self.number()
        if cost <= 0:
            raise self.refusal(f"is {cost}; a configuration costs more than nothing")
        return cost

    def text(self, limit: int = LIMITS.text_characters) -> str:
        """Returns a text without control characters, at most `limit` characters."""
        if not isinstance(self.value, str):
            raise self.refusal(f"is {_kind(self.value)}, not a text")
        if len(self.value) > limit:
            raise self.refusal(f"has {len(self.value)} characters where {limit} are allowed", LimitExceeded)
        if _UNSHOWABLE.search(self.value):
            raise self.refusal(f"{quote(self.value)} holds control characters", UnsafeName)
        return self.value

    def prose(self, limit: int = LIMITS.text_characters) -> str:
        """Returns a text as `text` does, in which lines may end and tabs stand."""
        if isinstance(self.value, str):
            Field(self.value.replace("\n", " ").replace("\t", " "), self.origin, self.path).text(limit)
            return self.value
        return self.text(limit)

    def name(self) -> str:
        """Returns an identifier: letters, digits, `.`, `_` and `-`, a letter or digit first, at most 128."""
        return self.match(NAME, _NO_NAME, UnsafeName)

    def tensor_name(self) -> str:
        """Returns the name of a tensor: visible ASCII characters."""
        return self.match(_TENSOR_NAME, "is no tensor name: use visible ASCII, at most 512 characters", UnsafeName)

    def match(
        self, pattern: re.Pattern[str], reason: str, error: type[UntrustedContentError] = MalformedChainMap
    ) -> str:
        """Returns a text that matches `pattern` whole; `reason` continues the message after the text."""
        if not isinstance(self.value, str):
            raise self.refusal(f"is {_kind(self.value)}, not a text")
        if not pattern.fullmatch(self.value):
            raise self.refusal(f"{quote(self.value)} {reason}", error)
        return self.value

    def choice(self, choices: Collection[str]) -> str:
        """Returns a text that is one of `choices`."""
        text = self.text()
        if text not in choices:
            raise self.refusal(f"{quote(text)} is unknown.{nearest(text[:64], choices).rstrip('.')}")
        return text

    def _object(self) -> dict[str, JsonValue]:
        if not isinstance(self.value, dict):
            raise self.refusal(f"is {_kind(self.value)}, not an object")
        return self.value

    def _check_count(self, count: int, limit: int) -> None:
        if count > limit:
            raise self.refusal(f"has {count} entries where {limit} are allowed", LimitExceeded)

    def _child(self, value: JsonValue, key: str) -> "Field":
        return Field(value, self.origin, f"{self.path}.{key}" if self.path else key)


_NO_NAME = "is no name: use letters, digits, '.', '_' and '-', a letter or digit first, at most 128 characters"


def _kind(value: JsonValue) -> str:
    """Returns what a JSON value is, in words and with the value where it is short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, str):
        return f"the text {quote(value)}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"the number {value}"
