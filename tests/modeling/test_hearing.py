"""Sounds in batches: every row is answered as if it came alone, whether the model reads a mask or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_merge.errors import CheckpointDamaged, DatasetError, UntrustedContentError
from hf_merge.modeling.hearing import Hearing
from hf_merge.modeling.inputs import restore
from hf_merge.storing.sounds import Sound, sound_of
from tests.families.catalogue import FAMILIES
from tests.families.making import LOADERS, save_reader
from tests.tiny_models import SAMPLING_RATE


LENGTHS = (900, 1500, 900, 3000, 1499, 1600)
NOTED = "ignore:Support for mismatched key_padding_mask and attn_mask"  # WavLM's two types of mask, transformers' own


@pytest.fixture
def sounds() -> list[Sound]:
    rng = np.random.default_rng(0)
    return [sound_of(rng.normal(size=length) / 4, SAMPLING_RATE, f"row {row}") for row, length in enumerate(LENGTHS)]


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        save_reader(FAMILIES[name], tmp_path)
        FAMILIES[name].config().save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.filterwarnings(NOTED)
@pytest.mark.parametrize("name", [name for name, spec in FAMILIES.items() if spec.kind == "audio"])
def test_a_batch_changes_no_answer(name: str, folder_of: Callable[[str], Path], sounds: list[Sound]) -> None:
    hearing = Hearing.load(folder_of(name))
    torch.manual_seed(0)
    model = LOADERS["audio"].from_config(FAMILIES[name].config()).eval()

    def answers(batches: list[Any]) -> torch.Tensor:
        with torch.inference_mode():
            return restore(batches, [model(**batch.inputs).logits for batch in batches])

    together = answers(hearing.batches(sounds, batch_size=4))
    alone = torch.cat([answers(hearing.batches([sound], batch_size=1)) for sound in sounds])
    assert alone.std(dim=0).min() > 0
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_where_there_is_a_mask_rows_are_padded_shortest_first(
    folder_of: Callable[[str], Path], sounds: list[Sound]
) -> None:
    batches = Hearing.load(folder_of("wav2vec2")).batches(sounds, batch_size=4)
    assert [batch.rows.tolist() for batch in batches] == [[0, 2], [4, 1, 5], [3]]
    inputs = batches[1].inputs
    assert inputs["input_values"].shape == inputs["attention_mask"].shape == (3, 1600)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [1499, 1500, 1600]
    assert not inputs["input_values"][0, 1499:].any()


def test_where_padding_would_be_heard_only_rows_of_one_length_share_a_batch(
    folder_of: Callable[[str], Path], sounds: list[Sound]
) -> None:
    folder = folder_of("hubert")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    for masked in (False, True):  # a mask hides nothing from a norm over time
        (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"return_attention_mask": masked}))
        batches = Hearing.load(folder).batches(sounds, batch_size=4)
        assert [batch.rows.tolist() for batch in batches] == [[0, 2], [4], [1], [5], [3]]
        assert ("attention_mask" in batches[0].inputs) is masked
    assert [len(batch.rows) for batch in Hearing.load(folder).batches(sounds[:1] * 5, batch_size=2)] == [2, 2, 1]


def test_an_extractor_that_pads_by_itself_fills_its_batches(
    folder_of: Callable[[str], Path], sounds: list[Sound]
) -> None:
    batches = Hearing.load(folder_of("whisper")).batches(sounds, batch_size=4)
    assert [batch.inputs["input_features"].shape for batch in batches] == [(4, 8, 100), (2, 8, 100)]
    assert all(batch.inputs.keys() == {"input_features"} for batch in batches)


def test_no_sounds_give_no_batches(folder_of: Callable[[str], Path]) -> None:
    assert Hearing.load(folder_of("wav2vec2")).batches([], batch_size=4) == []


def test_another_sampling_rate_is_refused_with_both(folder_of: Callable[[str], Path]) -> None:
    hearing = Hearing.load(folder_of("wav2vec2"))
    with pytest.raises(DatasetError, match=r"row 7: the sound has 8000 .* trained on 16000\. .*cast_column"):
        hearing.batches([sound_of([0.0] * 900, 8000, "row 7")], batch_size=4)


def test_a_sound_too_short_for_the_convolutions_is_refused(folder_of: Callable[[str], Path]) -> None:
    hearing = Hearing.load(folder_of("wav2vec2"))
    assert len(hearing.batches([sound_of([0.1] * 20, SAMPLING_RATE, "row 7")], batch_size=4)) == 1
    with pytest.raises(DatasetError, match=r"row 7: the sound has 19 samples, .* need 20"):
        hearing.batches([sound_of([0.1] * 19, SAMPLING_RATE, "row 7")], batch_size=4)


def test_a_sound_that_the_extractor_cannot_process_is_named(folder_of: Callable[[str], Path]) -> None:
    hearing = Hearing.load(folder_of("audio-spectrogram-transformer"))
    with pytest.raises(DatasetError, match="row 7: ASTFeatureExtractor cannot process its 9 samples"):
        hearing.batches([sound_of([0.1] * 9, SAMPLING_RATE, "row 7")], batch_size=4)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (None, CheckpointDamaged, "no preprocessor_config.json in .* how sounds become numbers"),
        ({"image_processor_type": "ViTImageProcessor"}, CheckpointDamaged, "feature extractor in .* cannot be loaded"),
        ({"auto_map": {"AutoFeatureExtractor": "own.Own"}}, UntrustedContentError, "asks to run code"),
    ],
)
def test_a_folder_without_a_feature_extractor_of_transformers_is_refused(
    settings: dict[str, Any] | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(error, match=message):
        Hearing.load(tmp_path)
