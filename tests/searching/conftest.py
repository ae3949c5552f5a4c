"""What several tests of evaluating share: a tiny family, opened, and an evaluator over it."""

from collections.abc import Callable, Iterator

import pytest

from hf_merge.searching.evaluation import Evaluator
from hf_merge.storing.families import Family
from tests.modeling.test_assembly import opened
from tests.searching.test_evaluation import evaluator_of
from tests.tiny_models import TinyFamily


@pytest.fixture
def bert(tiny_family: Callable[[str], TinyFamily]) -> TinyFamily:
    return tiny_family("bert")


@pytest.fixture
def family(bert: TinyFamily) -> Iterator[Family]:
    with opened(bert) as aligned:
        yield aligned


@pytest.fixture
def evaluator(bert: TinyFamily, family: Family) -> Evaluator:
    return evaluator_of(bert, family)
