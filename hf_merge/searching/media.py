"""Columns of images and sounds: checked, and read row by row as what a model sees or hears.

Sounds are never decoded by `datasets`, whose decoder is a library of its own: their bytes are read here.
"""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL.Image import DecompressionBombError, Image

from hf_merge.errors import DatasetError
from hf_merge.modeling.inputs import as_rgb
from hf_merge.storing.sounds import sound_in


if TYPE_CHECKING:
    import datasets

_BYTES_TYPES = ("binary", "large_binary")
_BROKEN_IMAGE = (OSError, ValueError, SyntaxError, DecompressionBombError)
_ReadRow: TypeAlias = Callable[["datasets.Dataset", int, str, str], tuple[Hashable, Any]]


@dataclass(frozen=True)
class Reading:
    """How a column is read.

    Attributes:
        name: Which rows these are, as an attribute of `Rows`.
        read: Returns a key and the content of one row, from the split, the row's number, the column and the place for
            messages; keys are equal exactly where contents are.
    """

    name: Literal["images", "sounds"]
    read: _ReadRow


def with_images(data: "datasets.Dataset", column: str, place: str) -> tuple["datasets.Dataset", Reading]:
    """Returns a split with a column decoded as images, also where its bytes do not say so, and how it is read.

    Raises:
        DatasetError: The column holds something else.
    """
    import datasets

    feature = data.features[column]
    kind = getattr(feature, "dtype", "a nested type")
    if not _is_encoded(feature) and not isinstance(feature, datasets.Image):
        raise DatasetError(
            f"{place}: column '{column}' holds {kind}, not images. Name a column of encoded images (bytes, "
            "as datasets.Image stores them)."
        )
    return data.cast_column(column, datasets.Image()), Reading("images", _read_image)


def with_sounds(data: "datasets.Dataset", column: str, place: str) -> tuple["datasets.Dataset", Reading]:
    """Returns a split with a column of sounds that nothing decodes but `sound_in`, and how it is read.

    Raises:
        DatasetError: The column holds something else.
    """
    import datasets

    feature = data.features[column]
    kind = getattr(feature, "dtype", "a nested type")
    if isinstance(feature, datasets.Audio):
        data = data.cast_column(column, datasets.Audio(decode=False))
    elif not _is_encoded(feature) and not (isinstance(feature, dict) and {"array", "sampling_rate"} <= set(feature)):
        raise DatasetError(
            f"{place}: column '{column}' holds {kind}, not sounds. Name a column of WAV files (bytes, as "
            "datasets.Audio stores them), or of samples as {array, sampling_rate}."
        )
    return data, Reading("sounds", _read_sound)


def reason_of(error: BaseException) -> str:
    """Returns the text of the error at the root, on one line of at most 300 characters, without its full stop."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def _is_encoded(feature: Any) -> bool:
    """Returns whether a column holds files: their bytes, or these with a path."""
    bare = getattr(feature, "dtype", None) in _BYTES_TYPES
    return bare or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _read_image(data: "datasets.Dataset", row: int, column: str, place: str) -> tuple[Hashable, Any]:
    try:
        image: Image = data[row][column]
        pixels = as_rgb(image)
    except _BROKEN_IMAGE as error:
        raise DatasetError(
            f"{place}: the image in row {row} cannot be decoded: {reason_of(error)}. Remove the row, or store "
            "the image anew."
        ) from error
    return (pixels.size, hashlib.sha256(pixels.tobytes()).digest()), image


def _read_sound(data: "datasets.Dataset", row: int, column: str, place: str) -> tuple[Hashable, Any]:
    try:
        sound = sound_in(data[row][column], f"{place}, row {row}")
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise DatasetError(f"{place}: the sound in row {row} cannot be read: {said}.") from error
    return (sound.sampling_rate, hashlib.sha256(sound.samples.tobytes()).digest()), sound
