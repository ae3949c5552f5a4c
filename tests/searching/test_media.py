"""Columns of sounds: read whatever their features say, without `datasets` decoding any. Of images: test_tasks.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from hf_merge.errors import DatasetError
from hf_merge.recipe import TaskSpec
from hf_merge.searching.tasks import TaskData, load_task
from tests.tiny_models import wav_of


RATE = 16000


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache of its own; datasets reads HF_HOME only once, on import."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "home" / "datasets"))


def heard(height: float, length: int = 4) -> bytes:
    return wav_of(np.full(length, height))


def load(folder: Path, cells: Mapping[str, list[Any]], feature: Any = None) -> TaskData:
    files = {}
    for split, held in cells.items():
        made = datasets.Dataset.from_dict({"sound": held, "label": [0] * len(held)})
        if feature is not None:
            made = made.cast_column("sound", feature)
        files[split] = str(folder / f"{split}.parquet")
        made.to_parquet(files[split])
    data = {"path": "parquet", "data_files": files, "audio": "sound"}
    task = TaskSpec.model_validate({"name": "a", "model": "org/model", "data": data})
    return load_task(task, validation_rows=9, router_rows=9, seed=0, num_labels=2, label_names=None)


def cells_of(heights: Mapping[str, list[float]]) -> dict[str, list[Any]]:
    return {split: [{"bytes": heard(one), "path": None} for one in held] for split, held in heights.items()}


@pytest.mark.parametrize("feature", [None, datasets.Audio(), datasets.Audio(sampling_rate=RATE, decode=False)])
def test_sounds_are_read_whatever_the_feature(feature: Any, tmp_path: Path) -> None:
    data = load(tmp_path, cells_of({"train": [0.1], "validation": [0.2], "test": [0.5, 0.25]}), feature)
    assert data.test.sounds is not None
    assert [sound.samples.round(3).tolist() for sound in data.test.sounds] == [[0.5] * 4, [0.25] * 4]
    assert [sound.origin for sound in data.test.sounds] == [f"Task 'a', split 'test', row {row}" for row in (0, 1)]
    assert data.test.sounds[0].sampling_rate == RATE
    assert (data.test.texts, data.test.images) == (None, None)


def test_bare_bytes_and_samples_are_sounds_too(tmp_path: Path) -> None:
    bare = load(
        tmp_path, {split: [heard(height)] for split, height in (("train", 0.1), ("test", 0.5), ("validation", 0))}
    )
    assert bare.test.sounds is not None
    assert bare.test.sounds[0].samples.round(3).tolist() == [0.5] * 4
    struct = {split: [{"array": [height], "sampling_rate": RATE}] for split, height in (("train", 0.1), ("test", 0.5))}
    made = load(tmp_path, struct | {"validation": [{"array": [0.2, 0.3], "sampling_rate": RATE}]})
    assert made.test.sounds is not None
    assert made.test.sounds[0].samples.tolist() == [0.5]


def test_a_sound_that_serves_for_the_test_serves_for_nothing_else(tmp_path: Path) -> None:
    data = load(tmp_path, cells_of({"train": [0.1, 0.5], "validation": [0.2, 0.5], "test": [0.5]}))
    assert [len(rows) for rows in (data.search, data.router, data.test)] == [1, 1, 1]


def test_another_format_is_refused_with_the_row_and_the_way_out(tmp_path: Path) -> None:
    cells = cells_of({"train": [0.1], "validation": [0.2], "test": [0.5]})
    cells["test"].append({"bytes": b"fLaC\x00\x00", "path": "a.flac"})
    with pytest.raises(
        DatasetError, match=r"'a', split 'test': the sound in row 1 cannot be read: .*convert it to WAV"
    ):
        load(tmp_path, cells)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    cells = cells_of({"train": [0.1], "validation": [0.2], "test": [0.5]})
    cells["test"].append({"bytes": None, "path": str(tmp_path / "gone.wav")})
    with pytest.raises(DatasetError, match=r"row 1 cannot be read: .*gone\.wav"):
        load(tmp_path, cells)


def test_a_column_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"column 'sound' holds string, not sounds\. Name a column of WAV files"):
        load(tmp_path, {split: ["a.wav"] for split in ("train", "validation", "test")})
