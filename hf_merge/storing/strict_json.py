"""JSON from outside, read strictly, and our own JSON, written canonically.

Python's parser takes what other parsers refuse or read differently: a key given twice, NaN, 1e999 as infinity, lone
surrogates. A digest vouches for bytes; only strict reading makes everyone read the same from them.
"""

import json
import os
from pathlib import Path
from typing import TypeAlias

from hf_merge.errors import CheckpointDamaged, InputError, LimitExceeded, MalformedChainMap
from hf_merge.storing import disk
from hf_merge.storing.limits import LIMITS


JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

_INTEGER_CHARACTERS = 40  # transformers writes model_max_length with 31 digits; Python itself would take 4300
_SHOWN_CHARACTERS = 200


def loads(data: bytes, origin: str, *, limit_bytes: int, error: type[InputError] = MalformedChainMap) -> JsonValue:
    """Returns the value that JSON bytes hold.

    Args:
        data: The bytes, UTF-8 without a byte order mark.
        origin: What the bytes are, for messages: `chains.json`.
        limit_bytes: More bytes than this are not parsed.
        error: What to raise for anything that is no strict JSON.

    Raises:
        LimitExceeded: Too many bytes, or nested too deep.
        InputError: As `error`: no JSON, no UTF-8, a key twice, a number that is not finite or absurdly long.
    """
    if len(data) > limit_bytes:
        raise LimitExceeded(f"{origin}: holds more than the {limit_bytes} bytes that are read. Is it the right file?")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=lambda word: _Refused(f"{word} is no JSON number"),
            parse_float=_float,
            parse_int=_integer,
        )
    except UnicodeDecodeError as wrong:
        raise error(f"{origin}: is not UTF-8 at byte {wrong.start}. Save it as UTF-8.") from wrong
    except json.JSONDecodeError as wrong:
        place = f"line {wrong.lineno}, column {wrong.colno}"
        raise error(f"{origin}: is no valid JSON at {place}: {wrong.msg}.") from wrong
    except RecursionError as deep:
        raise LimitExceeded(f"{origin}: is nested deeper than {LIMITS.json_depth} levels.") from deep
    _walk(value, [], origin, error)
    return value  # type: ignore[no-any-return]


def read_json(path: Path, limit_bytes: int, *, error: type[InputError] = CheckpointDamaged) -> JsonValue:
    """Returns the value in a JSON file, of which at most `limit_bytes` are read.

    Raises:
        LimitExceeded: The file is larger, or nested too deep.
        InputError: As `error`: the file cannot be read, is no regular file, or holds no strict JSON.
    """
    with os.fdopen(disk.open_regular(path, error=error), "rb") as file, disk.naming(path):
        data = file.read(limit_bytes + 1)
    return loads(data, str(path), limit_bytes=limit_bytes, error=error)


def dumps(value: object, *, indent: int | None = None) -> bytes:
    """Returns a value as canonical JSON: keys in their order, floats by `repr`, UTF-8, one newline at the end.

    Without `indent` the text before that newline is a single line.

    Raises:
        ValueError: The value holds NaN, infinity or a lone surrogate, which no strict reader takes.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return f"{text}\n".encode()


def quote(text: object) -> str:
    """Returns text from outside fit for a message: escaped to ASCII, in quotes, cut to 200 characters."""
    whole = str(text)
    shown = ascii(whole[:_SHOWN_CHARACTERS])
    return shown if len(whole) <= _SHOWN_CHARACTERS else f"{shown}..."


class _Refused:
    """Stands in for what must be refused, until the walk that knows its place finds it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _object(pairs: list[tuple[str, object]]) -> object:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return _Refused(f"the key {quote(twice)} is given twice")


def _float(digits: str) -> object:
    number = float(digits)
    return number if abs(number) != float("inf") else _Refused(f"{digits[:_SHOWN_CHARACTERS]} is beyond every number")


def _integer(digits: str) -> object:
    if len(digits) <= _INTEGER_CHARACTERS:
        return int(digits)
    return _Refused(f"{digits[:_INTEGER_CHARACTERS]}... has more than {_INTEGER_CHARACTERS} digits")


def _walk(value: object, path: list[str | int], origin: str, error: type[InputError]) -> None:
    """Refuses, with its place, whatever the parser let pass: stand-ins, lone surrogates, depth."""
    if isinstance(value, _Refused):
        raise error(f"{_place(origin, path)}: {value.reason}.")
    if isinstance(value, str) and not value.isascii():
        _check_text(value, path, origin, error)
    elif isinstance(value, dict | list):
        if len(path) >= LIMITS.json_depth:
            raise LimitExceeded(f"{_place(origin, path)}: is nested deeper than {LIMITS.json_depth} levels.")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        path.append("")
        for key, item in items:
            path[-1] = key
            if isinstance(key, str) and not key.isascii():
                _check_text(key, path[:-1], origin, error)
            _walk(item, path, origin, error)
        path.pop()


def _check_text(text: str, path: list[str | int], origin: str, error: type[InputError]) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise error(f"{_place(origin, path)}: {quote(text)} holds half a character (a lone surrogate).")


def _place(origin: str, path: list[str | int]) -> str:
    """Returns where something is: `chains.json: experts[3].bytes`; keys from outside are escaped."""
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{quote(key)[1:-1]}" for key in path)
    return f"{origin}: {shown.lstrip('.')}" if shown else origin
