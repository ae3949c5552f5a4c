"""`MergeModel`: a configuration loaded under a budget, which routes every input to its chain of experts.

Every file is checked against its digest before use, and no code, pickle or path from the folder is ever used.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from hf_merge.errors import DigestMismatch, HubError, InputError, nearest
from hf_merge.modeling.assembly import Head, TransformersModel
from hf_merge.modeling.inputs import restore
from hf_merge.serving.answers import MergeOutput, Prediction
from hf_merge.serving.assembling import Assembler
from hf_merge.serving.reading import InputReader
from hf_merge.serving.selection import open_member
from hf_merge.storing import hub
from hf_merge.storing.chains import dump, parse
from hf_merge.storing.copying import copy_member, whole_files
from hf_merge.storing.library import MAP_FILE, Member


if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MergeModel", "MergeOutput", "Prediction"]

Inputs: TypeAlias = "Sequence[str | tuple[str, str]] | Sequence[Image]"

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH_SIZE = 32


class MergeModel(ModelHubMixin, library_name="hf-merge", tags=["merge", "hf-merge"]):
    """A merged model: routes inputs to tasks, runs each task's chain of experts, and answers with the task's head.

    Every file is compared with its digest when the model is loaded; a task's experts are decoded when the task is
    first used, so that a model of many tasks answers soon. Threads may share a model.

    Attributes:
        tasks: The names of the tasks that were loaded, in the order of `task_ids`.
        cost: C, in units of one full-precision base model.
        chain_map: Everything `chains.json` says, of tasks that were not loaded too.
        device: Where it runs.
        dtype: What it computes in.
    """

    def __init__(
        self, member: Member, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Loads what the tasks of an opened member need; use `from_pretrained`."""
        self._member, self.chain_map = member, member.chain_map
        self.tasks, self.cost = member.tasks, self.chain_map.cost
        self.device = torch.device(device or "cpu")
        self.dtype = dtype or _DTYPES[self.chain_map.dtype]
        self._parts = Assembler(member, self.device, self.dtype)
        with self._parts.checking():
            self._reader = InputReader(member.folder, self._parts.kind, self.chain_map.model.max_length)
        self._parts.pad_token_id = self._reader.pad_token_id
        self._recombiner = self._parts.recombiner()
        self._routing = self._parts.router()

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
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
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
            dtype: What to compute in; by default what the search computed in, which gives the very same outputs.

        Raises:
            BudgetTooSmall: No configuration fits; the message names the cheapest.
            BudgetError: The budget is no storage size.
            InputError: A task is unknown or named twice.
            CheckpointDamaged: The folder or repo is neither member nor family; the message says what loads it.
            UntrustedContentError: A file is missing, damaged or breaks the format.
            HubError: The Hub does not have it, refuses it or cannot be reached.
        """
        access = hub.Access(token, cache_dir, local_files_only)
        member = open_member(pretrained_model_name_or_path, budget, revision=revision, tasks=tasks, access=access)
        return cls(member, device=device, dtype=dtype)

    @torch.inference_mode()
    def __call__(self, task: str | Sequence[str] | None = None, **inputs: Tensor) -> MergeOutput:
        """Returns logits for a batch.

        Args:
            task: The task of all rows, or of each row; None routes every row.
            inputs: The model's inputs, as its tokenizer or processor gives them, each [batch, ...].

        Raises:
            InputError: The batch is empty, a task is unknown, or there is no router.
        """
        rows = _count_rows(inputs)
        task_ids = self.route(**inputs) if task is None else self._task_ids(task, rows)
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        return MergeOutput(self._recombiner.logits(moved, task_ids), task_ids)

    def route(self, **inputs: Tensor) -> Tensor:
        """Returns the task of each row of a batch: [batch] int64, an index of `tasks`.

        Args:
            inputs: The model's inputs, as its tokenizer or processor gives them, each [batch, ...].

        Raises:
            InputError: The batch is empty, or there is no router.
        """
        rows = _count_rows(inputs)
        if len(self.tasks) == 1:
            return torch.zeros(rows, dtype=torch.int64)
        if self._routing is None:
            raise InputError(f"{self._member.source} holds no router: name the task of every input with task=.")
        router, eyes = self._routing
        among = [index for index, task in enumerate(self.chain_map.tasks) if task in self.tasks]
        return router.route(eyes.pooled(inputs), among)

    def predict(
        self, inputs: Inputs, *, task: str | Sequence[str] | None = None, batch_size: int = _BATCH_SIZE
    ) -> list[Prediction]:
        """Returns one answer per input, in order.

        Args:
            inputs: Texts, pairs of texts (both kinds may be mixed), or images.
            task: The task of all inputs, or of each; None routes every input.
            batch_size: Inputs per batch.

        Raises:
            InputError: An input is of another kind than the model reads, or a task is unknown.
        """
        output = self.outputs(inputs, task=task, batch_size=batch_size)
        answers = zip(output.logits, output.task_ids.tolist(), strict=True)
        return [Prediction.of(self.tasks[index], self.heads[self.tasks[index]], logits) for logits, index in answers]

    def outputs(
        self, inputs: Inputs, *, task: str | Sequence[str] | None = None, batch_size: int = _BATCH_SIZE
    ) -> MergeOutput:
        """Returns logits [inputs, widest head] float32 and tasks of any number of inputs, in order, on the processor.

        Arguments and errors are those of `predict`.
        """
        chosen = None if task is None else self._task_ids(task, len(inputs))
        logits = torch.empty(len(inputs), max(head.num_labels for head in self.heads.values()))
        task_ids = torch.empty(len(inputs), dtype=torch.int64)
        for positions, batches in self._reader.batches(inputs, batch_size):
            outputs = []
            for batch in batches:
                names = None if chosen is None else [self.tasks[chosen[positions[row]]] for row in batch.rows]
                outputs.append(self(names, **batch.inputs))
            logits[positions] = restore(batches, [output.logits.float().cpu() for output in outputs])
            task_ids[positions] = restore(batches, [output.task_ids for output in outputs])
        return MergeOutput(logits, task_ids)

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

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Copies the member's files, each checked first; saved where it was loaded from, it stays as it is.

        A model of some tasks cannot be saved: its shards and its map speak of the others too. `materialize` gives one
        task's model that can.

        Args:
            save_directory: A new or empty folder, or one that holds a member.
            repo_id: Where to push to; by default the name of the folder.
            push_to_hub: Whether to push as well.
            options: Those of `push_to_hub`.

        Returns:
            The address of the commit, or None without `push_to_hub`.

        Raises:
            InputError: The model was loaded with `tasks=`.
            RunFolderError: The folder holds something else.
            DigestMismatch: A file of the member was damaged since it was loaded.
        """
        # The mixin's own would first delete any config.json there, whoever it belongs to.
        self._save_pretrained(Path(save_directory))
        return self.push_to_hub(repo_id or Path(save_directory).name, **options) if push_to_hub else None

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Pushes the member's files, each checked first, in one commit; what the repo holds already is not sent again.

        The card is pushed as it is: `hf-merge push` writes one for a whole family, and a family to go with it.

        Args:
            repo_id: The Hub id; without a namespace it is the user's own. The repo is made if need be.
            commit_message: The first line of the commit.
            private: Whether only some may see the repo; None leaves that to the account and to the repo as it is.
            token: As everywhere in huggingface_hub.
            branch: The branch, None for the default one.
            create_pr: Open a pull request instead.

        Returns:
            The address of what was pushed.

        Raises:
            InputError: The model was loaded with `tasks=`, or the repo cannot be called so.
            DigestMismatch: A file of the member was damaged since it was loaded.
            HubError: The Hub refuses it or cannot be reached, nobody is logged in, or the repo holds something else.
        """
        access, files = hub.Access(token), whole_files(self._reopened())
        held = hub.read_file(hub.full_name(repo_id, access), MAP_FILE, branch, access=access)
        if held is not None and (other := parse(held).id) != self.chain_map.id:
            raise HubError(
                f"'{repo_id}' holds {other}, not {self.chain_map.id}; nothing was sent. Push to another name."
            )
        pushed = hub.push_files(
            repo_id,
            {**files, MAP_FILE: dump(self.chain_map)},
            message=commit_message or f"Push {self.chain_map.id} with hf-merge",
            tag=None if create_pr else self.chain_map.id,
            private=private,
            branch=branch,
            create_pr=create_pr,
            owned=hub.MEMBER_FILES,
            marker=MAP_FILE,
            access=access,
        )
        return pushed.url

    def _save_pretrained(self, save_directory: Path) -> None:
        copy_member(self._reopened(), save_directory)

    def _reopened(self) -> Member:
        """Returns the member with nothing checked yet: its files may have changed since they were loaded."""
        member = Member(self._member.folder, self.tasks, source=self._member.source)
        if member.chain_map != self.chain_map:
            raise DigestMismatch(f"{member.source}: {MAP_FILE} was written over since it was loaded. Load it again.")
        return member

    def _task_ids(self, task: str | Sequence[str], rows: int) -> Tensor:
        names = [task] * rows if isinstance(task, str) else list(task)
        if len(names) != rows:
            raise InputError(f"{len(names)} tasks for {rows} rows: give one task, or one per row.")
        unknown = next((name for name in names if name not in self.tasks), None)
        if unknown in self.chain_map.chains:
            raise InputError(f"The task '{unknown}' was not loaded: name it in tasks=, or load the model without.")
        if unknown is not None:
            raise InputError(f"Unknown task '{unknown}'.{nearest(unknown, self.tasks)}")
        return torch.tensor([self.tasks.index(name) for name in names], dtype=torch.int64)


def _count_rows(inputs: Mapping[str, Tensor]) -> int:
    strange = next((name for name, value in inputs.items() if not isinstance(value, Tensor) or not value.ndim), None)
    if strange is not None:
        raise InputError(f"The input '{strange}' is no tensor [batch, ...]; tokenize with return_tensors='pt'.")
    rows = len(next(iter(inputs.values()), ()))
    if not rows:
        raise InputError("The batch is empty: give the inputs of at least one row.")
    return rows
