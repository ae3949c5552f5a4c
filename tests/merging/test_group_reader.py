"""Reading a group: members anew each time they are gone through, ranges gathered once, memory handed out again."""

import torch
from torch import Tensor

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.group_reader import GroupReader, Members


class _Reading:
    """A source that counts how often it is read."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.count = weights, 0

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        self.count += 1
        return self.weights.clone() if out is None else out.copy_(self.weights)


def _reader(*sources: _Reading) -> GroupReader:
    tasks = {f"t{index}": source for index, source in enumerate(sources)}
    return GroupReader(tuple(tasks), CodecSpec.resolve("int8"), {"w": (2, 3)}, _Reading(torch.zeros(6)), tasks)


def test_members_are_read_anew_each_time_they_are_gone_through() -> None:
    source = _Reading(torch.arange(6.0))
    reader = _reader(source)
    members = Members(lambda task: reader.read_member(task, ["w"], reader.scratch(["w"], "member")), {"t0": 7})
    for _ in range(2):
        for member in members:
            assert (member.task, member.seed) == ("t0", 7)
            assert torch.equal(member.weights, torch.arange(6.0))
            member.weights.fill_(torch.nan)  # a method may overwrite what it is given
    assert source.count == 2


def test_a_member_read_twice_counts_once_in_the_mean_range() -> None:
    reader = _reader(_Reading(torch.arange(6.0)), _Reading(torch.arange(6.0) * 3))
    for task in ("t0", "t1", "t0"):
        reader.read_member(task, ["w"], reader.buffer(["w"]))
    mean = reader.mean_range("w")
    assert mean is not None
    assert float(mean) == 10.0


def test_scratch_memory_is_handed_out_again_for_the_same_use_and_no_other() -> None:
    reader = _reader(_Reading(torch.arange(6.0)), _Reading(torch.arange(6.0)))
    first = reader.scratch(["w"], "member")
    assert reader.scratch(["w"], "member").data_ptr() == first.data_ptr()
    assert reader.scratch(["w"], "base").data_ptr() != first.data_ptr()
