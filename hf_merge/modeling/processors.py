"""Image processors and feature extractors of a base and its fine-tunes: what every task's inputs go through is one.

All tasks share one processor in service. A fine-tune that was trained on pictures of another size or sounds of another
rate, or normalised otherwise, would be merged without a word and answer worse.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.assembly import Kind
from hf_merge.modeling.inputs import load_feature_extractor, load_image_processor


PROCESSOR_FILE = "preprocessor_config.json"

_log = logging.getLogger(__name__)
# What changes pixels, with the switch that makes it do so; None where nothing switches it.
_PIXELS = {
    "do_resize": None, "size": "do_resize", "resample": "do_resize", "crop_pct": "do_resize",
    "size_divisor": "do_resize", "do_center_crop": None, "crop_size": "do_center_crop", "do_rescale": None,
    "rescale_factor": "do_rescale", "do_normalize": None, "image_mean": "do_normalize", "image_std": "do_normalize",
    "do_pad": None, "pad_size": "do_pad", "do_flip_channel_order": None,
}  # fmt: skip
# Likewise what changes samples. Whether there is a mask is not among it: nothing is padded where there is none.
_SAMPLES = {
    "sampling_rate": None, "feature_size": None, "do_normalize": None, "padding_value": None, "num_mel_bins": None,
    "hop_length": None, "n_fft": None, "chunk_length": None, "dither": None, "max_length": None, "stride": None,
    "mean": "do_normalize", "std": "do_normalize",
}  # fmt: skip
_SILENT = {
    "image_processor_type", "feature_extractor_type", "processor_class", "transformers_version", "data_format",
    "return_tensors",
}  # fmt: skip


@dataclass(frozen=True)
class _Sense:
    """What processes inputs of a kind: how it is loaded, which settings change what it gives, and what to call it."""

    load: Callable[[Path], Any]
    telling: Mapping[str, str | None]
    title: str
    inputs: str
    remedy: str


_EYES = _Sense(load_image_processor, _PIXELS, "image processor", "pictures", "pictures of one size and normalisation")
_EARS = _Sense(
    load_feature_extractor, _SAMPLES, "feature extractor", "sounds", "sounds of one sampling rate and normalisation"
)


def require_same_processors(folder: Path, others: Mapping[str, Path], kind: Kind = "image") -> None:
    """Checks that fine-tunes process pictures or sounds as the processor that all share; other differences are logged.

    Args:
        folder: Whose processor is shared.
        others: The fine-tunes' folders by task; those without a processor are taken to use the shared one.
        kind: What the tasks read, `image` or `audio`.

    Raises:
        ModelMismatch: A setting that changes pixels or samples differs; every one is named with both values.
        CheckpointDamaged: A processor cannot be read.
    """
    sense = _EARS if kind == "audio" else _EYES
    shared = _settings(sense, folder)
    clashes = []
    for task, other in others.items():
        if other == folder or not (other / PROCESSOR_FILE).is_file():
            continue
        own = _settings(sense, other)
        clashes += [f"task '{task}': {line}" for line in _differences(sense.telling, shared, own)]
        others_differ = sorted(
            key
            for key in (shared.keys() | own.keys()) - sense.telling.keys() - _SILENT
            if shared.get(key) != own.get(key)
        )
        if others_differ:
            _log.warning("Task '%s': its %s differs in %s; the base's is used.", task, sense.title, others_differ)
    if clashes:
        raise ModelMismatch(
            f"The tasks' {sense.inputs} do not go through one processor ({folder / PROCESSOR_FILE}):\n  "
            + "\n  ".join(clashes)
            + f"\nFine-tune on {sense.remedy}, or correct the file that is wrong."
        )


def _differences(
    telling: Mapping[str, str | None], shared: Mapping[str, Any], own: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a line per telling setting that differs, but for those that both have switched off."""
    for key, switch in telling.items():
        off = switch is not None and not shared.get(switch) and not own.get(switch)
        if not off and shared.get(key) != own.get(key):
            yield f"{key} is {own.get(key)!r:.80} where the shared processor has {shared.get(key)!r:.80}"


def _settings(sense: _Sense, folder: Path) -> dict[str, Any]:
    """Returns a processor's settings as transformers reads them, whatever version wrote them."""
    settings: dict[str, Any] = sense.load(folder).to_dict()
    # A switch that was never set is off, and one that is not named is its class's own business.
    return {key: value for key, value in settings.items() if value is not None and not key.startswith("_")}
