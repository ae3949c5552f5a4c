"""A tiny family, its experts, and member folders of them."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from hf_merge.merging.experts import Expert
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family, align
from hf_merge.storing.member_writing import MemberContent, write_member
from tests.storing.members import INT8, MIXED, built, content_of
from tests.tiny_models import TinyFamily


@pytest.fixture(scope="session")
def family(tiny_family: Callable[[str], TinyFamily]) -> Iterator[Family]:
    tiny = tiny_family("bert")
    base = Checkpoint(str(tiny.base), tiny.base)
    with align(base, {task.name: Checkpoint(task.name, task.folder) for task in tiny.tasks.values()}) as aligned:
        yield aligned


@pytest.fixture(scope="session")
def experts(family: Family) -> dict[str, Expert]:
    return {expert.key.id: expert for expert in built(family, MIXED, INT8)}


@pytest.fixture
def content(family: Family, experts: Mapping[str, Expert]) -> MemberContent:
    return content_of(family, MIXED, INT8, list(experts.values()))


@pytest.fixture(scope="session")
def pristine(family: Family, experts: Mapping[str, Expert], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members") / "pristine"
    write_member(folder, content_of(family, MIXED, INT8, list(experts.values())))
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A member folder to damage."""
    shutil.copytree(pristine, tmp_path / "member")
    return tmp_path / "member"
