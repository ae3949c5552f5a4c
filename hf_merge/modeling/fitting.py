"""Coefficients of task vectors fitted by how merged models behave on rows without labels.

Two losses: that answers have little entropy (AdaMerging), and that hidden states and answers are those of each row's
own fine-tune (Expert Merging). What a fine-tune answers is computed once. The models are in evaluation mode: nothing
is dropped, and equal rows and settings give equal coefficients.

Sources: AdaMerging, arXiv 2310.02575, eq. 5; Expert Merging, arXiv 2509.25712, eq. 3 to 7 and the authors' program.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from hf_merge.merging.settings import Settings
from hf_merge.modeling.assembly import TaskModel
from hf_merge.modeling.gathering import differentiable
from hf_merge.modeling.inputs import Batch
from hf_merge.modeling.mixture import Group, Mixture
from hf_merge.modeling.passes import blocks_of


Inputs = Mapping[str, Tensor]
_CLIP = 1.0  # the longest gradient of Expert Merging, over all coefficients
_WEIGHT_DECAY, _FIRST_CYCLE, _CYCLE_GROWTH, _FLOOR = 1e-5, 50, 2, 0.1  # of its AdamW and its cosine restarts


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model gave for some rows.

    Attributes:
        logits: [rows, labels] float32.
        states: The hidden states after the chosen blocks, each [rows, ..., width].
    """

    logits: Tensor
    states: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Pupil:
    """A task on whose rows coefficients are fitted.

    Attributes:
        task: Its name.
        model: Its model, the head set, in float32.
        names: The base's name of every backbone tensor, to the name on the task's own disk.
        trunk: The base's trunk.
        batches: Rows as model inputs, as many together as a loss looks at.
        weight: What its losses are multiplied by.
    """

    task: str
    model: TaskModel
    names: Mapping[str, str]
    trunk: str
    batches: Sequence[Batch]
    weight: float = 1.0

    def see(self, weights: Mapping[str, Tensor], inputs: Inputs, blocks: Sequence[nn.Module]) -> Seen:
        """Returns what the model gives with these backbone weights, by the base's names."""
        self.model.set_backbone(weights, self.trunk)
        with _watching(blocks) as states:
            logits = self.model.answers(inputs).float()
        return Seen(logits, tuple(states))

    def gradients(self, mixture: Mixture, inputs: Inputs, blocks: Sequence[nn.Module], loss: "Loss") -> None:
        """Adds to the mixture the gradients of a loss of what the model gives."""
        weights, fitted = mixture.weights(self.task), mixture.fitted(self.task)
        self.model.set_backbone(weights, self.trunk)
        found = {name: self.model.parameter(self.names[name]) for name in fitted}
        held = {name: place[1] for name, place in found.items() if place is not None}
        with differentiable(held.values()), torch.enable_grad(), _watching(blocks) as states:
            seen = Seen(self.model.answers(inputs).float(), tuple(states))
            value = self.weight * loss(seen)
            if not value.requires_grad or not held:
                return
            gradients = torch.autograd.grad(value, list(held.values()), allow_unused=True)
        given = zip(held, gradients, strict=True)
        mixture.add_gradients(self.task, {name: gradient for name, gradient in given if gradient is not None})


Loss = Callable[[Seen], Tensor]


@dataclass(frozen=True)
class Fit:
    """How a fit is shown and what it has to look at.

    Attributes:
        pupils: The tasks.
        settings: The merge method's hyperparameters.
        advance: Called with the number of pieces of rows done since the last call.
    """

    pupils: Sequence[Pupil]
    settings: Settings
    advance: Callable[[int], object] = field(default=lambda _: None)


def fit_confidence(mixture: Mixture, fit: Fit) -> None:
    """Fits coefficients so that answers have little entropy; tasks with a single number as answer give no loss.

    Source: arXiv 2310.02575, eq. 5: Adam, the mean entropy of every task's batch, all batches of a step together.
    """
    settings = fit.settings
    if not mixture.numbers:
        return  # of one task nothing is merged
    unsure = [pupil for pupil in fit.pupils if pupil.model.num_labels > 1]
    optimiser = torch.optim.Adam(list(mixture.numbers.values()), lr=float(settings["rate"]))
    for step in range(int(settings["steps"])):
        for pupil in unsure:
            batch = pupil.batches[step % len(pupil.batches)]
            pupil.gradients(mixture, batch.inputs, (), lambda seen: entropy(seen.logits))
        _change(mixture, optimiser, 0.0, None)
        fit.advance(1)


def fit_alignment(mixture: Mixture, fit: Fit, own: Callable[[str], Mapping[str, Tensor]]) -> None:
    """Fits coefficients so that hidden states and answers are those of each row's own fine-tune.

    Source: arXiv 2509.25712, eq. 3 to 7. Rows come one at a time, task after task; the optimiser, its schedule and the
    clipping of gradients are those of the authors' program.

    Args:
        mixture: What is fitted.
        fit: The tasks and the settings.
        own: Returns a task's own backbone weights by the base's names; called once for each task.
    """
    merged = [pupil for pupil in fit.pupils if mixture.fitted(pupil.task)]
    lessons = {pupil.task: _lessons(pupil, own(pupil.task), fit.settings) for pupil in merged}
    rows = max((len(part) for part in lessons.values()), default=0)
    turns = [(pupil, row) for row in range(rows) for pupil in merged if row < len(lessons[pupil.task])]
    if not turns:
        return
    rate, together = float(fit.settings["rate"]), int(fit.settings["accumulate"])
    optimiser = torch.optim.AdamW(list(mixture.numbers.values()), lr=rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimiser, _FIRST_CYCLE, _CYCLE_GROWTH, eta_min=_FLOOR * rate
    )
    ahead = chain.from_iterable(repeat(turns, int(fit.settings["epochs"])))
    while step := list(islice(ahead, together)):
        for pupil, row in step:
            lesson = lessons[pupil.task][row]
            pupil.gradients(mixture, lesson.inputs, lesson.blocks, partial(lesson.loss, share=1 / len(step)))
        _change(mixture, optimiser, float(fit.settings["pull"]), _CLIP)
        schedule.step()
        fit.advance(len(step))


def allocate(importance: Mapping[tuple[str, Group], float], budget: float, sharpness: float) -> dict[str, int]:
    """Returns into how many chunks each tensor is cut, by `tensor|members`: its share of all coefficients, floored.

    Args:
        importance: How much weight each tensor of each group moves.
        budget: How many coefficients there are for each of them on average.
        sharpness: The power of the importance that shares are taken by.

    Source: arXiv 2509.25712, section 3.3.
    """
    powers = {key: value**sharpness for key, value in importance.items()}
    whole = sum(powers.values())
    if not whole:
        return dict.fromkeys(map(chunk_key, powers), 1)
    wanted = budget * len(powers)
    return {chunk_key(key): int(wanted * power / whole) for key, power in powers.items()}


def chunk_key(key: tuple[str, Group]) -> str:
    """Returns how a tensor of a group is called among chunk counts."""
    return "|".join((key[0], *key[1]))


def entropy(logits: Tensor) -> Tensor:
    """Returns the mean entropy of answers [rows, labels], in nats."""
    likelihoods = logits.log_softmax(dim=1)
    return -(likelihoods.exp() * likelihoods).sum(dim=1).mean()


def misalignment(seen: Seen, wanted: Seen, mask: Tensor | None, settings: Settings) -> Tensor:
    """Returns how far what a model gave is from what was wanted.

    Of answers it is the cross entropy against the wanted ones at a temperature, times its square; of a single number
    half the squared difference, which is the same for normal distributions. Of hidden states it is the mean squared
    difference over their own mean square, averaged over the blocks, so that it means the same for every model;
    padding counts nowhere.

    Args:
        seen: What the model gave.
        wanted: What its task's fine-tune gave.
        mask: [rows, length], 0 for padding; None where there is none, or where states are no sequences of it.
        settings: `hidden`, `logits` and `temperature`.
    """
    temperature = float(settings["temperature"])
    if wanted.logits.shape[1] == 1:
        answers = 0.5 * (seen.logits - wanted.logits).square().mean()
    else:
        target = (wanted.logits / temperature).softmax(dim=1)
        answers = temperature**2 * functional.cross_entropy(seen.logits / temperature, target)
    total = float(settings["logits"]) * answers
    if float(settings["hidden"]) and wanted.states:
        pairs = zip(seen.states, wanted.states, strict=True)
        gaps = [_relative_gap(*_unpadded(one, other, mask)) for one, other in pairs]
        total = total + float(settings["hidden"]) * torch.stack(gaps).mean()
    return total


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A row, the blocks to watch, and what its task's fine-tune gave for it."""

    inputs: Inputs
    blocks: tuple[nn.Module, ...]
    wanted: Seen
    settings: Settings

    def loss(self, seen: Seen, share: float) -> Tensor:
        """Returns how far what a model gave is from what was wanted, times this row's share of a change."""
        return share * misalignment(seen, self.wanted, self.inputs.get("attention_mask"), self.settings)


def _lessons(pupil: Pupil, own: Mapping[str, Tensor], settings: Settings) -> list[_Lesson]:
    """Returns a lesson for every row of a task."""
    pupil.model.set_backbone(own, pupil.trunk)
    rows = [batch.inputs for batch in pupil.batches]
    found = blocks_of(pupil.model, rows[0]) if float(settings["hidden"]) else ()
    # One in the middle and the last: of which blocks the paper's "small set of layers" consists is left open there.
    blocks = tuple(found[index] for index in sorted({len(found) // 2, len(found) - 1})) if found else ()
    with torch.no_grad():
        return [_Lesson(inputs, blocks, pupil.see(own, inputs, blocks), settings) for inputs in rows]


def _change(mixture: Mixture, optimiser: torch.optim.Optimizer, penalty: float, clip: float | None) -> None:
    """Makes one step of the optimiser from the gradients that the mixture was given."""
    optimiser.zero_grad()
    mixture.pull_back(penalty)
    if clip is not None:
        nn.utils.clip_grad_norm_(list(mixture.numbers.values()), clip)
    optimiser.step()
    mixture.settle()


def _relative_gap(seen: Tensor, wanted: Tensor) -> Tensor:
    return (seen - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)


def _unpadded(seen: Tensor, wanted: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns two states without their padding, where the mask tells it."""
    if mask is None or seen.ndim < 2 or seen[..., 0].numel() != mask.numel():
        return seen, wanted
    real = mask.reshape(-1).bool()
    return seen.reshape(-1, seen.shape[-1])[real], wanted.reshape(-1, wanted.shape[-1])[real]


@contextmanager
def _watching(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Yields a list into which every block puts its hidden states when it has run."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, given: object) -> None:
        states.append(next(leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)))

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
