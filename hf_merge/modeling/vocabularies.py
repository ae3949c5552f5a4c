"""Tokenizers compared: a base and its fine-tunes must turn a text into the same tokens, or their weights do not match.

Files are not compared, for versions write the same tokenizer differently; what the tokenizers do is.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_merge.errors import CheckpointDamaged, ModelMismatch, UntrustedContentError
from hf_merge.modeling.inputs import load_tokenizer


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "spm.model", "bpe.codes",
)  # fmt: skip
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
# What normalisers, pre-tokenizers and templates of special tokens treat differently, one thing a line.
_PROBES = (
    "the quick brown fox", "The QUICK Brown", " two  spaces ", "end\nof\tline", "It's 1,234.56 - don't!",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m", "\u4f60\u597d\u4e16\u754c", "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600 :-)", "e\u0301 and \u00e9", "<b>http://a.b/c?d=e_f</b>", "",
)  # fmt: skip


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder holds the vocabulary of a tokenizer."""
    return any((folder / name).is_file() for name in _VOCABULARIES)


def same_files(first: Path, second: Path) -> bool:
    """Returns whether two folders hold the same `tokenizer.json`, and the same settings of it, byte for byte."""
    names = ("tokenizer.json", "tokenizer_config.json")
    return all((folder / names[0]).is_file() for folder in (first, second)) and all(
        _content(first / name) == _content(second / name) for name in names
    )


def require_same_tokenizer(reader: Path, tokenizer: "PreTrainedTokenizerBase", folders: Sequence[Path]) -> None:
    """Refuses fine-tunes that were trained with another tokenizer than the one that rows are read with.

    A folder without a tokenizer passes, and so does one whose tokenizer cannot be opened, with a warning.

    Args:
        reader: The folder of the tokenizer in use.
        tokenizer: That tokenizer.
        folders: Those of the base and of the fine-tunes.

    Raises:
        ModelMismatch: A tokenizer gives other tokens; the message says where.
    """
    for folder in folders:
        if folder == reader or not has_tokenizer(folder) or same_files(reader, folder):
            continue
        try:
            other = load_tokenizer(folder)
        except (CheckpointDamaged, UntrustedContentError) as error:
            logger.warning("The tokenizer of %s is not compared with the one in use: %s", folder, error)
            continue
        difference = find_difference(tokenizer, other)
        if difference is not None:
            raise ModelMismatch(
                f"The tokenizers in {reader} (there) and {folder} (here) do not agree: {difference}. Fine-tunes "
                "are merged with one tokenizer for all; if this one was not trained with, remove it from its folder."
            )


def find_difference(first: "PreTrainedTokenizerBase", second: "PreTrainedTokenizerBase") -> str | None:
    """Returns the first thing in which two tokenizers differ that matters, as the end of a sentence; None where none.

    What a tokenizer pads with does not matter, nor a token that serves for that alone.
    """
    return next(_differences(first, second), None)


def _differences(first: "PreTrainedTokenizerBase", second: "PreTrainedTokenizerBase") -> Iterator[str]:
    one, other = _vocabulary(first, second), _vocabulary(second, first)
    for token in sorted(one.keys() | other.keys(), key=lambda token: (min(_numbers(token, one, other)), token)):
        if one.get(token) != other.get(token):
            yield f"the token {token!r:.60} is {_number(one, token)} there and {_number(other, token)} here"
    for role in _ROLES:
        given, own = getattr(first, role), getattr(second, role)
        if given != own:
            yield f"{role} is {given!r:.60} there and {own!r:.60} here"
    for probe in _PROBES:
        expected, found = first(probe)["input_ids"], second(probe)["input_ids"]
        if expected != found:
            given, own = _shown(first, expected), _shown(second, found)
            yield f"the text {probe!r} gives the tokens {given} there and {own} here"


def _vocabulary(tokenizer: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> Mapping[str, int]:
    """Returns a vocabulary, without the padding token where the other has none of that name."""
    held: dict[str, int] = dict(tokenizer.get_vocab())
    if tokenizer.pad_token not in other.get_vocab():
        held.pop(str(tokenizer.pad_token), None)
    return held


def _numbers(token: str, *vocabularies: Mapping[str, int]) -> list[int]:
    return [vocabulary[token] for vocabulary in vocabularies if token in vocabulary]


def _number(vocabulary: Mapping[str, int], token: str) -> str:
    return f"number {vocabulary[token]}" if token in vocabulary else "not"


def _shown(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))[:80]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
