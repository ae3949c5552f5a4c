"""Copies of members: the very same files, or none."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_merge.errors import DigestMismatch, InputError
from hf_merge.storing.copying import copy_member, whole_files
from hf_merge.storing.library import Member
from tests.modeling.test_assembly import opened
from tests.serving.members import write
from tests.tiny_models import TinyFamily


@pytest.fixture(scope="module")
def pristine(tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member, not to be changed."""
    folder, tiny = tmp_path_factory.mktemp("members") / "pristine", tiny_family("bert")
    with opened(tiny) as family:
        write(tiny, family, folder, router=b"router")
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(pristine, tmp_path / "member")
    return tmp_path / "member"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_a_copy_is_the_same_member(pristine: Path, tmp_path: Path) -> None:
    copy_member(Member(pristine), tmp_path / "new" / "copy")
    assert {path.name for path in (tmp_path / "new" / "copy").iterdir()} == {path.name for path in pristine.iterdir()}
    for path in pristine.iterdir():
        assert (tmp_path / "new" / "copy" / path.name).read_bytes() == path.read_bytes()


def test_a_copy_onto_itself_changes_nothing(folder: Path, pristine: Path) -> None:
    copy_member(Member(folder), folder)
    copy_member(Member(folder), folder / ".." / folder.name)
    assert {path.name for path in folder.iterdir()} == {path.name for path in pristine.iterdir()}


def test_a_damaged_member_is_not_copied(folder: Path, tmp_path: Path) -> None:
    damage(next(folder.glob("experts-*")))
    with pytest.raises(DigestMismatch):
        copy_member(Member(folder), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_part_of_a_member_is_not_copied(pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Of .* only what animals need is loaded.*Load it without tasks="):
        copy_member(Member(pristine, ["animals"]), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_files_are_those_of_the_map_and_the_card(pristine: Path, folder: Path) -> None:
    assert whole_files(Member(pristine)).keys() == {path.name for path in pristine.iterdir()} - {"chains.json"}
    (folder / "README.md").unlink()
    (folder / "other.bin").write_bytes(b"of somebody else")
    assert whole_files(Member(folder)).keys() == Member(folder).chain_map.files.keys()
