"""Language models at work: each input is routed as it came, then asked in the words of its task.

Options are scored task by task. Writing goes chain by chain: tasks of one chain are one model, whose prompts share
batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_merge.errors import InputError
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.generation import check_options, seeded, written
from hf_merge.modeling.inputs import restore
from hf_merge.recipe.wording import DEFAULT_NEW_TOKENS, MOST_NEW_TOKENS, Wording, default_template
from hf_merge.serving.asking import check_whole
from hf_merge.serving.assembling import Assembler
from hf_merge.serving.reading import InputReader
from hf_merge.serving.recombine import Recombiner
from hf_merge.serving.router import UNCLAIMED
from hf_merge.serving.unclaimed import CommonModel


_AS_IT_IS = Wording(default_template(paired=False), None, DEFAULT_NEW_TOKENS)


class Speaker:
    """Asks the tasks of a language model."""

    def __init__(
        self,
        parts: Assembler,
        reader: InputReader,
        recombiner: Recombiner,
        common: CommonModel,
        chains: Mapping[str, tuple[str, ...]],
    ) -> None:
        """Takes the tasks' models, the merged model for inputs of none, and the chain (expert ids) of each task."""
        self._parts, self._reader, self._recombiner, self._chains = parts, reader, recombiner, chains
        self._common = common

    def scores(self, inputs: Sequence[Any], task_ids: Tensor, batch_size: int) -> Tensor:
        """Returns the scores of every input's options, [inputs, widest head] float32 on the processor.

        Beyond a task's own options they are -inf, and everywhere for no task, or one that answers in its own words.

        Args:
            inputs: Texts and pairs of texts.
            task_ids: The task of each, [inputs] int64.
            batch_size: The most sequences per batch; options count.
        """
        scores = torch.full((len(inputs), self._parts.width), -torch.inf)
        for index in sorted(set(task_ids.tolist()) - {UNCLAIMED}):
            answers = self._wording(index).answers
            if answers is None:
                continue
            rows = (task_ids == index).nonzero().squeeze(1)
            with self._reader.prompting(self._parts.config, batch_size) as prompter:
                batches = prompter.option_batches([self._prompt(index, inputs[row]) for row in rows.tolist()], answers)
            found = [
                self._recombiner.logits(self._moved(batch.inputs), torch.full((len(batch.rows),), index))
                for batch in batches
            ]
            scores[rows] = restore(batches, [part.float().cpu() for part in found])
        return scores

    def texts(
        self,
        inputs: Sequence[Any],
        task_ids: Tensor,
        max_new_tokens: int | None,
        batch_size: int,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> list[str]:
        """Returns what each input's task writes for it; the arguments are those of `MergeModel.generate`.

        Where no task claims an input, the merged model goes on from it as it is.

        Raises:
            InputError: An option is unknown or impossible.
        """
        check_options(options, seed)
        if max_new_tokens is not None:
            check_whole("max_new_tokens", max_new_tokens, 1, MOST_NEW_TOKENS)
        found = [""] * len(inputs)
        with seeded(seed):
            for rows, length in self._groups(task_ids, max_new_tokens):
                prompts = [self._prompt(int(task_ids[row]), inputs[row]) for row in rows]
                with self._reader.prompting(self._parts.config, batch_size) as prompter:
                    batches = prompter.prompt_batches(prompts, length)
                model = self._model(int(task_ids[rows[0]])).module
                for batch in batches:
                    texts = self._reader.decode(written(model, self._moved(batch.inputs), length, options))
                    for row, text in zip(batch.rows, texts, strict=True):
                        found[rows[row]] = text
        return found

    def _groups(self, task_ids: Tensor, max_new_tokens: int | None) -> Iterator[tuple[list[int], int]]:
        """Yields the rows that one model answers with one length, and the length."""
        groups: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for row, index in enumerate(task_ids.tolist()):
            length = max_new_tokens or self._wording(index).max_new_tokens or DEFAULT_NEW_TOKENS
            chain = () if index == UNCLAIMED else self._chains[self._parts.tasks[index]]
            groups.setdefault((chain, length), []).append(row)
        yield from ((rows, length) for (_, length), rows in groups.items())

    def _prompt(self, index: int, item: Any) -> str:
        text, pair = item if isinstance(item, tuple | list) else (item, None)
        return self._wording(index).prompt(text, pair)

    def _model(self, index: int) -> TaskModel:
        return self._common.language() if index == UNCLAIMED else self._recombiner.models[index]

    def _wording(self, index: int) -> Wording:
        if index == UNCLAIMED:
            return _AS_IT_IS
        wording = self._parts.heads[self._parts.tasks[index]].wording
        if wording is None:
            raise InputError("This model classifies and writes nothing; ask it with predict.")
        return wording

    def _moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self._parts.device) for name, value in inputs.items()}
