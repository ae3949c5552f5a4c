"""`MergeModel`: a configuration loaded under a budget, which routes every input to its chain of experts.

A folder is either one member (`chains.json`) or a family (`front.json` and `members/`), from which the best member within the
budget is taken. Every file is checked against its digest before use, and no code, pickle or path from the folder is ever used.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from hf_merge.errors import BudgetTooSmall, CheckpointDamaged, InputError, RunFolderError, nearest
from hf_merge.merging.cost import parse_budget
from hf_merge.modeling.assembly import Head, Kind, TaskModel
from hf_merge.modeling.features import FeatureExtractor
from hf_merge.modeling.inputs import Batch, image_batches, load_image_processor, load_tokenizer, restore, text_batches
from hf_merge.serving.recombine import Recombiner
from hf_merge.serving.router import Router
from hf_merge.serving.router_file import load_router
from hf_merge.storing import front as fronts
from hf_merge.storing import hub
from hf_merge.storing.checkpoints import trunk_of
from hf_merge.storing.library import MAP_FILE, Member, copy_member
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import read_json


if TYPE_CHECKING:
    from PIL.Image import Image

FRONT_FILE, MEMBERS_FOLDER = "front.json", "members"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH_SIZE = 32


@dataclass(frozen=True, eq=False)
class MergeOutput:
    """What a batch gave.

    Attributes:
        logits: [batch, widest head] float; beyond a task's own labels -inf.
        task_ids: [batch] int64, the task that answered each row, as an index of `MergeModel.tasks`.
    """

    logits: Tensor
    task_ids: Tensor


@dataclass(frozen=True)
class Prediction:
    """One input's answer.

    Attributes:
        task: The task that answered.
        label: The label's name, its number as text where labels have no names, or None for a regression.
        score: The label's probability, or the value of a regression.
    """

    task: str
    label: str | None
    score: float


class MergeModel(ModelHubMixin, library_name="hf-merge", tags=["merge", "hf-merge"]):
    """A merged model: routes inputs to tasks, runs each task's chain of experts, and answers with the task's head.

    Attributes:
        tasks: The tasks' names, in the order of `task_ids`.
        cost: C, in units of one full-precision base model.
        chain_map: Everything `chains.json` says.
    """

    def __init__(
        self, member: Member, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Loads a member folder; use `from_pretrained`."""
        self._member, self.chain_map = member, member.chain_map
        self.tasks, self.cost = self.chain_map.tasks, self.chain_map.cost
        self.device = torch.device(device or "cpu")
        self.dtype = dtype or _DTYPES[self.chain_map.dtype]
        self._kind: Kind = "image" if self.chain_map.model.type == "image" else "text"
        member.check_all()
        self._config = _read_config(member)
        self._names = [name for component in self.chain_map.components for name in component.tensors]
        self._reader = load_tokenizer(member.folder) if self._kind == "text" else load_image_processor(member.folder)
        self._recombiner = self._assemble()
        self._router, self._features = self._load_router()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        budget: float | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Returns the best configuration within a budget.

        Args:
            pretrained_model_name_or_path: A member folder, a family folder (the output of a run), or a Hub repo of one member.
            budget: The most that may be stored: in units of one full-precision base model (0.5), or bytes ("250MB"). None takes
                the best-performing configuration.
            revision: Branch, tag or commit of a Hub repo.
            token: As everywhere in huggingface_hub.
            cache_dir: As everywhere in huggingface_hub.
            local_files_only: Use the cache only.
            device: Where to run; the processor by default.
            dtype: What to compute in; by default what the search computed in, which gives the very same outputs.

        Raises:
            BudgetTooSmall: No configuration fits; the message names the cheapest.
            BudgetError: The budget is no storage size.
            UntrustedContentError: A file is missing, damaged or breaks the format.
        """
        folder = hub.pull_member(
            str(pretrained_model_name_or_path),
            revision,
            token=token,
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            local_files_only=local_files_only,
        ).folder
        return cls(choose_member(folder, budget), device=device, dtype=dtype)

    @torch.inference_mode()
    def __call__(self, task: str | Sequence[str] | None = None, **inputs: Tensor) -> MergeOutput:
        """Returns logits for a batch.

        Args:
            task: The task of all rows, or of each row; None routes every row.
            inputs: The model's inputs, as its tokenizer or processor gives them, each [batch, ...].
        """
        rows = len(next(iter(inputs.values())))
        moved = {name: value.to(self.device) for name, value in inputs.items()}
        task_ids = self.route(**inputs) if task is None else self._task_ids(task, rows)
        return MergeOutput(self._recombiner.logits(moved, task_ids), task_ids)

    def route(self, **inputs: Tensor) -> Tensor:
        """Returns the task of each row of a batch: [batch] int64, an index of `tasks`."""
        rows = len(next(iter(inputs.values())))
        if len(self.tasks) == 1:
            return torch.zeros(rows, dtype=torch.int64)
        if self._router is None or self._features is None:
            raise InputError(f"{self._member.folder} holds no router: name the task of every input with task=.")
        return self._router.route(self._features.pooled(inputs))

    def predict(
        self,
        inputs: "Sequence[str] | Sequence[tuple[str, str]] | Sequence[Image]",
        *,
        task: str | None = None,
        batch_size: int = _BATCH_SIZE,
    ) -> list[Prediction]:
        """Returns one answer per input, in order.

        Args:
            inputs: Texts, pairs of texts (both kinds may be mixed), or images.
            task: Skips routing.
            batch_size: Inputs per batch.
        """
        output = self.outputs(inputs, task=task, batch_size=batch_size)
        return [self._prediction(row, int(index)) for row, index in zip(output.logits, output.task_ids, strict=True)]

    def outputs(
        self,
        inputs: "Sequence[str] | Sequence[tuple[str, str]] | Sequence[Image]",
        *,
        task: str | None = None,
        batch_size: int = _BATCH_SIZE,
    ) -> MergeOutput:
        """Returns the logits [inputs, widest head] float32 and tasks of any number of inputs, in order; arguments as in `predict`."""
        width = max(head.num_labels for head in self.heads.values())
        logits = torch.empty(len(inputs), width)
        task_ids = torch.empty(len(inputs), dtype=torch.int64)
        for positions, batches in self._batches(inputs, batch_size):
            outputs = [self(task=task, **batch.inputs) for batch in batches]
            logits[positions] = restore(batches, [output.logits.float().cpu() for output in outputs])
            task_ids[positions] = restore(batches, [output.task_ids for output in outputs])
        return MergeOutput(logits, task_ids)

    @property
    def heads(self) -> dict[str, Head]:
        """What each task's head answers, by task."""
        return {task: Head(entry.num_labels, entry.labels) for task, entry in self.chain_map.heads.items()}

    def chain(self, task: str) -> tuple[str, ...]:
        """Returns the ids of a task's experts, one per component."""
        return self.chain_map.chains[self.tasks[int(self._task_ids(task, 1)[0])]]

    def materialize(self, task: str) -> nn.Module:
        """Returns a task's chain as an ordinary transformers model with weights of its own."""
        index = int(self._task_ids(task, 1)[0])
        model = self._task_model(task)
        for name, tensor in self._recombiner.models[index].tensors().items():
            model.put(name, tensor.clone())
        return model.module

    def _save_pretrained(self, save_directory: Path) -> None:
        """Copies the member's files, each checked, the map last."""
        copy_member(self._member, save_directory)

    def _assemble(self) -> Recombiner:
        """Returns the tasks' models with heads set and every expert decoded once, shared by reference."""
        trunk = trunk_of(self._names)
        decoded = {entry.id: self._placed(self._member.expert(entry)) for entry in self.chain_map.experts}
        models = []
        for task in self.tasks:
            model = self._task_model(task)
            model.set_head(self._placed(self._member.head(task)))
            for identifier in self.chain_map.chains[task]:
                model.set_backbone(decoded[identifier], trunk)
            model.require_complete()
            model.move_buffers(self.device)
            models.append(model)
        return Recombiner(models, [self.chain_map.chains[task] for task in self.tasks])

    def _task_model(self, task: str) -> TaskModel:
        entry = self.chain_map.heads[task]
        pad = getattr(self._reader, "pad_token_id", None)
        return TaskModel(self._config, self._kind, Head(entry.num_labels, entry.labels), pad_token_id=pad)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}

    def _load_router(self) -> tuple[Router | None, FeatureExtractor | None]:
        tensors = self._member.router()
        if tensors is None:
            return None, None
        return load_router(tensors, self._config, trunk_of(self._names))

    def _task_ids(self, task: str | Sequence[str], rows: int) -> Tensor:
        names = [task] * rows if isinstance(task, str) else list(task)
        if len(names) != rows:
            raise InputError(f"{len(names)} tasks for {rows} rows: give one task, or one per row.")
        unknown = next((name for name in names if name not in self.tasks), None)
        if unknown is not None:
            raise InputError(f"Unknown task '{unknown}'.{nearest(unknown, self.tasks)}")
        return torch.tensor([self.tasks.index(name) for name in names])

    def _batches(self, inputs: Sequence[Any], batch_size: int) -> Iterable[tuple[list[int], list[Batch]]]:
        """Yields positions and batches of inputs of one kind: pairs, single texts, or images."""
        if self._kind == "image":
            yield list(range(len(inputs))), image_batches(self._reader, inputs, batch_size=batch_size)
            return
        limit = self.chain_map.model.max_length
        for paired in (False, True):
            positions = [index for index, item in enumerate(inputs) if isinstance(item, tuple | list) == paired]
            chosen = [inputs[index] for index in positions]
            if chosen:
                texts, pairs = zip(*chosen, strict=True) if paired else (chosen, None)
                yield positions, text_batches(self._reader, texts, pairs, batch_size=batch_size, max_length=limit)

    def _prediction(self, logits: Tensor, index: int) -> Prediction:
        task = self.tasks[index]
        head = self.chain_map.heads[task]
        if head.num_labels == 1:
            return Prediction(task, None, float(logits[0]))
        best = int(logits.argmax())
        label = head.labels[best] if head.labels is not None else str(best)
        return Prediction(task, label, float(logits.softmax(dim=0)[best]))


def choose_member(folder: Path, budget: float | str | None) -> Member:
    """Returns the member of a folder to load: the folder itself, or the best of a family within the budget.

    Raises:
        BudgetTooSmall: Nothing fits; the message names the cheapest.
        RunFolderError: The folder is a run whose members were not built yet.
        CheckpointDamaged: The folder is neither member nor family.
    """
    if (folder / MAP_FILE).is_file():
        member = Member(folder)
        limit = parse_budget(budget, member.chain_map.base.parameters)
        if limit is not None and member.chain_map.cost > limit:
            raise BudgetTooSmall(limit, member.chain_map.cost, member.chain_map.id)
        return member
    if not (folder / FRONT_FILE).is_file():
        plain = (
            " It looks like an ordinary model: load it with transformers."
            if (folder / "config.json").is_file()
            else ""
        )
        raise CheckpointDamaged(
            f"{folder} holds neither {MAP_FILE} nor {FRONT_FILE}, so hf-merge did not write it.{plain}"
        )
    front = fronts.read(folder / FRONT_FILE)
    built = tuple(point for point in front.points if (folder / MEMBERS_FOLDER / point.id / MAP_FILE).is_file())
    limit = parse_budget(budget, front.parameters)
    if not built:
        raise RunFolderError(f"No configuration of {folder} is built yet. Run: hf-merge build {folder}")
    chosen = fronts.within(built, limit)
    return Member(folder / MEMBERS_FOLDER / chosen.id)


def _read_config(member: Member) -> dict[str, Any]:
    config = read_json(member.check("config.json"), LIMITS.config_bytes)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointDamaged(f"{member.folder}: config.json names no model_type.")
    return config
