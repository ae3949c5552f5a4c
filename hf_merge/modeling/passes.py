"""Forward passes that begin where an earlier one had come to: at a block, with what the block before it gave.

Two chains that share their experts up to some depth compute the same hidden states up to there. What a block's input
depends on is not read off names: one pass is watched, and a tensor counts as used from the moment at which the module
that holds it is first called. What was seen is then proven, boundary by boundary, on the same rows: with every tensor
that is not yet used replaced by NaN the states must stay the same bits, and a pass begun there, with NaN for all that
lies behind, must end in the same bits as a whole one. A boundary that fails is not offered.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hf_merge.modeling.assembly import TaskModel


State: TypeAlias = Any  # what a block gives: a tensor, or a tuple or mapping with tensors in it


@dataclass(frozen=True)
class Boundary:
    """A place in the forward pass, right after a block.

    Attributes:
        block: How many blocks have run.
        before: The parts of the model on which the hidden states depend up to here, by their numbers.
        behind: The parts that are used from here on; a part can be both.
    """

    block: int
    before: tuple[int, ...]
    behind: tuple[int, ...]


class Passes:
    """The forward passes of one task's model, whole or begun at a boundary.

    Attributes:
        blocks: How many blocks the model has that run one after the other; 0 where none were found.
        boundaries: Where a pass can begin, in the order of depth: after the last block before another part is used.
    """

    def __init__(self, model: TaskModel, parts: Sequence[Set[str]], inputs: Mapping[str, Tensor]) -> None:
        """Watches a model whose tensors are all set run over some rows.

        Args:
            model: The model.
            parts: What is exchanged together: tensors, named as the task's checkpoint names them.
            inputs: A batch of its inputs; two rows will do.
        """
        self._model = model
        watched = _watch(model, inputs)
        self._modules = _blocks(model.module, watched)
        self.blocks = len(self._modules)
        uses = [_use(model, self._modules, watched, block) for block in range(1, self.blocks + 1)]
        offered = {use.before(parts): use for use in uses if len(use.before(parts)) < len(parts)}
        self.boundaries = tuple(
            Boundary(use.block, use.before(parts), use.behind(parts)) for use in self._proven(offered.values(), inputs)
        )

    def run(
        self, inputs: Mapping[str, Tensor], *, start: int = 0, state: State = None, record: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, State]]:
        """Returns the logits [batch, num_labels] of a batch, and what was recorded.

        Args:
            inputs: The model's inputs.
            start: The boundary's block to begin at, or 0 for a whole pass.
            state: What was recorded there for the same inputs.
            record: After which blocks to record, each beyond `start`.
        """
        recorded: dict[int, State] = {}
        with ExitStack() as stack:
            for skipped in self._modules[:start]:
                stack.enter_context(_stood_in(skipped, state))
            for block in record:
                handle = self._modules[block - 1].register_forward_hook(_recorder(recorded, block))
                stack.callback(handle.remove)
            return self._model.logits(inputs), recorded

    def _proven(self, seen: Iterable["_Use"], inputs: Mapping[str, Tensor]) -> Iterator["_Use"]:
        """Yields the uses at whose blocks passes over these rows come to the same bits."""
        logits, states = self.run(inputs, record=range(1, self.blocks + 1))
        for use in seen:
            with _unset(self._model, use.used):
                _, blind = self.run(inputs, record=[use.block])
            with _unset(self._model, self._model.slots.keys() - use.inside):
                again, _ = self.run(inputs, start=use.block, state=states[use.block])
            if torch.equal(logits, again) and _same(states[use.block], blind[use.block]):
                yield use


def blocks_of(model: TaskModel, inputs: Mapping[str, Tensor]) -> tuple[nn.Module, ...]:
    """Returns the blocks of a model, all tensors set, that run one after the other; none where none were found."""
    return _blocks(model.module, _watch(model, inputs))


def state_bytes(state: State) -> int:
    """Returns how many bytes the tensors of a state take."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


@dataclass(frozen=True, eq=False)
class _Watched:
    """When each module was called in one pass: the numbers of the events, in order; a module not called has none."""

    entered: Mapping[nn.Module, Sequence[int]]
    left: Mapping[nn.Module, Sequence[int]]


@dataclass(frozen=True)
class _Use:
    """Which tensors were used up to a block.

    Attributes:
        block: How many blocks had run.
        used: The tensors used up to there.
        inside: Those of them that belong to these blocks, so that nothing behind uses them.
    """

    block: int
    used: frozenset[str]
    inside: frozenset[str]

    def before(self, parts: Sequence[Set[str]]) -> tuple[int, ...]:
        """Returns the numbers of the parts with a tensor that was used."""
        return tuple(index for index, part in enumerate(parts) if not self.used.isdisjoint(part))

    def behind(self, parts: Sequence[Set[str]]) -> tuple[int, ...]:
        """Returns the numbers of the parts with a tensor that may be used from there on."""
        return tuple(index for index, part in enumerate(parts) if not part <= self.inside)


def _watch(model: TaskModel, inputs: Mapping[str, Tensor]) -> _Watched:
    entered: dict[nn.Module, list[int]] = {}
    left: dict[nn.Module, list[int]] = {}
    events = 0

    def note(into: dict[nn.Module, list[int]], module: nn.Module) -> None:
        nonlocal events
        events += 1
        into.setdefault(module, []).append(events)

    with ExitStack() as stack:
        for module in model.module.modules():
            before = module.register_forward_pre_hook(lambda module, _: note(entered, module))
            after = module.register_forward_hook(lambda module, *_: note(left, module))
            stack.callback(before.remove)
            stack.callback(after.remove)
        model.logits(inputs)
    for module in model.module.modules():
        # What only holds parameters is never called: its owner uses them, as peft's layers do theirs.
        for held in module.children():
            if isinstance(held, nn.ParameterDict | nn.ParameterList) and module in entered:
                entered[held], left[held] = entered[module], left[module]
    return _Watched(entered, left)


def _blocks(module: nn.Module, watched: _Watched) -> tuple[nn.Module, ...]:
    """Returns the largest list of modules that were called once each, one after the other, in their order."""
    lists = [tuple(held) for held in module.modules() if isinstance(held, nn.ModuleList | nn.Sequential)]
    in_order = [held for held in lists if len(held) > 1 and _one_after_the_other(held, watched)]
    return max(in_order, key=lambda held: sum(len(list(block.modules())) for block in held), default=())


def _one_after_the_other(modules: Sequence[nn.Module], watched: _Watched) -> bool:
    calls = [(watched.entered.get(module, ()), watched.left.get(module, ())) for module in modules]
    if any(len(entered) != 1 or len(left) != 1 for entered, left in calls):
        return False
    times = [time for entered, left in calls for time in (entered[0], left[0])]
    return times == sorted(times)


def _use(model: TaskModel, blocks: Sequence[nn.Module], watched: _Watched, block: int) -> _Use:
    """Returns which tensors were used when so many blocks had run, as the pass was seen.

    A tensor of a module that was never called itself counts as used from the beginning, and by everyone.
    """
    here = watched.left[blocks[block - 1]][0]
    skipped = {module for done in blocks[:block] for module in done.modules()}
    used, inside = set(), set()
    for name, slot in model.slots.items():
        holders = [module for module, _ in slot.places]
        if any(watched.entered.get(module, (0,))[0] < here for module in holders):
            used.add(name)
            if skipped.issuperset(holders):
                inside.add(name)
    return _Use(block, frozenset(used), frozenset(inside))


@contextmanager
def _stood_in(block: nn.Module, state: State) -> Iterator[None]:
    """Lets a block give what was recorded instead of computing; a copy, for what follows may write into it."""
    block.forward = lambda *args, **kwargs: _copied(state)
    try:
        yield
    finally:
        del block.forward


@contextmanager
def _unset(model: TaskModel, kept: Set[str]) -> Iterator[None]:
    """Sets every tensor to NaN that is not among those kept, for a while."""
    given = {name: slot.tensor() for name, slot in model.slots.items() if name not in kept}
    for name, tensor in given.items():
        model.slots[name].fill(torch.full_like(tensor, torch.nan))
    try:
        yield
    finally:
        for name, tensor in given.items():
            model.slots[name].fill(tensor)


def _recorder(recorded: dict[int, State], block: int) -> Callable[..., None]:
    def record(_module: nn.Module, _arguments: object, given: State) -> None:
        recorded[block] = _copied(given)

    return record


def _copied(state: State) -> State:
    return tree_map_only(Tensor, torch.clone, state)


def _same(first: State, second: State) -> bool:
    """Returns whether two states hold the same bits."""
    pairs = list(zip(tree_leaves(first), tree_leaves(second), strict=True))
    return all(torch.equal(one, other) for one, other in pairs if isinstance(one, Tensor))
