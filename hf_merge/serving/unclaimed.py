"""What the tasks of a member have in common: the merged model that is left for inputs which no task claims.

Nothing is stored for it. Where all tasks use one expert of a component, it is that expert; where they store
differences from one shared expert, it is the shared one; where neither holds, it is the plain mean of the tasks'
experts. Of adapters, whose factors no mean makes sense of, what tasks do not share is left out, and the base is left.
"""

from collections.abc import Mapping
from functools import cached_property
from threading import Lock

from torch import Tensor

from hf_merge.errors import InputError, ModelMismatch
from hf_merge.modeling.adapters import adapter_shapes
from hf_merge.modeling.assembly import CLASSIFIERS, TaskModel
from hf_merge.modeling.features import FeatureModel
from hf_merge.serving.assembling import Assembler
from hf_merge.storing.chain_entries import ChainMap, ComponentEntry
from hf_merge.storing.library import Member


class CommonModel:
    """The merged model of the tasks that were loaded, put together when it is first asked for, decoded throughout."""

    def __init__(self, parts: Assembler, member: Member) -> None:
        """Prepares to read it; nothing is read yet."""
        self._parts, self._member = parts, member
        self._lock = Lock()

    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns a classifier's mean last hidden state over each row's real positions: [batch, width] float32.

        Args:
            inputs: A batch of the model's inputs, each [batch, ...].

        Raises:
            InputError: The model is a language model, or a headless one needs what no fine-tune has.
            MalformedChainMap, ModelMismatch: As when a task's model is put together.
        """
        if self._parts.kind not in CLASSIFIERS:
            raise InputError("A language model has no features; ask it with generate.")
        moved = {name: value.to(self._parts.device) for name, value in inputs.items()}
        with self._lock:
            backbone = self._backbone
        return backbone.pooled(moved).cpu()

    def language(self) -> TaskModel:
        """Returns the language model.

        Raises:
            MalformedChainMap, ModelMismatch: As when a task's model is put together.
        """
        with self._lock:
            return self._language

    @cached_property
    def _backbone(self) -> FeatureModel:
        weights = self._weights()
        try:
            model = FeatureModel(self._parts.config, list(weights), self._parts.trunk, None)
        except ModelMismatch as error:
            raise InputError(
                f"This family gives no features, as its headless model has parts that no fine-tune has: {error} "
                "Ask its tasks with predict, or materialize one of them."
            ) from error
        model.set_tensors(weights)
        model.move_buffers(self._parts.device)
        return model

    @cached_property
    def _language(self) -> TaskModel:
        model = self._parts.skeleton(self._member.tasks[0], adapter={})
        model.move_buffers(self._parts.device)
        model.set_backbone(self._weights(), self._parts.trunk)
        model.require_complete()
        return model

    def _weights(self) -> dict[str, Tensor]:
        """Returns the weights by name, where and as the tasks' models compute; an adapter is folded in."""
        weights: dict[str, Tensor] = {}
        found = common_experts(self._member.chain_map, self._member.tasks)
        for component in self._member.chain_map.components:
            tensors = self._merged(component, found[component.name])
            weights |= {key: tensor.to(self._parts.device, self._parts.dtype) for key, tensor in tensors.items()}
        adapter = adapter_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()})
        if not adapter:
            return weights
        model = self._parts.skeleton(self._member.tasks[0], adapter)
        model.set_backbone(weights, self._parts.trunk)
        model.fold_adapter()
        folded = model.tensors()
        return {name: folded[model.own_name(name, self._parts.trunk)] for name in weights if name not in adapter}

    def _merged(self, component: ComponentEntry, experts: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns the mean of a component's experts, float32; nothing of an adapter that tasks do not share."""
        entries = {entry.id: entry for entry in self._member.experts}
        if len(experts) == 1:
            return self._member.expert(entries[next(iter(experts))])
        if adapter_shapes(dict.fromkeys(component.tensors, ())):
            return {}
        total, tasks = dict[str, Tensor](), sum(experts.values())
        for identifier, count in experts.items():
            for key, tensor in self._member.expert(entries[identifier]).items():
                share = tensor * (count / tasks)
                total[key] = total[key].add_(share) if key in total else share
        return total


def common_experts(chain_map: ChainMap, tasks: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Returns by component the ids of the experts whose mean tasks have in common, and for how many tasks each stands.

    That is one expert wherever one is shared, by chains or as what differences are from.

    Args:
        chain_map: The member's map.
        tasks: The tasks, one at least.
    """
    found: dict[str, dict[str, int]] = {}
    for place, component in enumerate(chain_map.components):
        own = [chain_map.chains[task][place] for task in tasks]
        shared = {chain_map.references.get(identifier, identifier) for identifier in own}
        ids = own if len(shared) > 1 else [*shared]
        found[component.name] = {identifier: ids.count(identifier) for identifier in dict.fromkeys(ids)}
    return found
