"""The families that other tests stand on: folders that the package reads, and their heads know their task."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray

from hf_merge.modeling.inputs import image_batches, load_image_processor, load_tokenizer, restore, text_batches
from tests.tiny_models import LAYOUTS, TinyFamily, TinyTask, load_task_model, pictures


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fine_tunes_know_their_task(layout: str, tiny_family: Callable[[str], TinyFamily]) -> None:
    family = tiny_family(layout)
    assert len(family.tasks) == 3
    for task in family.tasks.values():
        answers, labels = _answers(family, task)
        if task.labels is None:
            assert np.corrcoef(answers[:, 0].numpy(), labels)[0, 1] > 0.5
        else:
            assert (answers.argmax(dim=1).numpy() == labels).mean() > 1.2 / task.num_labels


def _answers(family: TinyFamily, task: TinyTask) -> tuple[torch.Tensor, NDArray[Any]]:
    table = pyarrow.parquet.read_table(task.files["test"]).to_pydict()
    if family.kind == "text":
        batches = text_batches(load_tokenizer(task.folder), table["text"], None, batch_size=64)
    else:
        batches = image_batches(load_image_processor(task.folder), pictures(table["image"]), batch_size=64)
    model = load_task_model(family.kind, task.folder)
    with torch.inference_mode():
        return restore(batches, [model(**batch.inputs).logits for batch in batches]), np.array(table["label"])
