"""A base and what was trained on it: who is closed, what decides the weights, and what is the base's."""

from collections.abc import Callable

import pytest

from hf_merge.errors import ResourceError
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import align
from tests.tiny_models import TinyFamily


def test_a_family_closes_its_files_and_knows_their_digests(tiny_family: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family("bert")
    tuned = {name: Checkpoint(str(task.folder), task.folder) for name, task in tiny.tasks.items()}
    with align(Checkpoint(str(tiny.base), tiny.base), tuned) as family:
        digests = family.digests()
        assert list(digests) == ["base", *(f"task {name}" for name in tiny.tasks)]
        assert len(set(digests.values())) == len(digests)
        assert family.of_base == tuple(family.shapes) and not family.adapted
        for name, task in family.tasks.items():
            assert task.source is tuned[name] and task.config == tuned[name].config
            assert all(task.read_head(head).equal(tuned[name].read(head)) for head in task.head)
    name = family.of_base[0]
    for source in (family.origin, *family.tasks.values()):
        with pytest.raises(ResourceError):
            source.read(name)
