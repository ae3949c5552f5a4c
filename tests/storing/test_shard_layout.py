"""How members are cut into shards: a task's shards hold its own experts and little else."""

from collections.abc import Iterator
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.storing import shard_layout
from hf_merge.storing.limits import MIB
from hf_merge.storing.shard_layout import POOL_BYTES, SHARD_BYTES, Piece, cut, in_order, tasks_of_experts


CHAINS = {"a": ["x-1", "y-1", "z-1"], "b": ["x-1", "y-2", "z-1"], "c": ["x-1", "y-1", "z-2"]}
TASKS = ("a", "b", "c")


def test_an_expert_serves_the_tasks_whose_chains_hold_it() -> None:
    served = tasks_of_experts(CHAINS)
    assert served == {"x-1": TASKS, "y-1": ("a", "c"), "y-2": ("b",), "z-1": ("a", "b"), "z-2": ("c",)}
    assert list(served) == ["x-1", "y-1", "y-2", "z-1", "z-2"]


def test_a_shared_expert_serves_whoever_stores_a_difference_from_it() -> None:
    served = tasks_of_experts(CHAINS, {"y-1": "y-s", "y-2": "y-s"})
    assert served["y-s"] == TASKS
    assert list(served) == ["x-1", "y-s", "y-1", "y-2", "z-1", "z-2"]


def test_what_serves_most_comes_first_and_then_the_tasks_order_counts() -> None:
    served = tasks_of_experts(CHAINS) | {"heads/c": ("c",), "heads/a": ("a",)}
    assert in_order(served, TASKS) == ["x-1", "z-1", "y-1", "heads/a", "y-2", "z-2", "heads/c"]


def test_large_sets_of_tasks_have_shards_of_their_own() -> None:
    pieces = [Piece(TASKS, 3 * MIB, "x"), Piece(TASKS, MIB, "y"), Piece(("a",), 2 * MIB, "z")]
    assert list(cut(pieces)) == [["x", "y"], ["z"]]


def test_small_sets_of_tasks_share_a_shard() -> None:
    pieces = [
        Piece(("a",), 10, "head a"),
        Piece(("b",), POOL_BYTES, "expert of b"),
        Piece(("c",), 20, "head c"),
    ]
    assert list(cut(pieces)) == [["expert of b"], ["head a", "head c"]]


def test_small_sets_share_no_more_than_the_pool_holds() -> None:
    half = POOL_BYTES // 2
    pieces = [Piece((task,), half, task) for task in "abcde"]
    assert list(cut(pieces)) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_shard_has_a_largest_size_but_nothing_is_cut_in_two() -> None:
    sizes = [40 * MIB, 20 * MIB, 10 * MIB, 100 * MIB, 2 * MIB]
    assert list(cut([Piece(("a",), size, size) for size in sizes])) == [sizes[:2], sizes[2:3], sizes[3:4], sizes[4:]]


def test_no_more_is_asked_for_than_one_shard_holds() -> None:
    asked = 0

    def pieces() -> Iterator[Piece[int]]:
        nonlocal asked
        for index in range(10):
            asked += 1
            yield Piece(("a",), SHARD_BYTES, index)

    for index, shard in enumerate(cut(pieces())):
        assert shard == [index]
        assert asked <= index + 2


PIECES = st.lists(
    st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.integers(1, 200)), min_size=1, max_size=40
)


@given(PIECES)
def test_whatever_the_sizes_a_task_fetches_little_that_it_does_not_use(drawn: list[tuple[set[str], int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_layout, "SHARD_BYTES", 300)
        patch.setattr(shard_layout, "POOL_BYTES", 50)
        served = {str(index): tuple(sorted(tasks)) for index, (tasks, _) in enumerate(drawn)}
        order = in_order(served, tuple("abcd"))
        shards = list(cut(Piece(served[key], drawn[int(key)][1], key) for key in order))
    assert sorted(key for shard in shards for key in shard) == sorted(served)
    small = 0
    for shard in shards:
        size = sum(drawn[int(key)][1] for key in shard)
        kinds = [tasks for tasks, _ in groupby(shard, key=served.__getitem__)]
        assert size <= 300 or len(shard) == 1
        if len(kinds) > 1:
            assert size <= 50
            assert len(set(kinds)) == len(kinds), "a set of tasks was scattered"
            small += size
    for task in "abcd":
        fetched = sum(
            drawn[int(key)][1] for shard in shards if any(task in served[other] for other in shard) for key in shard
        )
        used = sum(size for (tasks, size) in drawn if task in tasks)
        assert fetched - used <= small
