import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hf_merge.errors import CheckpointDamaged, InputError
from hf_merge.serving.reading import InputReader, listed
from tests.families.catalogue import FAMILIES
from tests.families.making import save_reader
from tests.serving.members import rows_of
from tests.tiny_models import SAMPLING_RATE, TinyFamily, wav_of


@pytest.fixture
def reader(tiny_family: Callable[[str], TinyFamily]) -> InputReader:
    return InputReader(tiny_family("bert").base, "text", None)


def test_singles_and_pairs_are_batched_apart(reader: InputReader) -> None:
    inputs = ["the cat", ("red", "wall"), "two metres long", ["a", "dog"], "rain"]
    parts = list(reader.batches(inputs, 2))
    assert [positions for positions, _ in parts] == [[0, 2, 4], [1, 3]]
    assert [len(batches) for _, batches in parts] == [2, 1]
    for positions, batches in parts:
        rows = np.concatenate([batch.rows for batch in batches])
        assert sorted(rows.tolist()) == list(range(len(positions)))
    assert parts[1][1][0].inputs["token_type_ids"].max() == 1


def test_texts_are_cut_to_the_length_of_the_member(tiny_family: Callable[[str], TinyFamily]) -> None:
    reader = InputReader(tiny_family("bert").base, "text", 5)
    ((_, batches),) = reader.batches(["the small old friendly hungry cat sleeps"], 1)
    assert batches[0].inputs["input_ids"].shape == (1, 5)


def test_images_stay_in_order(tiny_family: Callable[[str], TinyFamily]) -> None:
    vit = tiny_family("vit")
    reader = InputReader(vit.base, "image", None)
    images = rows_of(vit, "animals")[:5]
    ((positions, batches),) = reader.batches(images, 2)
    assert positions == [0, 1, 2, 3, 4]
    assert [len(batch.rows) for batch in batches] == [2, 2, 1]
    assert reader.tokens.pad is None


@pytest.fixture
def hearer(tmp_path: Path) -> InputReader:
    save_reader(FAMILIES["wav2vec2"], tmp_path)
    FAMILIES["wav2vec2"].config().save_pretrained(tmp_path)
    return InputReader(tmp_path, "audio", None)


def test_sounds_are_paths_or_samples_sorted_by_length(hearer: InputReader, tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(wav_of(np.full(900, 0.5)))
    samples = {"array": np.full(600, 0.5), "sampling_rate": SAMPLING_RATE}
    ((positions, batches),) = hearer.batches([str(file), file, samples], 2)
    assert positions == [0, 1, 2]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([np.zeros(900)], "Input 0 is ndarray .*; this model reads sounds .paths of WAV files, or mappings of array"),
        ([{"array": [0.0] * 900}], "Input 0 is dict"),
        (["absent.wav"], r"'absent\.wav' cannot be read as a sound: .*No such file"),
        ([{"array": [[0.0]], "sampling_rate": 1}], r"input 0 cannot be read as a sound: its samples have the shape"),
        ([{"array": [0.0] * 900, "sampling_rate": 1}], "input 0: the sound has 1 samples per second"),
        ({"array": [0.0], "sampling_rate": 1}, "Give a list"),
        (Path("a.wav"), "Give a list"),
    ],
)
def test_what_is_no_sound_is_named(hearer: InputReader, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(hearer.batches(listed(inputs), 4))


def test_nothing_gives_no_batches(reader: InputReader) -> None:
    assert list(reader.batches([], 4)) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a", 3], "Input 1 is int 3; this model reads texts and pairs of texts"),
        (["a", ("b", "c", "d")], "Input 1 is tuple"),
        ([("b",)], "Input 0 is tuple"),
        ([("b", None)], "Input 0 is tuple"),
        ([{"text": "a"}], "Input 0 is dict"),
        (["a", "caf\udce9 flight"], r"Input 1, 'caf\\udce9 flight', holds bytes that are no UTF-8 \(at character 3\)"),
        ([("a", "\ud800")], r"Input 0, '\\ud800', holds bytes that are no UTF-8"),
    ],
)
def test_inputs_of_another_kind_are_named(reader: InputReader, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(reader.batches(inputs, 4))


def test_texts_are_no_images(tiny_family: Callable[[str], TinyFamily]) -> None:
    vit = tiny_family("vit")
    reader = InputReader(vit.base, "image", None)
    image = rows_of(vit, "animals")[0]
    for inputs, message in ((["a cat"], "reads images"), ([image, np.zeros((4, 4))], "Input 1 is ndarray")):
        with pytest.raises(InputError, match=message):
            list(reader.batches(inputs, 4))
    with pytest.raises(InputError, match="Give a list"):
        listed(image)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one text", "one str. Give a list of inputs"),
        (b"one text", "one bytes. Give a list"),
        (Path("one.wav"), "Give a list"),
        ({"array": [0.0], "sampling_rate": 8000}, "one dict. Give a list"),
        (None, "one NoneType. Give a list"),
        ({"a", "b"}, "a set, which has no order"),
        (pd.DataFrame({"text": ["a"], "label": [0]}), "a DataFrame of 2 dimensions. Give a list, or a column"),
    ],
)
def test_what_is_no_list_of_inputs_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        listed(inputs)


def test_inputs_become_a_list_in_their_order() -> None:
    texts = ["a", "b", "c"]
    assert listed(pd.Series(texts, index=[2, 0, 1])) == listed(iter(texts)) == listed(np.array(texts)) == texts


def test_batches_hold_at_least_one_row(reader: InputReader) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        list(reader.batches(["a"], 0))


def test_threads_may_share_a_reader(reader: InputReader) -> None:
    texts = [[f"the {'small ' * count}cat"] for count in range(30)]
    expected = [next(reader.batches(one, 1))[1][0].inputs["input_ids"] for one in texts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: next(reader.batches(one, 1))[1][0].inputs["input_ids"], texts * 5)
        assert all(torch.equal(one, expected[index % 30]) for index, one in enumerate(found))


def test_a_folder_without_a_tokenizer_is_refused(tiny_family: Callable[[str], TinyFamily]) -> None:
    with pytest.raises(CheckpointDamaged):
        InputReader(tiny_family("vit").base, "text", None)


def test_texts_longer_than_the_model_are_cut_where_the_tokenizer_states_no_limit(
    tiny_family: Callable[[str], TinyFamily], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_family("bert").base, base)
    said = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": 10**30}))
    config = json.loads((base / "config.json").read_text())
    most = config["max_position_embeddings"]
    ((_, (batch,)),) = InputReader(base, "text", 100 * most, config).batches(["the cat " * 10 * most], 1)
    assert batch.inputs["input_ids"].shape == (1, most)
