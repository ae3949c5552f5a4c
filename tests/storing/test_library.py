"""Member folders: what was built is what is read, bit for bit, and whatever is not as it was written is refused."""

import json
from collections.abc import Callable
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import (
    DigestMismatch,
    InputError,
    LimitExceeded,
    MalformedChainMap,
    UnknownFormatVersion,
    UnsafeName,
    UntrustedContentError,
)
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import decode_expert
from hf_merge.storing import shard_layout
from hf_merge.storing.chains import FileEntry
from hf_merge.storing.families import Family
from hf_merge.storing.headers import Header, parse_header
from hf_merge.storing.library import MAP_FILE, Member
from hf_merge.storing.member_writing import MemberContent, write_member
from hf_merge.storing.strict_json import dumps
from hf_merge.storing.tensors import sha256_of
from hf_merge.version import VERSION
from tests.storing.members import FULL, INT8, MIXED, SHARD, built, content_of, cut, flip


# Round trip


@pytest.mark.parametrize("codec", [FULL, INT8, CodecSpec.resolve("int8", {"unit": "row"})])
@pytest.mark.parametrize("shard_bytes", [1, 60_000, 1 << 26])
def test_what_was_built_is_what_is_read(
    codec: CodecSpec, shard_bytes: int, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_layout, "SHARD_BYTES", shard_bytes)
    experts = list(built(family, MIXED, codec))
    content = content_of(family, MIXED, codec, experts)
    written = write_member(tmp_path, content)
    member = Member(tmp_path)
    assert member.chain_map == written
    member.check_all()
    components = {component.name: component for component in cut(family)}
    assert [entry.id for entry in written.experts] == [expert.key.id for expert in experts]
    for entry, expert in zip(written.experts, experts, strict=True):
        assert entry.bytes == expert.nbytes
        names = components[entry.component].tensors
        read, expected = member.expert(entry), decode_expert(codec, names, expert.tensors)
        assert list(read) == list(names)
        for name in names:
            assert read[name].dtype == torch.float32
            assert read[name].shape == family.shapes[name]
            assert torch.equal(read[name], expected[name])
    for task, tuned in family.tasks.items():
        head = member.head(task)
        assert head.keys() == set(tuned.head)
        assert all(torch.equal(head[name], tuned.read_head(name)) for name in head)


def test_the_header_of_a_shard_is_read_once(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def parse(descriptor: int, path: Path) -> Header:
        read.append(path)
        return parse_header(descriptor, path)

    monkeypatch.setattr("hf_merge.storing.tensors.parse_header", parse)
    member = Member(pristine)
    first, second = ([member.expert(entry) for entry in member.experts] for _ in range(2))
    assert sorted(read) == sorted({pristine / entry.file for entry in member.experts})
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pool_bytes", [1, 3_000, 20_000])
def test_a_tasks_shards_hold_little_that_it_does_not_use(
    pool_bytes: int, content: MemberContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_layout, "POOL_BYTES", pool_bytes)
    written = write_member(tmp_path, content)
    sizes = {name: entry.bytes for name, entry in written.files.items() if name.startswith("experts-")}
    for task in written.tasks:
        member = Member(tmp_path, [task])
        fetched = sum(size for name, size in sizes.items() if name in member.files)
        used = sum(entry.bytes for entry in member.experts) + written.heads[task].bytes
        headers = sum(header_bytes(tmp_path / name) for name in sizes if name in member.files)
        assert fetched - headers - used < (pool_bytes if pool_bytes > 1 else 1), task
        assert fetched < sum(sizes.values())


def header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


# Some of the tasks


def test_only_the_files_of_the_chosen_tasks_are_needed(
    content: MemberContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_layout, "POOL_BYTES", 1)
    write_member(tmp_path, content)
    whole = Member(tmp_path)
    assert whole.files == tuple(whole.chain_map.files)
    assert whole.experts == whole.chain_map.experts
    alone = Member(tmp_path, ["sizes"])
    assert alone.tasks == ("sizes",)
    assert {entry.id for entry in alone.experts} == set(whole.chain_map.chains["sizes"])
    assert "router.safetensors" not in alone.files and "tokenizer.json" in alone.files
    for name in whole.files:
        if name not in alone.files:
            (tmp_path / name).unlink()
    alone.check_all()
    assert alone.router() is None
    assert all(alone.expert(entry) for entry in alone.experts)
    assert alone.head("sizes")
    with pytest.raises(DigestMismatch, match="is missing"):
        Member(tmp_path).check_all()


def test_tasks_come_in_the_order_of_the_chains_and_several_are_routed(pristine: Path) -> None:
    member = Member(pristine, ["sizes", "animals"])
    assert member.tasks == ("animals", "sizes")
    assert "router.safetensors" in member.files


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["animal"], r"Unknown task 'animal'\. Did you mean 'animals'\? Known: animals, colours, sizes\."),
        (["sizes", "sizes"], "'sizes' is chosen twice"),
        ([], r"tasks is \[\]: give a list of one task or more, or None for all\. Known: animals"),
        ("sizes", "tasks is 'sizes': give a list"),
        ([3], "Unknown task '3'"),
    ],
)
def test_choices_of_tasks_that_are_none_are_refused(tasks: Any, message: str, pristine: Path) -> None:
    with pytest.raises(InputError, match=message):
        Member(pristine, tasks)


def test_a_map_that_was_not_promised_is_refused(folder: Path) -> None:
    promised = sha256_of(folder / MAP_FILE)
    assert Member(folder, map_sha256=promised).chain_map.id
    (folder / MAP_FILE).write_bytes((folder / MAP_FILE).read_bytes() + b"\n")
    assert Member(folder).chain_map.id
    with pytest.raises(DigestMismatch, match=r"the member: chains\.json has SHA-256 .* where front\.json promises"):
        Member(folder, source="the member", map_sha256=promised)


# Writing again, and being interrupted
# Damage


@pytest.mark.parametrize("name", [SHARD, "config.json", "tokenizer.json", "router.safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "has SHA-256"),
        (lambda path: flip(path, 0), "has SHA-256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has \d+ bytes where chains\.json promises"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), r"has \d+ bytes where"),
        (lambda path: path.unlink(), "is missing"),
    ],
)
def test_damaged_files_are_refused(damage: Callable[[Path], object], message: str, name: str, folder: Path) -> None:
    damage(folder / name)
    member = Member(folder)
    with pytest.raises(DigestMismatch, match=f"{name} {message}.*Fetch or build it again"):
        member.check_all()
    if name == SHARD:
        with pytest.raises(DigestMismatch):
            member.expert(member.chain_map.experts[0])
        with pytest.raises(DigestMismatch):
            member.head("animals")
    if name == "router.safetensors":
        with pytest.raises(DigestMismatch):
            member.router()


def test_exchanged_shards_are_refused(content: MemberContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_layout, "SHARD_BYTES", 60_000)
    write_member(tmp_path, content)
    first, second, *_ = sorted(tmp_path.glob("experts-*"))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    member = Member(tmp_path)
    for entry in member.chain_map.experts:
        if entry.file in (first.name, second.name):
            with pytest.raises(DigestMismatch):
                member.expert(entry)


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (lambda top: top.update(format_version=2), UnknownFormatVersion),
        (lambda top: top["files"].update({"extra.py": {"sha256": "0" * 64, "bytes": 1}}), UnsafeName),
        (lambda top: top["files"].update({"../../x": {"sha256": "0" * 64, "bytes": 1}}), UnsafeName),
        (lambda top: top.update(extra=1), MalformedChainMap),
        (lambda top: top["experts"].pop(), MalformedChainMap),
        (lambda top: top["files"]["config.json"].update(bytes=2**40), LimitExceeded),
    ],
)
def test_maps_that_break_the_format_are_refused(
    edit: Callable[[dict[str, Any]], object], error: type[UntrustedContentError], folder: Path
) -> None:
    document = json.loads((folder / MAP_FILE).read_text())
    edit(document)
    (folder / MAP_FILE).write_bytes(dumps(document))
    with pytest.raises(error):
        Member(folder)


def test_a_huge_map_is_not_read(folder: Path) -> None:
    with (folder / MAP_FILE).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitExceeded):
        Member(folder)


Tensors = dict[str, Tensor]
QUANTISED = "encoder.layer.0.attention.self.query.weight"
WHOLE = "encoder.layer.0.attention.self.query.bias"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (QUANTISED, lambda held, name: held.pop(name), "is missing"),
        (QUANTISED, lambda held, name: held.pop(f"{name}.scale"), "uint8 without scale or zero_point"),
        (QUANTISED, lambda held, name: held.pop(f"{name}.zero_point"), "uint8 without scale or zero_point"),
        (QUANTISED, lambda held, name: held[f"{name}.scale"].fill_(0), "not finite and above 0"),
        (QUANTISED, lambda held, name: held[f"{name}.scale"].fill_(float("nan")), "not finite and above 0"),
        (QUANTISED, lambda held, name: held[f"{name}.zero_point"].fill_(256), "zero_point beyond 0 to 255"),
        (QUANTISED, lambda held, name: held.update({f"{name}.scale": torch.ones(3)}), "of one shape"),
        (QUANTISED, lambda held, name: held.update({f"{name}.scale": torch.ones(()).double()}), "a float32 scale"),
        (
            QUANTISED,
            lambda held, name: held.update(
                {f"{name}.scale": torch.ones(3), f"{name}.zero_point": torch.ones(3).int()}
            ),
            r"has a scale of shape \[3\]",
        ),
        (QUANTISED, lambda held, name: held.update({name: held[name].int()}), "is torch.int32"),
        (WHOLE, lambda held, name: held[name].fill_(float("inf")), "NaN or infinity"),
        (WHOLE, lambda held, name: held.update({name: held[name].half()}), "is torch.float16"),
        (WHOLE, lambda held, name: held.update({f"{name}.scale": torch.ones(())}), "is torch.float32, where"),
        (WHOLE, lambda held, name: held.update({name: torch.ones(99)}), r"takes \d+ bytes where chains.json promises"),
    ],
)
def test_tensors_that_no_codec_writes_are_refused(
    name: str, edit: Callable[[Tensors, str], object], message: str, folder: Path
) -> None:
    """The digest vouches for the bytes, and yet nobody can make us compute with nonsense."""
    member = Member(folder)
    entry = next(entry for entry in member.chain_map.experts if entry.component == "attention")
    tensors = load_file(folder / SHARD)
    edit(tensors, f"{entry.id}/{name}")
    forge(folder, tensors)
    with pytest.raises(MalformedChainMap, match=message):
        Member(folder).expert(entry)


def test_a_head_is_never_quantised(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    name = "heads/animals/classifier.weight"
    tensors |= {
        name: tensors[name].byte(),
        f"{name}.scale": torch.ones(()),
        f"{name}.zero_point": torch.ones(()).int(),
    }
    forge(folder, tensors, head="animals")
    with pytest.raises(MalformedChainMap, match="stored in full"):
        Member(folder).head("animals")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("9.9.9", rf"Unknown codec 'int3'.*hf-merge 9\.9\.9 wrote it, and this is {VERSION}: update hf-merge\.$"),
        (VERSION, rf"Unknown codec 'int3'.*hf-merge {VERSION} wrote it, which has no such codec: .* was changed\.$"),
    ],
)
def test_an_unknown_codec_is_refused_before_anything_is_read(version: str, message: str, folder: Path) -> None:
    document = json.loads((folder / MAP_FILE).read_text())
    document["library_version"], document["experts"][0]["codec"] = version, "int3"
    (folder / MAP_FILE).write_bytes(dumps(document))
    with pytest.raises(MalformedChainMap, match=message):
        Member(folder)


def forge(folder: Path, tensors: Tensors, head: str = "") -> None:
    """Writes other tensors into the shard, and a map that vouches for them."""
    save_file(tensors, folder / SHARD)
    document = json.loads((folder / MAP_FILE).read_text())
    document["files"][SHARD] = vars(FileEntry(sha256_of(folder / SHARD), (folder / SHARD).stat().st_size))
    if head:
        held = [tensor for name, tensor in tensors.items() if name.startswith(f"heads/{head}/")]
        document["heads"][head]["bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in held)
    (folder / MAP_FILE).write_bytes(dumps(document))


def test_the_tiny_family_is_large_enough_to_tell_groupings_apart(family: Family) -> None:
    assert len(cut(family)) == 4
    assert sum(map(prod, family.shapes.values())) == family.parameters
    assert all(first != second for first, second in combinations(family.tasks, 2))
