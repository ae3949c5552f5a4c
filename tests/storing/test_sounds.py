"""WAV files and samples become sounds; whatever is neither is refused with the way out."""

import io
import os
import re
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.storing.limits import LIMITS
from hf_merge.storing.sounds import parse_wav, read_sound, sound_in, sound_of


def wav(held: bytes, *, width: int = 2, channels: int = 1, rate: int = 16000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(held)
    return stream.getvalue()


@given(st.sampled_from([1, 2, 3, 4]), st.lists(st.integers(-128, 127), min_size=1))
def test_samples_of_every_width_are_shares_of_full_scale(width: int, steps: list[int]) -> None:
    if width == 1:
        held = bytes(step + 128 for step in steps)
    else:
        held = b"".join((step << 8 * (width - 1)).to_bytes(width, "little", signed=True) for step in steps)
    sound = parse_wav(wav(held, width=width), "here")
    assert sound.samples.tolist() == [step / 128 for step in steps]
    assert sound.samples.dtype == np.float32
    assert not sound.samples.flags.writeable
    assert (sound.sampling_rate, sound.origin) == (16000, "here")


def test_channels_are_averaged() -> None:
    held = np.array([[16384, 0], [-16384, -16384]], dtype="<i2").tobytes()
    assert parse_wav(wav(held, channels=2), "here").samples.tolist() == [0.25, -0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fLaC\x00\x00\x00\x22", "begins with b'fLaC'.*convert it to WAV"),
        (b"ID3\x04", "no WAV file.*convert it to WAV"),
        (b"", "no WAV file"),
        (b"RIFF", "cannot be read.*convert it to WAV"),
        (wav(b"\x00" * 40)[:-4], "promises 40 bytes of samples and 36 are there"),
        (wav(b""), "no samples"),
        (wav(b"\x00" * 8)[:20] + struct.pack("<H", 3) + wav(b"\x00" * 8)[22:], "unknown format: 3.*convert it to WAV"),
    ],
)
def test_what_is_no_whole_wav_file_of_integers_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_wav(content, "here")


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        ([], 16000, "no samples"),
        ([0.0, float("nan")], 16000, "sample 1 is no finite number"),
        ([0.0, 1e300], 16000, "sample 1 is no finite number"),
        ([[0.0, 1.0]], 16000, r"the shape \[1, 2\]"),
        (["a"], 16000, "no numbers"),
        ([[0.0], [0.0, 1.0]], 16000, "no numbers"),
        (None, 16000, "shape|no finite|no numbers"),
        ([0.0], 0, "sampling rate is 0"),
        ([0.0], 16000.0, "sampling rate is 16000.0"),
        ([0.0], True, "sampling rate is True"),
    ],
)
def test_samples_that_are_no_sound_are_refused(samples: Any, rate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sound_of(samples, rate, "here")


def test_a_cell_is_bytes_a_path_or_samples(tmp_path: Path) -> None:
    content = wav(b"\x00\x40")
    file = tmp_path / "a.wav"
    file.write_bytes(content)
    cells = (
        content, file, str(file), {"bytes": content, "path": "gone.wav"}, {"bytes": None, "path": str(file)},
        {"array": [0.5], "sampling_rate": 16000}, {"array": np.array([0.5]), "sampling_rate": np.int32(16000)},
        read_sound(file),
    )  # fmt: skip
    for cell in cells:
        sound = sound_in(cell, "here")
        assert (sound.samples.tolist(), sound.sampling_rate) == ([0.5], 16000)
    assert read_sound(file).origin == str(file)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"samples": [0.5]}, r"the keys \['samples'\]: give a WAV file, or a mapping of 'array' and 'sampling_rate'"),
        ({"bytes": None, "path": None}, "the keys"),
        ([0.5], "it is list"),
        (np.zeros(3), "it is ndarray"),
    ],
)
def test_what_is_no_cell_is_refused(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sound_in(cell, "here")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sound_in({"bytes": None, "path": str(tmp_path / "gone.wav")}, "here")


def test_what_a_cell_names_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match=f"'{re.escape(str(place))}' is no regular file"):
            sound_in({"bytes": None, "path": str(place)}, "here")


def test_no_more_is_read_of_a_file_than_a_sound_may_take(tmp_path: Path) -> None:
    file = tmp_path / "endless.wav"
    file.write_bytes(wav(b"\x00\x40"))
    os.truncate(file, 1 << 42)  # more than fits in memory, and nothing on the disk
    for read in (read_sound, lambda path: sound_in(path, "here")):
        with pytest.raises(ValueError, match=f"larger than {LIMITS.sound_bytes} bytes: cut it"):
            read(file)
