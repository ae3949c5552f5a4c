"""Strict JSON: what is refused, where the message points, and that what we write we read."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.errors import CheckpointDamaged, HfMergeError, LimitExceeded, MalformedChainMap, RunFolderError
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import dumps, loads, quote, read_json


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def read(data: bytes, limit_bytes: int = 1 << 20) -> object:
    return loads(data, "x.json", limit_bytes=limit_bytes)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b'{"a": {"b": 1, "b": 2}}', "x.json: a: the key 'b' is given twice"),
        (b'[1, {"a": NaN}]', "x.json: [1].a: NaN is no JSON number"),
        (b'{"a": -Infinity}', "x.json: a: -Infinity is no JSON number"),
        (b'{"a": [0, 1e999]}', "x.json: a[1]: 1e999 is beyond every number"),
        (b'{"a": -1e999}', "beyond every number"),
        (b"[%s]" % (b"9" * 41), "[0]: 9999"),
        (b"9" * 5000, "more than 40 digits"),
        (b'{"a": "\\ud800"}', "a lone surrogate"),
        (b'{"\\udfff": 1}', "a lone surrogate"),
        (b'{"a\x1b[31m": NaN}', "is no valid JSON at line 1"),
        (b'{"a\\u001b[31m": NaN}', "x.json: a\\x1b[31m: NaN"),
        (b"\xef\xbb\xbf{}", "BOM"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 at byte 0"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
        (b"", "is no valid JSON at line 1, column 1"),
        (b"{} // a comment", "is no valid JSON"),
        (b"{'a': 1}", "is no valid JSON"),
        (b'{"a": 1,}', "is no valid JSON"),
        (b'{"a": 01}', "is no valid JSON"),
        (b'{"a": 1}{"a": 1}', "is no valid JSON"),
        (b'{"a": "\n"}', "is no valid JSON"),
    ],
)
def test_refuses_what_parsers_read_differently(data: bytes, part: str) -> None:
    with pytest.raises(MalformedChainMap) as caught:
        read(data)
    assert part in str(caught.value)
    assert str(caught.value).isprintable()


def test_bytes_over_the_limit_are_not_parsed() -> None:
    assert read(b"[1]", limit_bytes=3) == [1]
    with pytest.raises(LimitExceeded, match="3 bytes"):
        read(b"[11]", limit_bytes=3)


@pytest.mark.parametrize("levels", [LIMITS.json_depth + 1, 100, 200_000])
@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting_is_a_limit_not_a_crash(levels: int, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    with pytest.raises(LimitExceeded, match="deeper than 16"):
        read(opening * levels + b"1" + closing * levels, limit_bytes=1 << 21)


def test_the_stated_depth_is_still_read() -> None:
    assert read(b"[" * LIMITS.json_depth + b"]" * LIMITS.json_depth)


def test_a_long_key_over_many_children_costs_no_memory() -> None:
    data = b'{"%s": [%s]}' % (b"k" * 500_000, b",".join([b"1"] * 250_000))
    assert read(data)
    with pytest.raises(MalformedChainMap) as caught:
        read(data.replace(b"1]", b"NaN]"))
    assert len(str(caught.value)) < 400


def test_the_callers_error_is_raised() -> None:
    with pytest.raises(RunFolderError):
        loads(b"nope", "x.json", limit_bytes=10, error=RunFolderError)


@given(VALUES)
def test_what_is_dumped_is_read_back_and_dumped_alike(value: object) -> None:
    data = dumps(value)
    assert read(data) == value
    assert dumps(read(data)) == data
    assert dumps(read(dumps(value, indent=1))) == data
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")


@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0123456789.eE+-NaItrufls\\u \n\ud7ff', max_size=60).map(str.encode)
)
def test_whatever_is_read_no_other_error_leaves(data: bytes) -> None:
    try:
        value = read(data)
    except HfMergeError:
        return
    assert json.loads(data) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": "\ud800"}])
def test_what_no_strict_reader_takes_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|surrogates"):
        dumps(value)


def test_a_file_is_read_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    with pytest.raises(LimitExceeded):
        read_json(path, 7)


def test_missing_files_folders_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointDamaged, match="No such file"):
        read_json(tmp_path / "none", 9)
    for name in ("pipe", ""):
        with pytest.raises(CheckpointDamaged, match="no regular file"):
            read_json(tmp_path / name, 9)


def test_quote_escapes_and_cuts() -> None:
    assert quote("a\x1b[31m\u202eb") == r"'a\x1b[31m\u202eb'"
    assert len(quote("x" * 10_000)) < 210
