"""Sounds as a model hears them: each goes through the feature extractor alone, and rows share batches where they can.

A batch may pad its rows where the model reads a mask. Where it reads none, or where its first convolution is
normalised over time (`feat_extract_norm` is `group`, as in wav2vec2-base), padding changes what the real samples
become, mask or no mask: there only rows of equal length share a batch, and every row is answered as if it came alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.errors import DatasetError
from hf_merge.modeling.batching import cut
from hf_merge.modeling.inputs import Batch, load_feature_extractor
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.sounds import Sound
from hf_merge.storing.strict_json import read_json


if TYPE_CHECKING:
    from transformers import SequenceFeatureExtractor

_MASK = "attention_mask"
_BROKEN = (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError)


@dataclass(frozen=True, eq=False)
class Hearing:
    """How a checkpoint's model hears.

    Attributes:
        extractor: Turns samples into what the model reads.
        pads: Whether rows of different lengths may share a batch, padded and masked.
        least: The fewest samples that give the model anything to read.
        stride: The samples, or steps of the extractor, that go into one position of the model.
    """

    extractor: "SequenceFeatureExtractor"
    pads: bool
    least: int
    stride: int

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Returns how the model of a local checkpoint folder hears.

        Raises:
            CheckpointDamaged: The folder holds no readable feature extractor or no `config.json`.
            UntrustedContentError: The feature extractor needs code of its own (`auto_map`).
            LimitExceeded: A file of the feature extractor is larger than 64 MiB.
        """
        extractor: Any = load_feature_extractor(folder)
        read = read_json(folder / "config.json", LIMITS.config_bytes)
        config = read if isinstance(read, dict) else {}
        masked = bool(getattr(extractor, "return_attention_mask", False))
        return cls(extractor, masked and config.get("feat_extract_norm") != "group", *_window(config))

    def batches(self, sounds: Sequence[Sound], *, batch_size: int) -> list[Batch]:
        """Returns all sounds in batches, shortest first, each padded to its longest row; no sounds, no batches.

        Args:
            sounds: The sounds, one per row.
            batch_size: The most rows per batch.

        Raises:
            DatasetError: A sound is of another sampling rate than the model was trained on, too short, or cannot be
                processed.
        """
        rows = [self._heard(sound) for sound in sounds]
        lengths = np.array([len(row[self._values]) for row in rows], dtype=np.int64)
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        if self.pads:
            parts = [order[start:stop] for start, stop in cut(lengths[order] // self.stride, batch_size)]
        else:
            parts = [
                alike[start : start + batch_size]
                for length in sorted(set(lengths.tolist()))
                for alike in (order[lengths[order] == length],)
                for start in range(0, len(alike), batch_size)
            ]
        return [Batch(self._stacked([rows[row] for row in part]), part) for part in parts]

    @property
    def _values(self) -> str:
        extractor: Any = self.extractor
        return str(extractor.model_input_names[0])

    def _heard(self, sound: Sound) -> dict[str, NDArray[Any]]:
        """Returns one row as the model reads it: its values [length, ...], and a mask [length] where there is one."""
        extractor: Any = self.extractor
        if sound.sampling_rate != extractor.sampling_rate:
            raise DatasetError(
                f"{sound.origin}: the sound has {sound.sampling_rate} samples per second, and the model was trained "
                f"on {extractor.sampling_rate}. Resample it: dataset.cast_column(COLUMN, "
                f"Audio(sampling_rate={extractor.sampling_rate})), or ffmpeg -ar {extractor.sampling_rate}."
            )
        if len(sound.samples) < self.least:
            raise DatasetError(
                f"{sound.origin}: the sound has {len(sound.samples)} samples, and the model's convolutions need "
                f"{self.least}. Leave it out, or pad it with silence."
            )
        try:
            given = extractor(sound.samples, sampling_rate=sound.sampling_rate, return_tensors="np")
        except _BROKEN as error:
            raise DatasetError(
                f"{sound.origin}: {type(extractor).__name__} cannot process its {len(sound.samples)} samples: "
                f"{' '.join(str(error).split())[:200]}. Leave it out, or check preprocessor_config.json."
            ) from error
        row = {self._values: np.asarray(given[self._values][0])}
        mask = given.get(_MASK)
        # A mask over something else than what the model reads (Whisper's, over samples) is none of its inputs.
        if mask is not None and np.shape(mask)[1] == len(row[self._values]):
            row[_MASK] = np.asarray(mask[0], dtype=np.int64)
        return row

    def _stacked(self, rows: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Tensor]:
        """Returns rows as one batch, padded behind to the longest; where nothing pads, all are as long."""
        longest = max(len(row[self._values]) for row in rows)
        padding = {self._values: getattr(self.extractor, "padding_value", 0.0), _MASK: 0}
        return {
            name: torch.from_numpy(np.stack([_padded(row[name], longest, padding[name]) for row in rows]))
            for name in rows[0]
        }


def _padded(values: NDArray[Any], length: int, padding: float) -> NDArray[Any]:
    widths = [(0, length - len(values)), *[(0, 0)] * (values.ndim - 1)]
    return np.pad(values, widths, constant_values=padding)


def _window(config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many samples a model's convolutions over the wave need for one frame, and how many lie between two.

    Both are 1 where there are no such convolutions.
    """
    least, between = 1, 1
    kernels, strides = config.get("conv_kernel"), config.get("conv_stride")
    if isinstance(kernels, list) and isinstance(strides, list):
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=False):
            if isinstance(kernel, int) and isinstance(stride, int):  # else no model can be built, as is said then
                least, between = (least - 1) * stride + kernel, between * stride
    return least, max(between, 1)
