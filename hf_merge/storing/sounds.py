"""Sounds: WAV files and lists of samples become one channel of numbers, without any decoder but Python's own.

Whatever is wrong with a sound is a ValueError that says what to do; who asked says where it stood.
"""

import io
import os
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_merge.errors import CheckpointDamaged
from hf_merge.storing import disk
from hf_merge.storing.limits import LIMITS


_RIFF = b"RIFF"
_AS_WAV = "convert it to WAV of 16-bit PCM samples, as `ffmpeg -i FILE -c:a pcm_s16le FILE.wav` does"
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of sound.

    Attributes:
        samples: [samples] float32, as a rule between -1 and 1; read-only, never empty, all finite.
        sampling_rate: Samples per second.
        origin: Where it comes from, for messages.
    """

    samples: NDArray[np.float32]
    sampling_rate: int
    origin: str


def read_sound(path: Path) -> Sound:
    """Returns the sound in a WAV file.

    Raises:
        ValueError: It is no WAV file of integer PCM samples, is cut short, or is larger than `LIMITS.sound_bytes`.
        OSError: The file cannot be read.
    """
    return parse_wav(_held(path), str(path))


def parse_wav(content: bytes, origin: str) -> Sound:
    """Returns the sound in the bytes of a WAV file: the mean of its channels, full scale being 1.

    Args:
        content: The file's bytes; 8, 16, 24 or 32 bits a sample, as integers.
        origin: Where they come from.

    Raises:
        ValueError: They are anything else, or fewer than their header promises.
    """
    if not content.startswith(_RIFF):
        raise ValueError(f"it is no WAV file (it begins with {content[:4]!r}), and no other format is read: {_AS_WAV}")
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate, frames, *_ = file.getparams()
            held = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"it is a WAV file that cannot be read ({error or 'it is cut short'}): {_AS_WAV}") from error
    if len(held) != frames * channels * width:
        raise ValueError(
            f"its header promises {frames * channels * width} bytes of samples and {len(held)} are there: fetch or "
            "convert it anew"
        )
    samples = _as_floats(held, width).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return sound_of(samples, rate, origin)


def sound_of(samples: Any, sampling_rate: Any, origin: str) -> Sound:
    """Returns a sound made of its samples.

    Args:
        samples: [samples] numbers.
        sampling_rate: Samples per second, a whole number.
        origin: Where it comes from.

    Raises:
        ValueError: The samples are none, no numbers, of several channels or not finite, or the rate is none.
    """
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, int | np.integer) or sampling_rate < 1:
        raise ValueError(f"its sampling rate is {sampling_rate!r:.40}: give a whole number of samples per second")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            held = np.array(samples, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError("its samples are no numbers: give one list of floats") from error
    if held.ndim != 1:
        raise ValueError(f"its samples have the shape {list(held.shape)}: give one channel, the mean of all")
    if not len(held):
        raise ValueError("it has no samples: leave it out")
    if not np.isfinite(held).all():
        raise ValueError(f"sample {int(np.argmin(np.isfinite(held)))} is no finite number: mend or leave it out")
    held.setflags(write=False)
    return Sound(held, int(sampling_rate), origin)


def sound_in(cell: Any, origin: str) -> Sound:
    """Returns the sound in a cell of a data set, or in what a caller hands over.

    Args:
        cell: `{"bytes", "path"}` of a WAV file, as `datasets` stores sounds; `{"array", "sampling_rate"}`; the bytes
            themselves; or a path.
        origin: Where it comes from.

    Raises:
        ValueError: It is none of these, or not a sound that can be read.
        OSError: The file cannot be read.
    """
    if isinstance(cell, Sound):
        return cell
    if isinstance(cell, bytes):
        return parse_wav(cell, origin)
    if isinstance(cell, str | Path):
        return parse_wav(_held(Path(cell)), origin)
    if isinstance(cell, dict) and {"array", "sampling_rate"} <= cell.keys():
        return sound_of(cell["array"], cell["sampling_rate"], origin)
    if isinstance(cell, dict) and (cell.get("bytes") or cell.get("path")):
        return sound_in(cell.get("bytes") or cell["path"], origin)
    shown = f"the keys {sorted(map(str, cell))[:_SHOWN]}" if isinstance(cell, dict) else type(cell).__name__
    raise ValueError(f"it is {shown}: give a WAV file, or a mapping of 'array' and 'sampling_rate'")


def _held(path: Path) -> bytes:
    """Returns the bytes of a regular file, which the cell of a data set may name: no device, and not without end."""
    try:
        descriptor = disk.open_regular(path)
    except CheckpointDamaged as refused:
        if isinstance(refused.__cause__, OSError):
            raise refused.__cause__ from None
        raise ValueError(f"'{path}' is no regular file: name a WAV file") from refused
    with os.fdopen(descriptor, "rb") as file:
        held = file.read(LIMITS.sound_bytes + 1)
    if len(held) > LIMITS.sound_bytes:
        raise ValueError(f"'{path}' is larger than {LIMITS.sound_bytes} bytes: cut it into shorter sounds")
    return held


def _as_floats(held: bytes, width: int) -> NDArray[np.float32]:
    """Returns integer samples of so many bytes each as numbers from -1 to 1; one byte has its zero in the middle."""
    if width == 1:
        return (np.frombuffer(held, dtype=np.uint8).astype(np.float32) - 128) / np.float32(128)
    parts = np.frombuffer(held, dtype=np.uint8).reshape(-1, width)
    wide = np.zeros((len(parts), 4), dtype=np.uint8)
    wide[:, 4 - width :] = parts  # the same share of full scale in 32 bits
    full = wide.view("<i4")[:, 0].astype(np.float64) / 2**31
    return full.astype(np.float32)
