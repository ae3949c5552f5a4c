"""Rows: what a task's models are given, texts, images or sounds, and what is right for each."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray
from PIL.Image import Image

from hf_merge.modeling.inputs import as_rgb
from hf_merge.storing.sounds import Sound


_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of one task: texts (with or without pairs), images or sounds.

    Attributes:
        texts: The texts, or None for another task.
        pairs: The second texts, or None where the task has none.
        images: The images as they were stored, or None for another task.
        labels: [rows] int64 class indices, or float32 numbers for a regression; read-only. For a task that is to
            write `targets` all are 1: the target was met.
        targets: What is to be written, or None for a task that chooses among labels.
        sounds: The sounds, or None for another task.
    """

    texts: tuple[str, ...] | None
    pairs: tuple[str, ...] | None
    images: tuple[Image, ...] | None
    labels: NDArray[Any]
    targets: tuple[str, ...] | None = None
    sounds: tuple[Sound, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """Returns the SHA-256 of what the rows say and what is right for each, in their order, in hex."""
        found = hashlib.sha256(f"{self.labels.dtype.str} {len(self)}\n".encode() + self.labels.tobytes())
        for texts in (self.texts, self.pairs, self.targets):
            found.update(json.dumps(texts).encode())
        for image in self.images or ():
            pixels = as_rgb(image)
            found.update(f"{pixels.size}\n".encode() + pixels.tobytes())
        for sound in self.sounds or ():
            found.update(f"{sound.sampling_rate} {len(sound.samples)}\n".encode() + sound.samples.tobytes())
        return found.hexdigest()

    def first(self, count: int) -> "Rows":
        """Returns the first rows, at most so many."""

        def cut(values: tuple[_Value, ...] | None) -> tuple[_Value, ...] | None:
            return None if values is None else values[:count]

        texts, pairs, images = cut(self.texts), cut(self.pairs), cut(self.images)
        return Rows(texts, pairs, images, self.labels[:count], cut(self.targets), cut(self.sounds))
