"""`MergeModel`: a configuration loaded under a budget, which routes every input to its chain of experts.

Every file is checked against its digest before use, and no code, pickle or path from the folder is ever used.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from torch import Tensor

from hf_merge.errors import InputError, some
from hf_merge.modeling.assembly import Head, TransformersModel
from hf_merge.modeling.inputs import restore
from hf_merge.serving.answers import Generation, MergeOutput, Prediction
from hf_merge.serving.asking import check_claim, chosen_device, chosen_dtype, count_rows, task_numbers
from hf_merge.serving.assembling import Assembler
from hf_merge.serving.packing import chosen_memory
from hf_merge.serving.reading import listed
from hf_merge.serving.router import UNCLAIMED
from hf_merge.serving.saving import SavedMember
from hf_merge.serving.selection import open_member
from hf_merge.serving.speaking import Speaker
from hf_merge.serving.unclaimed import CommonModel
from hf_merge.storing import hub
from hf_merge.storing.library import Member


if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_merge.storing.sounds import Sound

__all__ = ["Generation", "MergeModel", "MergeOutput", "Prediction"]
Inputs: TypeAlias = (
    "Iterable[str | tuple[str, str]] | Iterable[Image] | Iterable[str | Path | Mapping[str, Any] | Sound]"
)
Tasks: TypeAlias = "str | Sequence[str] | None"

_BATCH_SIZE = 32


class MergeModel(SavedMember, library_name="hf-merge", tags=["merge", "hf-merge"]):
    """A merged model: routes inputs to tasks, runs each task's chain of experts, and answers with the task's head.

    Every file is compared with its digest when the model is loaded; a task's experts are decoded when the task is
    first used, and the router is read when an input is first routed, so that a model of many tasks answers soon.
    Threads may share a model.

    Attributes:
        tasks: The names of the tasks that were loaded, in the order of `task_ids`.
        cost: C, in units of one full-precision base model.
        chain_map: Everything `chains.json` says, of tasks that were not loaded too.
        device: Where it runs.
        dtype: What it computes in.
        memory: `dense`, where experts are decoded once, or `packed`, where they stay as they are stored.
    """

    def __init__(
        self,
        member: Member,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        memory: str = "auto",
    ) -> None:
        """Loads what the tasks of an opened member need; use `from_pretrained`."""
        self._member, self.chain_map = member, member.chain_map
        self.tasks, self.cost = member.tasks, self.chain_map.cost
        self.device = chosen_device(device)
        self.dtype = chosen_dtype(dtype, self.chain_map.dtype)
        self.memory = chosen_memory(memory, member, self.device, self.dtype)
        self._parts = Assembler(member, self.device, self.dtype, packed=self.memory == "packed")
        with self._parts.checking():
            self._reader = self._parts.input_reader()
        self._parts.tokens = self._reader.tokens
        self._recombiner = self._parts.recombiner()
        self._common = CommonModel(self._parts, member)
        self._speaker: Speaker | None = None
        if self.chain_map.wordings:
            self._speaker = Speaker(self._parts, self._reader, self._recombiner, self._common, self.chain_map.chains)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        budget: float | str | None = None,
        tasks: Sequence[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        memory: str = "auto",
    ) -> Self:
        """Returns the best configuration within a budget.

        Args:
            pretrained_model_name_or_path: A member folder, a family folder (the output of a run), or a Hub repo of
                either.
            budget: The most that may be stored: in units of one full-precision base model (0.5), or bytes ("250MB").
                None takes the best-performing configuration.
            tasks: The tasks to load, None for all. Only what they need is fetched, checked and kept in memory, and
                inputs are routed among them alone. The choice under a budget does not depend on it.
            revision: Branch, tag or commit of a Hub repo.
            token: As everywhere in huggingface_hub.
            cache_dir: As everywhere in huggingface_hub.
            local_files_only: Use the cache only.
            device: Where to run; the processor by default.
            dtype: What to compute in, or its name; by default what the search computed in, which gives the very same
                outputs.
            memory: `dense` decodes each expert once, when a task that uses it is first asked: the fastest. `packed`
                keeps experts as they are stored, about C of memory, and decodes each tensor when it is used. `auto`
                packs where all chains decoded would take more than half of the free memory. The outputs are the same.

        Raises:
            BudgetTooSmall: No configuration fits; the message names the cheapest.
            BudgetError: The budget is no storage size.
            InputError: A task is unknown or named twice, or there is no such `device`, `dtype` or `memory`.
            CheckpointDamaged: The folder or repo is neither member nor family; the message says what loads it.
            UntrustedContentError: A file is missing, damaged or breaks the format.
            HubError: The Hub does not have it, refuses it or cannot be reached.
        """
        access = hub.Access(token, cache_dir, local_files_only)
        member = open_member(pretrained_model_name_or_path, budget, revision=revision, tasks=tasks, access=access)
        return cls(member, device=device, dtype=dtype, memory=memory)

    @torch.inference_mode()
    def __call__(self, task: Tasks = None, **inputs: Tensor) -> MergeOutput:
        """Returns logits for a batch; `outputs` takes inputs as they are, and a `claim`.

        Args:
            task: The task of all rows, or of each row; None routes every row.
            inputs: The model's inputs, as its tokenizer or processor gives them, each [batch, ...].

        Raises:
            InputError: The batch is empty, a task is unknown, there is no router, or the model is a language model,
                which is asked with `predict`, `outputs` and `generate`.
        """
        if self._speaker is not None:
            raise InputError("A language model's tasks word their prompts: give texts to predict or generate.")
        rows = count_rows(inputs)
        return self._answered(inputs, self._parts.route(inputs) if task is None else self._task_ids(task, rows))

    def route(self, **inputs: Tensor) -> Tensor:
        """Returns the task of each row of a batch: [batch] int64, an index of `tasks`; `routes` takes a `claim`.

        Args:
            inputs: The model's inputs, as its tokenizer or processor gives them, each [batch, ...].

        Raises:
            InputError: The batch is empty, or there is no router.
        """
        count_rows(inputs)
        return self._parts.route(inputs)

    def predict(
        self, inputs: Inputs, *, task: Tasks = None, claim: float | None = None, batch_size: int = _BATCH_SIZE
    ) -> list[Prediction]:
        """Returns one answer per input, in order.

        A language model is asked in the words of the input's task, and answers with one of the task's options.

        Args:
            inputs: Texts, pairs of texts (both kinds may be mixed), images, or sounds: paths of WAV files, or
                mappings of `array` (samples) and `sampling_rate`.
            task: The task of all inputs, or of each; None routes every input.
            claim: The least probability with which the router must take an input to be a task's, above 0 and at most
                1. Where it takes it to be nobody's, there is no answer (see `features`). None answers every input.
            batch_size: Inputs per batch.

        Raises:
            InputError: An input is of another kind than the model reads, a task is unknown, or answers in words of
                its own: ask it with `generate`. Or `claim` is no probability, or is given beside `task`.
        """
        output = self.outputs(inputs, task=task, claim=claim, batch_size=batch_size)
        names = self._names(output.task_ids)
        wordless = [name for name in self.tasks if not self.heads[name].num_labels]
        if not set(wordless).isdisjoint(names):
            raise InputError(f"{some(wordless)} answers in words of its own, without options: use generate.")
        answers = zip(names, output.logits, strict=True)
        return [
            Prediction.of(name, self.heads[name], row) if name else Prediction(None, None, 0.0)
            for name, row in answers
        ]

    def outputs(
        self, inputs: Inputs, *, task: Tasks = None, claim: float | None = None, batch_size: int = _BATCH_SIZE
    ) -> MergeOutput:
        """Returns logits [inputs, widest head] float32 and tasks of any number of inputs, in order, on the processor.

        A language model's logits are the scores of its options; -inf all over where a task has none. Arguments and
        errors are those of `predict`.
        """
        inputs = listed(inputs)
        if self._speaker is not None:
            task_ids = self._tasks_of(inputs, task, claim, batch_size)
            return MergeOutput(self._speaker.scores(inputs, task_ids, batch_size), task_ids)
        check_claim(claim, task)
        chosen = None if task is None else self._task_ids(task, len(inputs))
        logits = torch.empty(len(inputs), self._parts.width)
        task_ids = torch.empty(len(inputs), dtype=torch.int64)
        for positions, batches in self._reader.batches(inputs, batch_size):
            outputs = []
            for batch in batches:
                places = [positions[row] for row in batch.rows]
                tasks = self._parts.route(batch.inputs, claim) if chosen is None else chosen[places]
                outputs.append(self._answered(batch.inputs, tasks))
            logits[positions] = restore(batches, [output.logits.float().cpu() for output in outputs])
            task_ids[positions] = restore(batches, [output.task_ids for output in outputs])
        return MergeOutput(logits, task_ids)

    def generate(
        self,
        inputs: Inputs,
        *,
        task: Tasks = None,
        claim: float | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = _BATCH_SIZE,
        seed: int | None = None,
        **options: Any,
    ) -> list[Generation]:
        """Returns what a language model writes for each input, in order.

        Every input is routed once, as it is, and then put in the words of its task; tasks of one chain share batches.
        What is written is what `materialize(task).generate` writes for that prompt alone, but for rounding.

        Args:
            inputs: Texts, and pairs of texts.
            task: The task of all inputs, or of each; None routes every input.
            claim: As for `predict`, but an input that no task claims is answered too: the merged model goes on from
                it as it is, in no task's words.
            max_new_tokens: The most tokens to write; None is what the task says, or 32.
            batch_size: Inputs per batch.
            seed: Decides what is drawn; needed with `do_sample=True`. What is drawn depends on the batches too.
            options: Of transformers' `generate`: `num_beams`, `do_sample`, `temperature`, `top_k`, `top_p` and the
                others in `hf_merge.modeling.generation.OPTIONS`. None write the likeliest token each time.

        Raises:
            InputError: The model is no language model, an input is no text, or an option or task is unknown.
        """
        if self._speaker is None:
            raise InputError("This model classifies and writes nothing; ask it with predict.")
        inputs = listed(inputs)
        task_ids = self._tasks_of(inputs, task, claim, batch_size)
        texts = self._speaker.texts(inputs, task_ids, max_new_tokens, batch_size, seed, options)
        return [Generation(name, text) for name, text in zip(self._names(task_ids), texts, strict=True)]

    def routes(self, inputs: Inputs, *, claim: float | None = None, batch_size: int = _BATCH_SIZE) -> Tensor:
        """Returns the task of each input: [inputs] int64, an index of `tasks`, -1 where none claims it.

        Raises:
            InputError: An input is of another kind than the model reads, or there is no router.
        """
        return self._tasks_of(listed(inputs), None, claim, batch_size)

    def features(self, inputs: Inputs, *, batch_size: int = _BATCH_SIZE) -> Tensor:
        """Returns what the merged model makes of inputs, whoever's they are: [inputs, width] float32.

        The mean last hidden state (an encoder's, where there is a decoder too) of what the loaded tasks have in common
        (docs/format.md, section 6): shared experts, or the mean of their own. It is one more model in memory, decoded.

        Raises:
            InputError: An input is of another kind than the model reads, or the model gives no features.
        """
        return self._reader.run(listed(inputs), batch_size, self._common.pooled, torch.empty(0, 0))

    @property
    def heads(self) -> dict[str, Head]:
        """What each task's head answers, by task."""
        return self._parts.heads

    def chain(self, task: str) -> tuple[str, ...]:
        """Returns the ids of a task's experts, one per component.

        Raises:
            InputError: The task is unknown.
        """
        return self.chain_map.chains[self.tasks[self._task_ids(task, 1)[0]]]

    def materialize(self, task: str) -> TransformersModel:
        """Returns a task's chain as an ordinary transformers model with weights of its own, in evaluation mode.

        An adapter is multiplied into the weights that it acts on.

        Raises:
            InputError: The task is unknown.
        """
        index = int(self._task_ids(task, 1)[0])
        model = self._parts.skeleton(task)
        for name, tensor in self._recombiner.models[index].tensors().items():
            model.put(name, tensor.clone())
        model.settle()
        model.move_buffers(self.device)
        model.fold_adapter()
        return model.module.requires_grad_(True)

    def _tasks_of(self, inputs: Sequence[Any], task: Tasks, claim: float | None, batch_size: int) -> Tensor:
        """Returns the task of each input, as given or as routed."""
        check_claim(claim, task)
        if task is not None:
            self._reader.require(inputs, batch_size)
            return self._task_ids(task, len(inputs))
        return self._reader.run(inputs, batch_size, lambda batch: self._parts.route(batch, claim))

    @torch.inference_mode()
    def _answered(self, inputs: Mapping[str, Tensor], task_ids: Tensor) -> MergeOutput:
        """Returns the logits of a batch whose tasks are known."""
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        return MergeOutput(self._recombiner.logits(moved, task_ids), task_ids)

    def _names(self, task_ids: Tensor) -> list[str | None]:
        return [None if index == UNCLAIMED else self.tasks[index] for index in task_ids.tolist()]

    def _task_ids(self, task: str | Sequence[str], rows: int) -> Tensor:
        return task_numbers(task, rows, self.tasks, self.chain_map)
