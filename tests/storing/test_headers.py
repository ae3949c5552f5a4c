"""safetensors headers: what we take the library takes with the same meaning; what could hurt is refused by name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hf_merge.errors import CheckpointDamaged, HfMergeError, LimitExceeded, UnsafeName
from hf_merge.storing.headers import ITEM_BYTES, TensorSpec, read_header
from hf_merge.storing.limits import LIMITS


GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [], "data_offsets": [24, 25]},
    "c": {"dtype": "BF16", "shape": [0, 4], "data_offsets": [25, 25]},
}


def packed(header: Any, data_bytes: int = 25) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data_bytes)


def read(tmp_path: Path, content: bytes) -> dict[str, TensorSpec]:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    return read_header(path)


def changed(name: str, **changes: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | changes}


def test_a_header_says_name_type_shape_and_bytes(tmp_path: Path) -> None:
    found = read(tmp_path, packed(GOOD | {"__metadata__": {"format": "pt"}}))
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == TensorSpec("a", "F32", (2, 3), 0, 24)
    assert [(spec.numel, spec.nbytes) for spec in found.values()] == [(6, 24), (1, 1), (0, 0)]


def test_tensors_stand_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    assert list(read(tmp_path, packed(dict(reversed(GOOD.items()))))) == ["a", "b", "c"]


def test_a_header_padded_with_blanks_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, packed(json.dumps(GOOD).encode() + b"   "))
    assert read(tmp_path, packed({}, 0)) == {}


DAMAGES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "has 0 bytes"),
    "a few bytes": (b"abc", "cut short, or is no safetensors"),
    "huge length": ((2**63).to_bytes(8, "little") + b"{}", "its header alone claims 9223372036854775808"),
    "cut in the header": (packed(GOOD)[:40], "cut short"),
    "cut in the data": (packed(GOOD)[:-1], "the tensors take 25 bytes, but 24 follow the header"),
    "something after": (packed(GOOD) + b"PK", "the tensors take 25 bytes, but 27 follow"),
    "no tensors but bytes": (packed({}, 4), "the tensors take 0 bytes, but 4 follow"),
    "a pickle": (packed(b"\x80\x04\x95", 9), "its header begins with"),
    "an array": (packed([GOOD]), "its header begins with"),
    "leading blank": (packed(b" " + json.dumps(GOOD).encode()), "its header begins with"),
    "no json": (packed(b"{nope}"), "header: is no valid JSON"),
    "not utf-8": (packed(b'{"\xff": 1}'), "is not UTF-8"),
    "key twice": (packed(b'{"a": 1, "a": 1}'), "the key 'a' is given twice"),
    "overlap": (packed(changed("b", data_offsets=[23, 24]), 24), "overlaps the tensor before it"),
    "hole": (packed(changed("b", data_offsets=[25, 26]), 26), "'c' begins at byte 25, not at 24"),
    "first not at zero": (packed({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, 2), "leaves a hole"),
    "backwards": (packed(changed("b", data_offsets=[25, 24])), "takes 1 bytes, but data_offsets are [25, 24]"),
    "shape too large": (packed(changed("a", shape=[2, 4])), "shape [2, 4] of F32 takes 32 bytes"),
    "type too wide": (packed(changed("a", dtype="F64")), "shape [2, 3] of F64 takes 48 bytes"),
    "unknown type": (packed(changed("a", dtype="F4")), "the type 'F4' is none of"),
    "type in small letters": (packed(changed("a", dtype="f32")), "the type 'f32' is none of"),
    "type no text": (packed(changed("a", dtype=None)), "the type 'None' is none of"),
    "negative": (packed(changed("a", shape=[-2, -3])), "none negative"),
    "bool for integer": (packed(changed("b", shape=[True])), "arrays of integers"),
    "float for integer": (packed(changed("a", shape=[2.0, 3])), "arrays of integers"),
    "beyond 64 bits": (packed(changed("a", shape=[2**63])), "arrays of integers of 64 bits"),
    "shape no array": (packed(changed("a", shape=6)), "arrays of integers"),
    "one offset": (packed(changed("a", data_offsets=[0])), "data_offsets are [0]"),
    "three offsets": (packed(changed("a", data_offsets=[0, 24, 24])), "data_offsets are [0, 24, 24]"),
    "key missing": (packed({"a": {"dtype": "F32", "shape": [6]}}), "exactly dtype, shape and data_offsets"),
    "key unknown": (packed(changed("a", code="x")), "exactly dtype, shape and data_offsets"),
    "entry no object": (packed(GOOD | {"a": 1}), "exactly dtype, shape and data_offsets"),
    "metadata no object": (packed(GOOD | {"__metadata__": "x"}), "__metadata__ is no object of texts"),
    "metadata no texts": (packed(GOOD | {"__metadata__": {"a": {}}}), "__metadata__ is no object of texts"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_with_what_is_wrong(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGES[damage]
    with pytest.raises(CheckpointDamaged) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert str(tmp_path / "x.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (changed("c", shape=[0, 2**62]), "elements are read"),
        (changed("c", shape=[0, 2**40, 2**40]), "elements are read"),
        (changed("b", shape=[1] * 9), "a shape of 9 dimensions"),
        (changed("b", shape=[1] * 100_000), "a shape of 100000 dimensions"),
        ({str(index): GOOD["c"] | {"data_offsets": [0, 0]} for index in range(10_001)}, "10001 tensors"),
    ],
)
def test_shapes_and_counts_beyond_the_limits_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(LimitExceeded, match=message):
        read(tmp_path, packed(header))


def test_a_header_beyond_the_limit_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((LIMITS.header_bytes + 1).to_bytes(8, "little"))
        file.truncate(LIMITS.header_bytes + 100)
    with pytest.raises(LimitExceeded, match="a header of 4194305 bytes"):
        read_header(path)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\x00", "\u202e", "ä", "\x1b[2J", "x" * 1025])
def test_names_that_are_not_visible_ascii_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeName) as caught:
        read(tmp_path, packed({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, 1))
    assert str(caught.value).isprintable()


def test_missing_files_folders_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", ""):
        with pytest.raises(CheckpointDamaged):
            read_header(tmp_path / name)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*ITEM_BYTES, "F4", "C64"]),
        "shape": st.lists(st.integers(0, 3), max_size=3),
        "slack": st.sampled_from([0] * 12 + [-1, 1]),
        "extra": st.sampled_from([{}] * 8 + [{"x": 1}]),
    }
)


def laid_out(entries: list[dict[str, Any]], names: list[str]) -> bytes:
    """Returns a file of these tensors one after the other; `slack` shifts an end, so most files are sound, not all."""
    header, end = {}, 0
    for name, entry in zip(names, entries, strict=False):
        start = end
        size = ITEM_BYTES.get(entry["dtype"], 1)
        for length in entry["shape"]:
            size *= length
        end = max(0, start + size + entry["slack"])
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [start, end]} | entry[
            "extra"
        ]
    return packed(header, end)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ENTRIES, max_size=4),
    st.permutations(["a", "b.weight", "../c", "z"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2),
)
def test_what_we_take_the_library_takes_with_the_same_shapes(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[dict[str, Any]],
    names: list[str],
    flips: list[tuple[int, int]],
) -> None:
    content = bytearray(laid_out(entries, names))
    for position, byte in flips:
        content[position % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "differential.safetensors"
    path.write_bytes(content)
    try:
        ours = read_header(path)
    except HfMergeError as error:
        assert str(error).isprintable()
        return
    try:
        with safe_open(path, "np") as theirs:
            assert {name: tuple(theirs.get_slice(name).get_shape()) for name in theirs.keys()} == {  # noqa: SIM118
                name: spec.shape for name, spec in ours.items()
            }
            assert {theirs.get_slice(name).get_dtype() for name in ours} == {spec.dtype for spec in ours.values()}
    except SafetensorError as error:
        pytest.fail(f"the library refuses what we take: {error}")


@given(st.integers(0, 200), st.integers(0, 255), st.sampled_from(["flip", "cut", "insert"]))
def test_one_wrong_byte_raises_only_our_own_errors(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, kind: str
) -> None:
    content = save({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int8)})
    position %= len(content)
    after = {"flip": position + 1, "cut": len(content), "insert": position}[kind]
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content[:position] + bytes([byte]) + content[after:])
    try:
        read_header(path)
    except HfMergeError as error:
        assert str(error).isprintable()
