"""Of every family: searched, built and loaded, a chain answers as a model that is put together by hand."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer

from hf_merge import MergeModel
from hf_merge.workflow.build import build
from hf_merge.workflow.search import search
from tests.families.by_hand import chain_model
from tests.families.catalogue import FAMILIES
from tests.families.making import TASKS, MadeFamily, make_data, make_family
from tests.tiny_models import pictures


QUICK = ("mixtral", "resnet", "t5")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], MadeFamily]:
    """Returns a function from a family's name to its base and fine-tunes on disk, not to be changed."""

    @cache
    def data(kind: str) -> dict[str, dict[str, Path]]:
        return make_data(kind, tmp_path_factory.mktemp(f"{kind}-data"))

    @cache
    def make(name: str) -> MadeFamily:
        spec = FAMILIES[name]
        return make_family(spec, tmp_path_factory.mktemp(name), data(spec.kind))

    return make


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_a_chain_answers_as_the_model_put_together_by_hand(
    name: str, made: Callable[[str], MadeFamily], tmp_path: Path
) -> None:
    family = made(name)
    run = tmp_path / "run"
    front = search(family.recipe(), run, progress=False)
    assert front.points
    members = list(build(run, progress=False))
    for member in {members[0], members[-1]}:
        model = MergeModel.from_pretrained(member)
        for task in TASKS:
            inputs = batch_of(family, task)
            by_hand = chain_model(family, member, task, tmp_path / f"{member.name}-{task}")
            with torch.inference_mode():
                expected = by_hand(**inputs).logits
            found = model(task=task, **inputs).logits[:, : expected.shape[1]]
            assert expected.std() > 0
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            with torch.inference_mode():
                ordinary = model.materialize(task)(**inputs).logits
            torch.testing.assert_close(ordinary, expected, rtol=1e-5, atol=1e-6)
    answers = model.predict(rows_of(family, TASKS[0]))
    assert {answer.task for answer in answers} <= set(TASKS)


def rows_of(family: MadeFamily, task: str) -> list[Any]:
    cells: list[Any] = pyarrow.parquet.read_table(family.data[task]["test"]).to_pydict()[family.spec.kind]
    return cells if family.spec.kind == "text" else list(pictures(cells))


def batch_of(family: MadeFamily, task: str) -> dict[str, Tensor]:
    """Returns the test rows of a task as one batch, as transformers alone makes it."""
    rows = rows_of(family, task)
    if family.spec.kind == "text":
        return dict(AutoTokenizer.from_pretrained(family.base)(rows, padding=True, return_tensors="pt"))
    return dict(AutoImageProcessor.from_pretrained(family.base, backend="pil")(images=rows, return_tensors="pt"))
