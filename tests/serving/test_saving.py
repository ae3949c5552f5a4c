"""What is saved is what was loaded; the rest of saving is tested with the model, and with a Hub."""

from dataclasses import replace
from pathlib import Path

import pytest

from hf_merge.errors import DigestMismatch
from hf_merge.serving.saving import reopened
from hf_merge.storing.library import Member
from tests.tiny_runs import TinyRun


@pytest.fixture
def member(tiny_run: TinyRun) -> Path:
    return tiny_run.members[0]


def test_a_member_is_opened_again_with_nothing_checked(member: Path) -> None:
    first = Member(member)
    again = reopened(first, first.chain_map)
    assert again is not first and again.chain_map == first.chain_map and again.tasks == first.tasks


def test_a_map_that_was_written_over_is_noticed(member: Path) -> None:
    first = Member(member)
    with pytest.raises(DigestMismatch, match="was written over since it was loaded"):
        reopened(first, replace(first.chain_map, cost=first.chain_map.cost + 1))
