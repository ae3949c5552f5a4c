"""What an opened member becomes in memory: a model for each task, sharing experts by reference, and the router's eyes.

Every file is checked against its digest before use, and no code, pickle or path from the folder is ever used.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from threading import Lock
from typing import Any, cast, overload

import torch
from torch import Tensor

from hf_merge.errors import CheckpointDamaged, InputError, MalformedChainMap
from hf_merge.merging.components import Shape
from hf_merge.modeling.adapters import adapter_shapes
from hf_merge.modeling.assembly import Head, Kind, TaskModel
from hf_merge.modeling.features import FeatureExtractor
from hf_merge.modeling.language import SpecialTokens, task_model
from hf_merge.modeling.on_use import set_on_use
from hf_merge.serving.decoding import Decoder
from hf_merge.serving.packing import PackedExperts
from hf_merge.serving.reading import InputReader
from hf_merge.serving.recombine import Recombiner
from hf_merge.serving.router import Router
from hf_merge.serving.router_file import load_router
from hf_merge.storing.chain_entries import CONFIG_FILE, ChainMap
from hf_merge.storing.checkpoints import trunk_of
from hf_merge.storing.library import Member
from hf_merge.storing.limits import LIMITS
from hf_merge.storing.strict_json import read_json


_HASHERS = 2
_DECODERS = 4


class Assembler:
    """Puts together what the tasks of a member need.

    Attributes:
        kind: What the tasks read, and how they answer.
        heads: What each task's head answers, by task.
        tokens: What texts are padded and end with, for models whose configuration does not say.
        config: The base's configuration.
        trunk: The base's trunk, as the components' tensors have it.
        device: Where the models compute.
        dtype: What they compute in.
        packed: The experts as they are stored, where models decode what they use; None where experts are decoded.
    """

    def __init__(self, member: Member, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> None:
        """Checks the small files that the tasks need and reads the configuration; `checking` checks the large ones.

        Raises:
            DigestMismatch: A file is missing or not the one that the map was written for.
            MalformedChainMap: The member has no heads.
            CheckpointDamaged: The configuration describes no model.
        """
        chain_map = member.chain_map
        if not (chain_map.heads or chain_map.wordings):
            raise MalformedChainMap(f"{member.source}: no task has a head, so nothing says what it answers.")
        self._member, self.device, self.dtype = member, device, dtype
        self.packed = PackedExperts(member, device, dtype) if packed else None
        self._decoder = Decoder(member)
        member.require_nothing_unlisted()
        for name in member.files:
            if not _holds_weights(name):
                member.check(name)
        self.config = _read_config(member)
        self._names = [name for component in chain_map.components for name in component.tensors]
        self.trunk = trunk_of(self._names)
        self.kind = cast(Kind, chain_map.model.type)  # which the map's reader has checked
        self.heads = {task: _head(chain_map, task) for task in member.tasks}
        self.tokens = SpecialTokens()

    @cached_property
    def _adapter(self) -> dict[str, Shape]:
        """The shapes of the adapters' own tensors, as the experts of the first chain have them."""
        chain_map, member = self._member.chain_map, self._member
        named = {component.name: dict.fromkeys(component.tensors, ()) for component in chain_map.components}
        adapting = {name for name, tensors in named.items() if adapter_shapes(tensors)}
        chain = chain_map.chains[member.tasks[0]]
        experts = [entry for entry in member.experts if entry.id in chain and entry.component in adapting]
        held = {name: tensor for entry in experts for name, tensor in member.expert(entry).items()}
        return adapter_shapes({name: tuple(tensor.shape) for name, tensor in held.items()})

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Checks the files of weights while the block runs, which must not use them; hashing lets other threads run.

        Raises:
            DigestMismatch: A file is missing or not the one that the map was written for.
        """
        with ThreadPoolExecutor(_HASHERS) as pool:
            checks = [pool.submit(self._member.check, name) for name in self._member.files if _holds_weights(name)]
            yield
            for check in checks:
                check.result()

    def input_reader(self) -> InputReader:
        """Returns what makes batches of what users give.

        Raises:
            CheckpointDamaged: The member holds no readable tokenizer or processor.
            UntrustedContentError: It asks for code or files of its own.
        """
        member = self._member
        return InputReader(member.folder, self.kind, member.chain_map.model.max_length, self.config)

    def recombiner(self) -> Recombiner:
        """Returns the tasks' models, each put together when it is first asked for.

        Raises:
            MalformedChainMap: Not here, but when a model is asked for: a shard does not hold what the map describes.
            ModelMismatch: Likewise: a tensor has no place in the model or another shape, or one is lacking.
        """
        member = self._member
        chains = [member.chain_map.chains[task] for task in member.tasks]
        return Recombiner(_TaskModels(self), chains, self.width)

    def task_model(self, task: str, decoded: dict[str, dict[str, Tensor]]) -> TaskModel:
        """Returns a task's model, head and backbone set.

        Args:
            task: The task.
            decoded: Experts decoded so far, by id; those of this task's chain are added.

        Raises:
            MalformedChainMap: A shard does not hold what the map describes.
            ModelMismatch: A tensor has no place in the model or another shape, or one is lacking.
        """
        member, model = self._member, self.skeleton(task)
        model.move_buffers(self.device)
        model.set_head(self._placed(member.head(task)))
        if self.packed is not None:
            self._set_packed(model, task, self.packed)
        else:
            chain = member.chain_map.chains[task]
            missing = [entry for entry in member.experts if entry.id in chain and entry.id not in decoded]
            with ThreadPoolExecutor(_DECODERS) as pool:
                found = pool.map(lambda entry: self._placed(self._decoder.expert(entry)), missing)
                decoded |= zip([entry.id for entry in missing], found, strict=True)
            for identifier in chain:
                model.set_backbone(decoded[identifier], self.trunk)
        model.require_complete()
        return model

    def _set_packed(self, model: TaskModel, task: str, packed: PackedExperts) -> None:
        """Has a task's model decode the tensors of its chain when it uses them."""
        chain_map = self._member.chain_map
        for component, identifier in zip(chain_map.components, chain_map.chains[task], strict=True):
            set_on_use(model, component.tensors, self.trunk, self.dtype, partial(packed.tensor, identifier))

    @property
    def width(self) -> int:
        """The labels of the widest head, 1 at least."""
        return max(1, *(head.num_labels for head in self.heads.values()))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the models."""
        return self._member.tasks

    def skeleton(self, task: str, adapter: Mapping[str, Shape] | None = None) -> TaskModel:
        """Returns a task's model without weights.

        Args:
            task: The task.
            adapter: The shapes of the adapter's tensors, by name; None is those that the tasks' chains have.

        Raises:
            UnsupportedArchitecture: transformers has no such model.
            CheckpointDamaged: The configuration describes no model.
        """
        shapes = self._adapter if adapter is None else adapter
        return task_model(self.config, self.kind, self.heads[task], self.tokens, self._names, self.trunk, shapes)

    @cached_property
    def routing(self) -> tuple[Router, FeatureExtractor] | None:
        """The router and its eyes, read when they are first needed; None where the member has no router.

        Raises:
            MalformedChainMap: The router is none, or was made for another number of tasks.
        """
        tensors = self._member.router()
        if tensors is None:
            return None
        router, eyes = load_router(tensors, self.config, self.trunk, device=self.device)
        known = len(self._member.chain_map.tasks)
        if router.tasks != known:
            raise MalformedChainMap(
                f"{self._member.source}: the router knows {router.tasks} tasks where there are {known}."
            )
        return router, eyes

    def route(self, inputs: Mapping[str, Tensor], claim: float | None = None) -> Tensor:
        """Returns the task of each row of a batch, [batch] int64, as an index of `tasks`; `UNCLAIMED` where none is.

        Args:
            inputs: The model's inputs, each [batch, ...], on any device.
            claim: The least probability with which a task must claim a row; None needs none.

        Raises:
            InputError: There is no router, and more than one task to choose from or a claim to be made.
        """
        if len(self.tasks) == 1 and claim is None:
            return torch.zeros(len(next(iter(inputs.values()))), dtype=torch.int64)
        if self.routing is None:
            told, way = f"{self._member.source} holds no router", "leave claim out"
            if len(self.tasks) == 1 < len(self._member.chain_map.tasks):
                told = f"Of {self._member.source} one task is loaded, which takes no router"
                way = "load two tasks or more"
            other = "" if claim is None else f", or {way}"
            raise InputError(f"{told}: name the task of every input with task={other}.")
        router, eyes = self.routing
        among = [index for index, task in enumerate(self._member.chain_map.tasks) if task in self.tasks]
        return router.route(eyes.pooled(inputs), among, claim)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, self.dtype) for name, tensor in tensors.items()}


class _TaskModels(Sequence[TaskModel]):
    """The models of the tasks in their order, put together one by one as they are asked for; experts are shared.

    What nobody asks of a task takes no time and no memory. Threads may ask at once.
    """

    def __init__(self, assembler: Assembler) -> None:
        self._assembler = assembler
        self._models: dict[int, TaskModel] = {}
        self._decoded: dict[str, dict[str, Tensor]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._assembler.tasks)

    @overload
    def __getitem__(self, index: int) -> TaskModel: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TaskModel]: ...
    def __getitem__(self, index: int | slice) -> TaskModel | Sequence[TaskModel]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        # Whoever asks may be in inference mode; weights made there could never be trained after `materialize`.
        with self._lock, torch.inference_mode(False):
            if index not in self._models:
                self._models[index] = self._assembler.task_model(self._assembler.tasks[index], self._decoded)
            return self._models[index]


def _head(chain_map: ChainMap, task: str) -> Head:
    if task in chain_map.wordings:
        return Head.worded(chain_map.wordings[task])
    entry = chain_map.heads[task]
    return Head(entry.num_labels, entry.labels, entry.problem_type)


def _holds_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _read_config(member: Member) -> dict[str, Any]:
    config = read_json(member.check(CONFIG_FILE), LIMITS.config_bytes)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointDamaged(f"{member.source}: {CONFIG_FILE} names no model_type. Fetch or build it again.")
    return config
