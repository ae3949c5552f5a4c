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


def test_a_task_is_decoded_when_it_is_first_asked_for_and_experts_once(
    member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    expert = Member.expert
    monkeypatch.setattr(Member, "expert", lambda self, entry: decoded.append(entry.id) or expert(self, entry))  # type: ignore[func-returns-value]
    opened = Member(member)
    models = Assembler(opened, torch.device("cpu"), torch.float32).recombiner().models
    assert len(models) == len(opened.tasks) and not decoded
    place = opened.tasks.index("colours")
    assert models[place] is models[place]
    assert sorted(decoded) == sorted(opened.chain_map.chains["colours"])
    assert len(models[:]) == len(opened.tasks)
    assert sorted(decoded) == sorted(entry.id for entry in opened.chain_map.experts)
    with pytest.raises(IndexError):
        models[len(models)]


def test_of_some_tasks_there_are_only_those_models_and_one_needs_no_router(member: Path) -> None:
    parts = Assembler(Member(member, ["colours"]), torch.device("cpu"), torch.float32)
    assert parts.heads.keys() == {"colours"}
    assert len(parts.recombiner().models) == 1
    assert parts.routing is None


def test_weights_that_were_first_asked_for_in_inference_mode_can_still_be_trained(member: Path) -> None:
    models = Assembler(Member(member), torch.device("cpu"), torch.float32).recombiner().models
    with torch.inference_mode():
        model = models[0]
    assert not any(tensor.is_inference() for tensor in model.tensors().values())


def test_a_skeleton_has_the_head_of_its_task_and_no_weights(member: Path) -> None:
    parts = Assembler(Member(member), torch.device("cpu"), torch.float32)
    for task, head in parts.heads.items():
        model = parts.skeleton(task)
        assert model.num_labels == head.num_labels
        assert all(tensor.numel() == 0 for tensor in model.tensors().values())
