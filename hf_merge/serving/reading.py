"""What a user gives becomes batches: texts, pairs of texts, images or sounds, by a member's tokenizer or processor."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import InputError
from hf_merge.modeling.assembly import Kind
from hf_merge.modeling.hearing import Hearing
from hf_merge.modeling.inputs import Batch, image_batches, load_image_processor, load_tokenizer, restore, text_batches
from hf_merge.modeling.language import SpecialTokens
from hf_merge.modeling.prompts import Prompter
from hf_merge.serving.asking import check_whole
from hf_merge.storing.sounds import Sound, sound_in


_WANTED = {
    "image": "images (PIL.Image)",
    "audio": "sounds (paths of WAV files, or mappings of array and sampling_rate)",
}
_NO_NUMBERS = torch.empty(0, dtype=torch.int64)


class InputReader:
    """The tokenizer, image processor or feature extractor of a member folder; threads may share it.

    Attributes:
        tokens: What the tokenizer pads and ends with.
    """

    def __init__(
        self, folder: Path, kind: Kind, max_length: int | None, config: Mapping[str, Any] | None = None
    ) -> None:
        """Loads the reader of a folder whose model reads `kind`, and cuts texts to `max_length` tokens.

        Args:
            folder: A member folder.
            kind: What the model reads.
            max_length: Tokens to which a text is cut; None is 512.
            config: The base's configuration, which may say that the model takes fewer.

        Raises:
            CheckpointDamaged: The folder holds no readable tokenizer or processor.
            UntrustedContentError: It asks for code of its own.
        """
        self._kind, self._max_length, self._config = kind, max_length, config
        self._tokenizer = load_tokenizer(folder) if kind not in _WANTED else None
        self._processor = load_image_processor(folder) if kind == "image" else None
        self._hearing = Hearing.load(folder) if kind == "audio" else None
        self._lock = Lock()  # a tokenizer holds how it cuts and pads from one call to the next
        self.tokens = SpecialTokens.of(self._tokenizer)

    def require(self, inputs: Sequence[Any], batch_size: int) -> None:
        """Refuses inputs of another kind than the model reads.

        Args:
            inputs: The inputs, as `listed` returns them.
            batch_size: Inputs per batch.

        Raises:
            InputError: As said, or `batch_size` is below 1.
        """
        check_whole("batch_size", batch_size, 1)
        wanted = _WANTED.get(self._kind, "texts and pairs of texts")
        fits = {"image": _is_image, "audio": _is_sound}.get(self._kind, _is_text)
        for index, item in enumerate(inputs):
            if not fits(item):
                raise InputError(f"Input {index} is {type(item).__name__} {item!r:.60}; this model reads {wanted}.")
            if fits is _is_text:
                _require_characters(item, index)

    def batches(self, inputs: Sequence[Any], batch_size: int) -> Iterator[tuple[list[int], list[Batch]]]:
        """Yields positions and batches of the inputs of each shape: single texts (images, sounds), and pairs of texts.

        The rows of the batches count within the positions.

        Args:
            inputs: The inputs, as `listed` returns them: they are fetched by position.
            batch_size: Inputs per batch.

        Raises:
            InputError: An input is of another kind than the model reads, cannot be read, or `batch_size` is below 1.
        """
        self.require(inputs, batch_size)
        pairs = [index for index, item in enumerate(inputs) if isinstance(item, tuple | list)]
        singles = sorted(set(range(len(inputs))) - set(pairs))
        if singles:
            yield singles, self._arranged([inputs[index] for index in singles], None, batch_size)
        if pairs:
            first, second = map(list, zip(*(inputs[index] for index in pairs), strict=True))
            yield pairs, self._arranged(first, second, batch_size)

    def run(
        self,
        inputs: Sequence[Any],
        batch_size: int,
        function: Callable[[Mapping[str, Tensor]], Tensor],
        empty: Tensor = _NO_NUMBERS,
    ) -> Tensor:
        """Returns what a function gives for a batch's model inputs, [batch, ...], for all inputs in their order.

        Args:
            inputs: The inputs, as `listed` returns them.
            batch_size: Inputs per batch.
            function: Called with each batch's model inputs.
            empty: What is returned where there are no inputs; by default no whole numbers.

        Raises:
            InputError: As `batches`.
        """
        found: list[Tensor] = []
        order: list[int] = []
        for positions, batches in self.batches(inputs, batch_size):
            found.append(restore(batches, [function(batch.inputs) for batch in batches]))
            order += positions
        if not found:
            return empty
        return torch.cat(found)[torch.tensor(order).argsort()]

    @contextmanager
    def prompting(self, config: Mapping[str, Any], batch_size: int) -> Iterator[Prompter]:
        """Lends what makes prompts into batches for a language model; other threads wait.

        Raises:
            InputError: The model is none, or `batch_size` is below 1.
        """
        check_whole("batch_size", batch_size, 1)
        if self._tokenizer is None or self._kind not in ("causal", "seq2seq"):
            raise InputError("This model classifies and writes nothing; ask it with predict.")
        with self._lock:
            yield Prompter(self._tokenizer, self._kind, config, batch_size=batch_size, max_length=self._max_length)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Returns tokens as texts, without special tokens."""
        if self._tokenizer is None:
            raise RuntimeError("Only models of texts have a tokenizer.")
        with self._lock:
            texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def _arranged(self, items: list[Any], seconds: list[Any] | None, batch_size: int) -> list[Batch]:
        if self._processor is not None:
            return image_batches(self._processor, items, batch_size=batch_size)
        if self._hearing is not None:
            sounds = [as_sound(item, f"input {index}") for index, item in enumerate(items)]
            return self._hearing.batches(sounds, batch_size=batch_size)
        if self._tokenizer is None:
            raise RuntimeError("A reader has a tokenizer or a processor.")
        with self._lock:
            return text_batches(
                self._tokenizer,
                items,
                seconds,
                batch_size=batch_size,
                max_length=self._max_length,
                config=self._config,
            )


def listed(inputs: Iterable[Any]) -> list[Any]:
    """Returns the inputs that a caller gives as a list, in which a place is a place.

    A column of pandas is asked by its labels where a list is asked by places, and what is generated can be read once
    only, while inputs are checked, routed and answered in turn.

    Raises:
        InputError: It is a single input, a table, or a set, which has no order for the answers to keep.
    """
    if isinstance(inputs, str | bytes | Path | Mapping) or _is_image(inputs) or not isinstance(inputs, Iterable):
        raise InputError(f"The inputs are one {type(inputs).__name__}. Give a list of inputs, even for a single one.")
    if isinstance(inputs, set | frozenset):
        raise InputError(f"The inputs are a {type(inputs).__name__}, which has no order. Give a list of inputs.")
    dimensions = getattr(inputs, "ndim", 1)
    if dimensions != 1:  # a table of pandas would give the names of its columns
        raise InputError(
            f"The inputs are a {type(inputs).__name__} of {dimensions} dimensions. Give a list, or a column of it."
        )
    return list(inputs)


def _require_characters(item: str | Sequence[str], index: int) -> None:
    """Refuses lone surrogates: Python puts them where bytes, as of a command line, are no UTF-8."""
    for text in (item,) if isinstance(item, str) else item:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"Input {index}, {text!r:.60}, holds bytes that are no UTF-8 (at character {error.start}). Give it as "
                "UTF-8 text."
            ) from None


def _is_image(item: object) -> bool:
    return callable(getattr(item, "convert", None))


def as_sound(item: Any, name: str) -> Sound:
    """Returns the sound that a caller means, by a path or as samples; `name` is what messages call it.

    Raises:
        InputError: It cannot be read; the message says what to do.
    """
    origin = f"'{item}'" if isinstance(item, str | Path) else name
    try:
        return sound_in(item, origin)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise InputError(f"{origin} cannot be read as a sound: {said}. This model reads sounds.") from error


def _is_sound(item: object) -> bool:
    return isinstance(item, str | Path | Sound) or (
        isinstance(item, dict) and {"array", "sampling_rate"} <= item.keys()
    )


def _is_text(item: object) -> bool:
    parts = item if isinstance(item, tuple | list) and len(item) == 2 else (item,)
    return all(isinstance(part, str) for part in parts)
