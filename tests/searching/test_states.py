"""Hidden states are found again by what decides them, and never take more than they may."""

import pytest
import torch

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.experts import ExpertKey
from hf_merge.searching.states import StateCache, StateKey


STATE = torch.zeros(25)  # 100 bytes


def key(task: str = "a", block: int = 1, members: tuple[str, ...] = ("a",)) -> StateKey:
    return task, block, (ExpertKey("attention.0", members, None, CodecSpec.resolve("full", {})),)


def keep(cache: StateCache, wanted: StateKey, batches: int = 1) -> None:
    cache.begin([wanted])
    for _ in range(batches):
        cache.add(wanted, STATE)
    cache.finish()


def test_states_come_back_in_the_order_of_the_batches() -> None:
    cache = StateCache(1000)
    states = [torch.full((2,), float(index)) for index in range(3)]
    cache.begin([key()])
    for state in states:
        cache.add(key(), state)
    assert cache.find(key()) is None, "nothing is found before it is whole"
    cache.finish()
    assert cache.find(key()) == states


@pytest.mark.parametrize("other", [key(task="b"), key(block=2), key(members=("a", "b"))])
def test_other_tasks_blocks_and_experts_have_other_states(other: StateKey) -> None:
    cache = StateCache(1000)
    keep(cache, key())
    assert cache.find(other) is None


def test_the_least_recently_used_go_first() -> None:
    cache = StateCache(200)
    keep(cache, key("a"))
    keep(cache, key("b"))
    cache.find(key("a"))
    keep(cache, key("c"))
    assert [task for task in "abc" if cache.find(key(task)) is not None] == ["a", "c"]
    assert cache.held_bytes == 200


def test_what_is_larger_than_the_limit_is_not_kept_and_leaves_nothing() -> None:
    cache = StateCache(250)
    keep(cache, key("a"))
    keep(cache, key("b"), batches=3)
    assert cache.find(key("b")) is None
    assert cache.held_bytes <= 250
    keep(cache, key("c"))
    assert cache.find(key("c")) is not None


def test_the_limit_holds_while_recording() -> None:
    cache = StateCache(350)
    keep(cache, key("a"), batches=2)
    cache.begin([key("b", 1), key("b", 2)])
    for _ in range(3):
        for block in (1, 2):
            cache.add(key("b", block), STATE)
            assert cache.held_bytes <= 350
    cache.finish()
    assert [cache.find(key("b", block)) is not None for block in (1, 2)].count(True) == 1


def test_a_recording_that_was_broken_off_is_forgotten() -> None:
    cache = StateCache(1000)
    cache.begin([key("a")])
    cache.add(key("a"), STATE)
    keep(cache, key("b"))
    assert cache.find(key("a")) is None
    assert cache.held_bytes == 100


def test_without_room_nothing_is_kept() -> None:
    cache = StateCache(0)
    keep(cache, key())
    assert cache.find(key()) is None
    assert cache.held_bytes == 0
