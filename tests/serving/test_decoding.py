"""Experts decoded with a shared one kept: the same bits as without, read once, and let go."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hf_merge.serving.assembling import Assembler
from hf_merge.serving.decoding import Decoder
from hf_merge.storing.chain_entries import ExpertEntry
from hf_merge.storing.library import Member
from tests.modeling.test_assembly import opened
from tests.serving.members import SEPARATE, write
from tests.tiny_models import TinyFamily


CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["ternary", "lowrank"])
def member(
    request: pytest.FixtureRequest,
    tiny_family: Callable[[str], TinyFamily],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder, tiny = tmp_path_factory.mktemp("members") / "residual", tiny_family("bert")
    with opened(tiny) as family:
        write(tiny, family, folder, SEPARATE, differences=request.param)
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often what is stored of each expert was read."""
    found: Counter[str] = Counter()
    stored = Member._stored

    def counted(self: Member, entry: ExpertEntry, prefix: str, *others: object) -> object:
        found[prefix] += 1
        return stored(self, entry, prefix, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Member, "_stored", counted)
    return found


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bits_are_those_that_an_expert_alone_has(member: Path, threads: int) -> None:
    opened_member = Member(member)
    decoder = Decoder(opened_member)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(decoder.expert, opened_member.experts * 2))
    for entry, weights in zip(opened_member.experts * 2, found, strict=True):
        alone = opened_member.expert(entry)
        assert list(weights) == list(alone)
        assert all(torch.equal(weights[name], tensor) for name, tensor in alone.items())


def test_a_shared_expert_is_read_once_and_let_go(member: Path, read: Counter[str]) -> None:
    opened_member = Member(member)
    parts = Assembler(opened_member, CPU, torch.float32)
    models, kept = parts.recombiner().models, parts._decoder._kept
    shared = set(opened_member.chain_map.references.values())
    assert len(shared) == 3
    assert models[0].tensors() and {reference for reference, _ in kept.values()} == shared
    assert len(models[:]) == len(opened_member.tasks)
    assert {entry.id: read[entry.id] for entry in opened_member.experts} == dict.fromkeys(
        (entry.id for entry in opened_member.experts), 1
    )
    assert not kept


def test_of_one_task_no_shared_expert_is_kept(member: Path) -> None:
    opened_member = Member(member, ["colours"])
    decoder = Decoder(opened_member)
    for entry in opened_member.experts:
        decoder.expert(entry)
        assert not decoder._kept
