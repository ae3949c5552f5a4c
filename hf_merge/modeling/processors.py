"""Image processors of a base and its fine-tunes: what every task's pictures go through must be the same.

All tasks share one processor in service. A fine-tune that was trained on pictures of another size, or normalised
otherwise, would be merged without a word and answer worse.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.inputs import load_image_processor


PROCESSOR_FILE = "preprocessor_config.json"

_log = logging.getLogger(__name__)
# What changes pixels, with the switch that makes it do so; None where nothing switches it.
_PIXELS = {
    "do_resize": None, "size": "do_resize", "resample": "do_resize", "crop_pct": "do_resize",
    "size_divisor": "do_resize", "do_center_crop": None, "crop_size": "do_center_crop", "do_rescale": None,
    "rescale_factor": "do_rescale", "do_normalize": None, "image_mean": "do_normalize", "image_std": "do_normalize",
    "do_pad": None, "pad_size": "do_pad", "do_flip_channel_order": None,
}  # fmt: skip
_SILENT = {"image_processor_type", "processor_class", "transformers_version", "data_format", "return_tensors"}


def require_same_processors(folder: Path, others: Mapping[str, Path]) -> None:
    """Checks that fine-tunes process pictures as the processor that all tasks share; differences in form are logged.

    Args:
        folder: Whose processor is shared.
        others: The fine-tunes' folders by task; those without a processor are taken to use the shared one.

    Raises:
        ModelMismatch: A setting that changes pixels differs; every one is named with both values.
        CheckpointDamaged: A processor cannot be read.
    """
    shared = _settings(folder)
    clashes = []
    for task, other in others.items():
        if other == folder or not (other / PROCESSOR_FILE).is_file():
            continue
        own = _settings(other)
        clashes += [f"task '{task}': {line}" for line in _differences(shared, own)]
        others_differ = sorted(
            key for key in (shared.keys() | own.keys()) - _PIXELS.keys() - _SILENT if shared.get(key) != own.get(key)
        )
        if others_differ:
            _log.warning("Task '%s': its image processor differs in %s; the base's is used.", task, others_differ)
    if clashes:
        raise ModelMismatch(
            f"The tasks' pictures do not go through one processor ({folder / PROCESSOR_FILE}):\n  "
            + "\n  ".join(clashes)
            + "\nFine-tune on pictures of one size and normalisation, or correct the file that is wrong."
        )


def _differences(shared: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line per setting that changes pixels and differs, but for those that both have switched off."""
    for key, switch in _PIXELS.items():
        off = switch is not None and not shared.get(switch) and not own.get(switch)
        if not off and shared.get(key) != own.get(key):
            yield f"{key} is {own.get(key)!r:.80} where the shared processor has {shared.get(key)!r:.80}"


def _settings(folder: Path) -> dict[str, Any]:
    """Returns a processor's settings as transformers reads them, whatever version wrote them."""
    settings: dict[str, Any] = load_image_processor(folder).to_dict()
    # A switch that was never set is off, and one that is not named is its class's own business.
    return {key: value for key, value in settings.items() if value is not None and not key.startswith("_")}
