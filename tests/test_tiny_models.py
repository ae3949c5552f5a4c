"""What other tests stand on: no network, and families of folders that the package reads, heads that know a task."""

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray

from hf_merge.modeling.inputs import image_batches, load_image_processor, load_tokenizer, restore, text_batches
from tests.tiny_models import LAYOUTS, TinyFamily, TinyTask, load_task_model, pictures


def test_no_test_reaches_the_network() -> None:
    with pytest.raises(OSError, match="tests talk to loopback only"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


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
