"""Putting a member together; that it answers rightly is seen in `test_model.py`, through the model that uses it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_merge.serving.assembling import Assembler
from hf_merge.storing.library import Member
from tests.modeling.test_assembly import opened
from tests.serving.members import MIXED, write
from tests.tiny_models import TinyFamily


@pytest.fixture(scope="module")
def member(tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tiny = tmp_path_factory.mktemp("members") / "bert", tiny_family("bert")
    with opened(tiny) as family:
        write(tiny, family, folder, MIXED)
    return folder


def test_only_what_the_tasks_need_is_decoded(member: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    expert = Member.expert
    monkeypatch.setattr(Member, "expert", lambda self, entry: decoded.append(entry.id) or expert(self, entry))  # type: ignore[func-returns-value]
    parts = Assembler(Member(member, ["colours"]), torch.device("cpu"), torch.float32)
    assert parts.heads.keys() == {"colours"}
    assert len(parts.recombiner().models) == 1
    assert sorted(decoded) == sorted(Member(member).chain_map.chains["colours"])
    assert parts.router() is None


def test_a_skeleton_has_the_head_of_its_task_and_no_weights(member: Path) -> None:
    parts = Assembler(Member(member), torch.device("cpu"), torch.float32)
    for task, head in parts.heads.items():
        model = parts.skeleton(task)
        assert model.num_labels == head.num_labels
        assert all(tensor.numel() == 0 for tensor in model.tensors().values())
