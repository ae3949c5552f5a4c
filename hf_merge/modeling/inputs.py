"""Inputs: texts, pairs of texts and images become padded batches, and outputs return to the order of the rows.

Rows are tokenised once and sorted by length, so that a batch pads little; `restore` undoes the sorting. Tokenizers,
image processors and feature extractors come from local folders only, never with code of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.errors import CheckpointDamaged, DatasetError, RecipeError
from hf_merge.modeling.batching import cut
from hf_merge.modeling.positions import UNBOUNDED, positions
from hf_merge.modeling.reader_files import check_folder, one_line


if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, SequenceFeatureExtractor

DEFAULT_MAX_LENGTH = 512
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, ready for a model.

    Attributes:
        inputs: The model's keyword arguments: `input_ids` and `attention_mask` [batch, length] int64 (and more where
            the tokenizer has it), `pixel_values` [batch, channels, height, width] float32, or of sounds
            `input_values` or `input_features` [batch, length, ...] float32.
        rows: [batch] int64, the positions of these rows in the original order.
    """

    inputs: dict[str, Tensor]
    rows: NDArray[np.int64]


def text_batches(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    batch_size: int,
    max_length: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[Batch]:
    """Returns all rows in batches of similar length, shortest first, each padded to its longest row.

    The rows are cut where that costs least (see `cut`). No rows give no batches. Rows of one length keep their order.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        texts: The texts, one per row.
        pairs: The second texts, one per row, or None.
        batch_size: The most rows per batch.
        max_length: Tokens to which a row is cut; None is 512. Less where the tokenizer or the model takes fewer.
        config: The base's `config.json`, which says how many tokens the model takes; None asks the tokenizer alone.

    Raises:
        DatasetError: Texts and pairs differ in number, or a row gives no tokens at all.
        RecipeError: `max_length` leaves no room beside the special tokens.
        CheckpointDamaged: The tokenizer has no token to pad with.
    """
    if pairs is not None and len(pairs) != len(texts):
        raise DatasetError(f"{len(texts)} texts but {len(pairs)} second texts: every row needs both.")
    if not texts:
        return []
    _ensure_padding(tokenizer)
    most = UNBOUNDED if config is None else positions(config, "text")
    limit = _token_limit(tokenizer, max_length, most, paired=pairs is not None)
    encoded = tokenizer(
        list(texts),
        list(pairs) if pairs is not None else None,
        truncation=True,
        max_length=limit,
        return_attention_mask=True,
    )
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    if (lengths == 0).any():
        row = int(np.argmin(lengths))
        raise DatasetError(f"Row {row} ({texts[row]!r:.60}) gives no tokens. Remove the row or give it a text.")
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    batches = cut(lengths[order], batch_size)
    return [_padded(tokenizer, encoded, order[start:stop]) for start, stop in batches]


def image_batches(processor: "BaseImageProcessor", images: Sequence["Image"], *, batch_size: int) -> list[Batch]:
    """Returns all images in batches, in their order, each converted to RGB and processed once; no images, no batches.

    Raises:
        DatasetError: The processor cannot make one tensor of a batch (different sizes without resizing, say).
    """
    batches = []
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        try:
            inputs = processor(images=[as_rgb(image) for image in images[start:stop]], return_tensors="pt")
        except (ValueError, TypeError) as error:
            raise DatasetError(
                f"{type(processor).__name__} cannot process images {start} to {stop - 1}: {one_line(error)} "
                "Check its preprocessor_config.json (do_resize, size)."
            ) from error
        batches.append(Batch(dict(inputs), np.arange(start, stop, dtype=np.int64)))
    return batches


def as_rgb(image: "Image") -> "Image":
    """Returns the image in mode RGB, as models see it; transparency is dropped."""
    if image.mode == "RGB":
        return image
    # A palette with transparency goes through RGBA, as Pillow warns it should.
    return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")


def restore(batches: Sequence[Batch], outputs: Sequence[Tensor]) -> Tensor:
    """Returns the outputs of all batches as one tensor [rows, ...] in the original order of the rows.

    Args:
        batches: All batches of one call of `text_batches` or `image_batches`, at least one, in any order.
        outputs: One tensor [batch, ...] per batch, in the order of `batches`, all alike beyond the first dimension.

    Raises:
        ValueError: Outputs and batches do not fit each other, or the batches do not hold every row once.
    """
    sizes = [len(batch.rows) for batch in batches]
    if not sizes or sizes != [len(output) for output in outputs]:
        raise ValueError(f"batches of {sizes} rows do not fit outputs of {[len(output) for output in outputs]} rows")
    rows = np.concatenate([batch.rows for batch in batches])
    back = np.argsort(rows)
    if not np.array_equal(rows[back], np.arange(len(rows))):
        raise ValueError(f"the batches hold {len(rows)} rows, but not each of 0 to {len(rows) - 1} once")
    joined = torch.cat(list(outputs))
    return joined[torch.from_numpy(back).to(joined.device)]


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Returns the tokenizer of a local checkpoint folder, able to pad; nothing is fetched, no code of the folder runs.

    A tokenizer without a padding token pads with its end-of-text token, as users of GPT-2 do; the attention mask hides
    it from the model, whose config may need the same `pad_token_id`.

    Raises:
        CheckpointDamaged: The folder holds no readable tokenizer, or one that cannot pad.
        UntrustedContentError: The tokenizer needs code of its own (`auto_map`).
        LimitExceeded: A tokenizer file is larger than 64 MiB.
    """
    check_folder(folder, "tokenizer", _TOKENIZER_FILES)
    from transformers import AutoTokenizer

    with _BlameFolder(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    # transformers builds a BERT tokenizer even where its vocabulary file is missing.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise CheckpointDamaged(
            f"The tokenizer in {folder} knows {len(tokenizer)} tokens, all of them special ones: its vocabulary is "
            "missing. Add tokenizer.json (or the vocabulary file) of the base model."
        )
    _ensure_padding(tokenizer)
    return tokenizer


def load_image_processor(folder: Path) -> "BaseImageProcessor":
    """Returns the image processor of a local checkpoint folder; nothing is fetched and no code of the folder runs.

    It is always the variant on Pillow, so that results do not depend on whether torchvision is installed.

    Raises:
        CheckpointDamaged: The folder holds no readable image processor.
        UntrustedContentError: The image processor needs code of its own (`auto_map`).
        LimitExceeded: A processor file is larger than 64 MiB.
    """
    _check_processor(folder, "image processor", "pictures", "size, mean and deviation decide what they see")
    from transformers import AutoImageProcessor

    with _BlameFolder(folder, "image processor"):
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
        )
    return processor


def load_feature_extractor(folder: Path) -> "SequenceFeatureExtractor":
    """Returns the feature extractor of a local checkpoint folder, for sounds; nothing is fetched, no code of it runs.

    Raises:
        CheckpointDamaged: The folder holds no readable feature extractor.
        UntrustedContentError: The feature extractor needs code of its own (`auto_map`).
        LimitExceeded: A processor file is larger than 64 MiB.
    """
    _check_processor(folder, "feature extractor", "sounds", "sampling rate and normalisation decide what they hear")
    from transformers import AutoFeatureExtractor

    with _BlameFolder(folder, "feature extractor"):
        extractor: SequenceFeatureExtractor = AutoFeatureExtractor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    return extractor


def _check_processor(folder: Path, kind: str, what: str, why: str) -> None:
    check_folder(folder, kind, _PROCESSOR_FILES)
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise CheckpointDamaged(
            f"There is no {_PROCESSOR_FILES[0]} in {folder}, so nothing says how {what} become numbers. Copy the "
            f"one there that the fine-tunes were trained with: its {why}."
        )


class _BlameFolder:
    """Turns what transformers raises over damaged files into CheckpointDamaged.

    A context manager, because tokenizers raises `Exception` itself, and only that class, not all below it, is caught.
    """

    _DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError)

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind

    def __enter__(self) -> None:
        """Starts watching."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises CheckpointDamaged in place of an error that the folder's files cause."""
        if kind is Exception or isinstance(error, self._DAMAGE):
            raise CheckpointDamaged(
                f"The {self._kind} in {self._folder} cannot be loaded: {type(error).__name__}: {one_line(error)} "
                f"Replace its {self._kind} files with those of the base model."
            ) from error


def _ensure_padding(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Lets the tokenizer pad with its end-of-text token where it has no padding token."""
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token is None:
        raise CheckpointDamaged(
            f"The tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has neither a padding nor an "
            "end-of-text token, so rows cannot share a batch. Name one of its tokens as 'pad_token' in "
            "tokenizer_config.json."
        )
    tokenizer.pad_token = tokenizer.eos_token


def _token_limit(tokenizer: "PreTrainedTokenizerBase", max_length: int | None, most: int, *, paired: bool) -> int:
    """Returns the number of tokens to which rows are cut."""
    limit = min(int(tokenizer.model_max_length), most, DEFAULT_MAX_LENGTH if max_length is None else max_length)
    special = tokenizer.num_special_tokens_to_add(pair=paired)
    # At or below this, tokenizers gives up cutting without a word.
    least = special + (2 if paired else 1)
    if limit < least:
        raise RecipeError(
            f"max_length {limit} leaves no room: this tokenizer adds {special} special tokens to a row. "
            f"Give {least} or more."
        )
    return limit


def _padded(tokenizer: "PreTrainedTokenizerBase", encoded: Any, rows: NDArray[np.int64]) -> Batch:
    """Returns the given rows of `encoded` as one batch, padded to the longest of them."""
    columns = {key: [values[row] for row in rows] for key, values in encoded.items()}
    return Batch(dict(tokenizer.pad(columns, return_tensors="pt")), rows)
