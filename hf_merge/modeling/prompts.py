"""Prompts and answers as tokens: batches whose options are scored, and batches that a model writes on from.

A decoder's option follows its prompt, both tokenised by themselves, so that an option is the same tokens in every row.
An encoder-decoder reads the prompt and is asked for the option as for any target, its end included. Prompts that are
too long are cut, options never.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_merge.errors import DatasetError, RecipeError
from hf_merge.modeling.assembly import Kind
from hf_merge.modeling.batching import cut
from hf_merge.modeling.inputs import DEFAULT_MAX_LENGTH, Batch
from hf_merge.modeling.options import IGNORED
from hf_merge.modeling.positions import positions


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompter:
    """Turns prompts into batches for one base.

    Attributes:
        kind: `causal` or `seq2seq`.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        kind: Kind,
        config: Mapping[str, Any],
        *,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        """Prepares to make batches.

        Args:
            tokenizer: As `load_tokenizer` returns it.
            kind: `causal` or `seq2seq`.
            config: The base's `config.json`.
            batch_size: The most sequences per batch; options count, but a row's options stay together.
            max_length: Tokens to which a prompt is cut; None is 512. Less where the model has no room for more.
        """
        self.kind = kind
        self._tokenizer, self._batch_size = tokenizer, batch_size
        self._wanted = DEFAULT_MAX_LENGTH if max_length is None else max_length
        self._most = min(int(tokenizer.model_max_length), positions(config, kind))
        self._before = _opening_tokens(tokenizer) if kind == "causal" else []

    def option_batches(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Batch]:
        """Returns all prompts with their options, in batches of similar length, shortest first.

        Each batch holds what `option_scores` takes.

        Raises:
            DatasetError: A prompt gives no tokens.
            RecipeError: An option gives no tokens or the same as another, or leaves no room for a prompt.
        """
        options = self._options(answers)
        longest = max(map(len, options))
        asked = self._prompts(prompts, longest)
        lengths = np.array([len(ids) for ids in asked], dtype=np.int64)
        if self.kind == "causal":
            lengths += longest
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        size = max(1, self._batch_size // len(options))
        arrange = self._continued if self.kind == "causal" else self._answered
        return [
            Batch(arrange([asked[row] for row in order[start:stop]], options), order[start:stop])
            for start, stop in cut(lengths[order] * len(options), size)
        ]

    def prompt_batches(self, prompts: Sequence[str], max_new_tokens: int) -> list[Batch]:
        """Returns all prompts in batches of similar length, shortest first, for a model to write on from.

        A decoder's prompts are padded on the left, so that all end where the model goes on.

        Raises:
            DatasetError: A prompt gives no tokens.
            RecipeError: What may be written leaves no room for a prompt.
        """
        asked = self._prompts(prompts, max_new_tokens)
        lengths = np.array([len(ids) for ids in asked], dtype=np.int64)
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        left = self.kind == "causal"
        return [
            Batch(self._padded([asked[row] for row in order[start:stop]], left=left), order[start:stop])
            for start, stop in cut(lengths[order], self._batch_size)
        ]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Returns tokens as texts, without special tokens."""
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def _options(self, answers: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each option; of an encoder-decoder with those that begin and end a target."""
        plain: list[list[int]] = self._tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        for index, ids in enumerate(plain):
            if not ids:
                raise RecipeError(f"The answer {answers[index]!r:.80} gives no tokens. Word it otherwise.")
            if ids in plain[:index]:
                other = answers[plain.index(ids)]
                raise RecipeError(
                    f"The answers {other!r:.80} and {answers[index]!r:.80} are the same tokens ({ids[:8]}), so "
                    "nothing can tell them apart. Word them with what the tokenizer knows."
                )
        if self.kind == "causal":
            return plain
        targets: list[list[int]] = self._tokenizer(text_target=list(answers))["input_ids"]
        return targets

    def _prompts(self, prompts: Sequence[str], answer: int) -> list[list[int]]:
        """Returns the tokens of each prompt, cut to leave room for an answer of so many tokens."""
        room = min(self._wanted, self._most - (answer if self.kind == "causal" else 0))
        special = len(self._before) if self.kind == "causal" else self._tokenizer.num_special_tokens_to_add()
        if room <= special or answer > self._most:
            raise RecipeError(
                f"An answer of {answer} tokens leaves {max(room, 0)} for the prompt, of {self._most} that the model "
                f"takes and {self._wanted} that max_length allows. Shorten the answers, lower max_new_tokens or raise "
                "max_length."
            )
        if self.kind == "causal":
            # The end of a prompt holds the question; its beginning can be missed.
            plain = self._tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"]
            asked = [self._before + ids[max(0, len(ids) - room + special) :] for ids in plain]
        else:
            asked = self._tokenizer(list(prompts), truncation=True, max_length=room)["input_ids"]
        empty = next((row for row, ids in enumerate(asked) if not ids), None)
        if empty is not None:
            raise DatasetError(
                f"Row {empty}: the prompt {prompts[empty]!r:.60} gives no tokens. Remove the row, or word the "
                "template so that something is asked."
            )
        return asked

    def _continued(self, asked: list[list[int]], options: list[list[int]]) -> dict[str, Tensor]:
        """Returns prompts with each option after them, [rows, options, length], padded on the right."""
        sequences = [prompt + option for prompt in asked for option in options]
        spoken = [[IGNORED] * len(prompt) + option for prompt in asked for option in options]
        shape = (len(asked), len(options), -1)
        inputs = self._padded(sequences, left=False) | {"labels": _filled(spoken, IGNORED)}
        return {name: value.view(shape) for name, value in inputs.items()}

    def _answered(self, asked: list[list[int]], options: list[list[int]]) -> dict[str, Tensor]:
        """Returns prompts [rows, length], and every option for each of them [rows, options, positions]."""
        labels = _filled(options, IGNORED).expand(len(asked), -1, -1).clone()
        return self._padded(asked, left=False) | {"labels": labels}

    def _padded(self, sequences: list[list[int]], *, left: bool) -> dict[str, Tensor]:
        padding = int(self._tokenizer.pad_token_id)
        mask = _filled([[1] * len(ids) for ids in sequences], 0, left=left)
        return {"input_ids": _filled(sequences, padding, left=left), "attention_mask": mask}


def _filled(sequences: Sequence[Sequence[int]], filler: int, *, left: bool = False) -> Tensor:
    """Returns sequences as one tensor [sequences, longest] int64."""
    longest = max(map(len, sequences))
    gaps = [[filler] * (longest - len(ids)) for ids in sequences]
    return torch.tensor([[*gap, *ids] if left else [*ids, *gap] for gap, ids in zip(gaps, sequences, strict=True)])


def _opening_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Returns the special tokens that a tokenizer puts before a text; what it puts after one would end a prompt."""
    probe = "a"
    plain: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(probe)["input_ids"]
    start = next((at for at in range(len(whole)) if plain and whole[at : at + len(plain)] == plain), 0)
    return whole[:start]
