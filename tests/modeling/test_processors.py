"""Fine-tunes whose pictures or sounds are processed otherwise are refused, setting by setting, with both values."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.processors import require_same_processors


SETTINGS: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 16, "width": 16},
    "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def folder(place: Path, **changes: Any) -> Path:
    place.mkdir()
    (place / "preprocessor_config.json").write_text(json.dumps(SETTINGS | changes))
    return place


def test_equal_processors_pass_and_so_does_a_fine_tune_without_one(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    base = folder(tmp_path / "a")
    require_same_processors(base, {"a": base, "b": folder(tmp_path / "b"), "c": tmp_path / "c"})


def test_old_and_new_ways_to_write_a_size_are_one(tmp_path: Path) -> None:
    require_same_processors(folder(tmp_path / "a"), {"b": folder(tmp_path / "b", size=16)})


def test_a_switched_off_setting_means_nothing(tmp_path: Path) -> None:
    base = folder(tmp_path / "a", do_normalize=False)
    require_same_processors(base, {"b": folder(tmp_path / "b", do_normalize=False, image_mean=[0.1] * 3)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": {"height": 32, "width": 32}}, r"size is .*32.* where the shared processor has .*16"),
        ({"image_mean": [0.4] * 3}, r"image_mean is .0\.4, 0\.4, 0\.4. where the shared processor has .0\.5"),
        ({"image_std": [0.4] * 3}, "image_std is"),
        ({"do_normalize": False}, "do_normalize is False where the shared processor has True"),
        ({"resample": 0}, "resample is"),
    ],
)
def test_what_changes_pixels_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelMismatch, match=f"task 'odd': {said}"):
        require_same_processors(folder(tmp_path / "a"), {"odd": folder(tmp_path / "b", **changes)})


def test_every_clash_of_every_task_is_named(tmp_path: Path) -> None:
    others = {
        "one": folder(tmp_path / "b", image_mean=[0.1] * 3, image_std=[0.1] * 3),
        "two": folder(tmp_path / "c", do_rescale=False),
    }
    with pytest.raises(ModelMismatch) as caught:
        require_same_processors(folder(tmp_path / "a"), others)
    assert [line.split(" is ")[0].strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "task 'one': image_mean", "task 'one': image_std", "task 'two': do_rescale",
    ]  # fmt: skip


def test_a_setting_that_changes_no_pixel_is_only_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_same_processors(folder(tmp_path / "a"), {"b": folder(tmp_path / "b", do_convert_rgb=True)})
    assert "do_convert_rgb" in caplog.text


HEARD: dict[str, Any] = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True,
    "return_attention_mask": True,
}  # fmt: skip


def heard_in(place: Path, **changes: Any) -> Path:
    place.mkdir()
    (place / "preprocessor_config.json").write_text(json.dumps(HEARD | changes))
    return place


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling_rate": 8000}, "sampling_rate is 8000 where the shared processor has 16000"),
        ({"do_normalize": False}, "do_normalize is False where the shared processor has True"),
    ],
)
def test_what_changes_samples_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelMismatch, match=f"sounds do not go through one processor(.|\n)*task 'odd': {said}"):
        require_same_processors(heard_in(tmp_path / "a"), {"odd": heard_in(tmp_path / "b", **changes)}, "audio")


def test_a_mask_changes_no_sample_and_is_only_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = heard_in(tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        require_same_processors(base, {"b": heard_in(tmp_path / "b", return_attention_mask=False)}, "audio")
    assert "its feature extractor differs in ['return_attention_mask']" in caplog.text
