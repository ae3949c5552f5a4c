"""What tests of serving share: the family `bert`, opened, and a member of it with a router."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_merge.serving.model import MergeModel
from hf_merge.storing.families import Family
from tests.modeling.test_assembly import opened
from tests.serving.members import MIXED, trained_router, write
from tests.tiny_models import TinyFamily


@pytest.fixture
def bert(tiny_family: Callable[[str], TinyFamily]) -> TinyFamily:
    return tiny_family("bert")


@pytest.fixture
def aligned(bert: TinyFamily) -> Iterator[Family]:
    with opened(bert) as family:
        yield family


@pytest.fixture(scope="session")
def routed_member(tiny_family: Callable[[str], TinyFamily], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member of the family `bert` with a router, not to be changed."""
    folder, tiny = tmp_path_factory.mktemp("members") / "bert", tiny_family("bert")
    with opened(tiny) as family:
        write(tiny, family, folder, MIXED, router=trained_router(tiny, family))
    return folder


@pytest.fixture(scope="module")
def model(routed_member: Path) -> MergeModel:
    return MergeModel.from_pretrained(routed_member)
