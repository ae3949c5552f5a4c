"""Packed models: the same bits as dense ones, in about the memory that C says."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hf_merge.errors import DigestMismatch, InputError
from hf_merge.serving import packing
from hf_merge.serving.model import MergeModel
from hf_merge.serving.packing import PackedExperts, chosen_memory, decoded_bytes, free_bytes
from hf_merge.storing.library import Member
from tests.modeling.test_assembly import batch_of, opened
from tests.serving.members import MIXED, SEPARATE, write
from tests.tiny_models import TinyFamily


CPU = torch.device("cpu")
Families = Callable[[str], TinyFamily]


@pytest.fixture
def member(bert: TinyFamily, tmp_path: Path) -> Path:
    with opened(bert) as family:
        write(bert, family, tmp_path / "member", MIXED)
    return tmp_path / "member"


@pytest.mark.parametrize("codec", ["int8", "int4", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_and_dense_give_the_same_bits(codec: str, dtype: str, bert: TinyFamily, tmp_path: Path) -> None:
    with opened(bert) as family:
        write(bert, family, tmp_path / "member", MIXED, codec=codec, dtype=dtype)
    dense, packed = (MergeModel.from_pretrained(tmp_path / "member", memory=memory) for memory in ("dense", "packed"))
    assert (dense.memory, packed.memory) == ("dense", "packed")
    batch = batch_of("bert")
    for task in dense.tasks:
        assert torch.equal(dense(task, **batch).logits, packed(task, **batch).logits)
        first, second = (dict(model.materialize(task).named_parameters()) for model in (dense, packed))
        assert all(torch.equal(parameter, second[name]) for name, parameter in first.items())


def test_what_is_held_is_about_what_lies_on_disk(bert: TinyFamily, tmp_path: Path) -> None:
    with opened(bert) as family:
        write(bert, family, tmp_path / "member", SEPARATE)
    member = Member(tmp_path / "member")
    experts = PackedExperts(member, CPU, torch.float32, cache_bytes=0)
    for component in member.chain_map.components:
        for entry in member.experts:
            if entry.component == component.name:
                for name in component.tensors:
                    experts.tensor(entry.id, name)
    last = 4 * experts.tensor(entry.id, name).numel()
    assert experts.nbytes == sum(entry.bytes for entry in member.experts) + last


def test_what_was_decoded_last_is_kept_within_its_limit(member: Path) -> None:
    opened_member = Member(member)
    entry = opened_member.experts[0]
    names = next(item.tensors for item in opened_member.chain_map.components if item.name == entry.component)
    roomy = PackedExperts(opened_member, CPU, torch.float32)
    for name in [*names, *names]:
        roomy.tensor(entry.id, name)
    assert roomy.decoded == len(names)
    tight = PackedExperts(opened_member, CPU, torch.float32, cache_bytes=0)
    for name in [*names, *names]:
        tight.tensor(entry.id, name)
        tight.tensor(entry.id, name)  # several times in a row costs once
    assert tight.decoded == 2 * len(names)


def test_threads_may_share_a_packed_model(member: Path) -> None:
    model = MergeModel.from_pretrained(member, memory="packed")
    batches = [(task, batch_of("bert", seed)) for seed in range(4) for task in model.tasks]
    expected = [model(task, **batch).logits for task, batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: model(pair[0], **pair[1]).logits, batches))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_auto_packs_where_the_chains_would_take_more_than_half_of_what_is_free(
    member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain_map, tasks = Member(member).chain_map, Member(member).tasks
    needed, one = decoded_bytes(chain_map, tasks, torch.float32), 4 * chain_map.base.parameters
    assert one < needed < 3 * one  # some experts are shared
    assert decoded_bytes(chain_map, tasks[:1], torch.bfloat16) == one // 2
    for free, expected in ((2 * needed, "dense"), (2 * needed - 2, "packed"), (None, "dense")):
        monkeypatch.setattr(packing, "free_bytes", lambda device, free=free: free)
        assert chosen_memory("auto", Member(member), CPU, torch.float32) == expected
        assert MergeModel.from_pretrained(member).memory == expected


def test_a_mode_that_is_none_is_refused(member: Path) -> None:
    with pytest.raises(InputError, match="memory is 'zipped'; choose one of auto, dense, packed"):
        MergeModel.from_pretrained(member, memory="zipped")


def test_free_memory_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable:    7 kB\n")
    monkeypatch.setattr(packing, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(packing, "_CGROUP", tmp_path / "nowhere")
    assert free_bytes(CPU) == 7 * 1024
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\n")
    assert free_bytes(CPU) is None
    monkeypatch.setattr(packing, "_MEMINFO", tmp_path / "nowhere")
    assert free_bytes(CPU) is None


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"memory.max": "9000", "memory.current": "5000", "memory.stat": "anon 3\ninactive_file 1000"}, 5000),
        ({"memory.max": "9000", "memory.current": "5000"}, 4000),
        ({"memory.max": "9000", "memory.current": "9500"}, 0),
        ({"memory.max": "90000", "memory.current": "5000"}, 7 * 1024),
        ({"memory.max": "max", "memory.current": "5000"}, 7 * 1024),
        ({"memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "5000"}, 4000),
        (
            {
                "memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "5000",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500",
            },
            4500,
        ),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}, 7 * 1024),
    ],
)  # fmt: skip
def test_a_container_has_no_more_free_than_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "meminfo").write_text("MemAvailable:    7 kB\n")
    monkeypatch.setattr(packing, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(packing, "_CGROUP", tmp_path)
    assert free_bytes(CPU) == free


def test_a_shard_that_is_flipped_after_loading_is_refused_when_it_is_used(member: Path) -> None:
    model = MergeModel.from_pretrained(member, memory="packed")
    shard = next(member.glob("experts-*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(DigestMismatch):
        model(model.tasks[0], **batch_of("bert"))
