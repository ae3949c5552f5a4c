"""The router (Eq. 9): one feature vector in, one task out.

Three fully connected layers (d, 2d, 2d, T) with batch normalisation, leaky ReLU and dropout after the first two,
trained by cross-entropy on standardised features; what Twin-Merging trains and MERGE takes over. Training is full of
chance, so one seed decides it; the trained router is plain tensors.

Source: MERGE, arXiv 2602.06552, Eq. 9; Twin-Merging, arXiv 2406.15479.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_merge.errors import InputError, MalformedChainMap


UNCLAIMED = -1
_DROPOUT, _BATCH = 0.5, 64
_NET = "net."


@dataclass(frozen=True)
class RouterSettings:
    """How the router is trained.

    Attributes:
        epochs: Passes over the training rows.
        learning_rate: Of Adam.
        seed: Decides initial weights, order and dropout.
    """

    epochs: int = 30
    learning_rate: float = 5e-4
    seed: int = 0


class Router:
    """A trained router: features to task scores.

    Attributes:
        width: Length of a feature vector.
        tasks: Number of tasks.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes a router's tensors, as `tensors` gave them.

        Raises:
            MalformedChainMap: A tensor is missing, unknown, of another type or shape, or of impossible values.
        """
        mean, last = tensors.get("mean"), tensors.get("net.8.bias")
        if mean is None or last is None or mean.ndim != 1 or last.ndim != 1:
            raise MalformedChainMap("The router lacks its tensors 'mean' [width] or 'net.8.bias' [tasks].")
        self.width, self.tasks = len(mean), len(last)
        with torch.device("meta"):  # neither memory nor random numbers for weights that come from outside
            self._net = _network(self.width, self.tasks).eval()
            like = torch.empty(self.width)
        weights = {f"{_NET}{name}": value for name, value in self._net.state_dict().items()}
        expected = {"mean": like, "deviation": like, **weights}
        unknown = sorted(tensors.keys() - expected.keys())
        if unknown:
            raise MalformedChainMap(f"The router has no use for its tensor '{unknown[0]}'.")
        for name, pattern in expected.items():
            _require_sound(name, tensors.get(name), pattern)
        self._mean, self._deviation = mean, tensors["deviation"]
        self._net.load_state_dict({name.removeprefix(_NET): tensors[name] for name in weights}, assign=True)

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything the router is, by name."""
        weights = {f"{_NET}{name}": value for name, value in self._net.state_dict().items()}
        return {"mean": self._mean, "deviation": self._deviation, **weights}

    @torch.inference_mode()
    def scores(self, features: Tensor) -> Tensor:
        """Returns the score of every task, [batch, tasks] float32, for features [batch, width].

        Raises:
            InputError: The features are of another width.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise InputError(
                f"The router was trained on features of width {self.width}, not on {list(features.shape)}: "
                "it belongs to another base, or was trained on other layers."
            )
        scores: Tensor = self._net((features.float() - self._mean) / self._deviation)
        return scores

    def route(self, features: Tensor, among: Sequence[int] | None = None, claim: float | None = None) -> Tensor:
        """Returns the task of each row, [batch] int64: the index of the highest score.

        Args:
            features: As for `scores`.
            among: The tasks to choose from; the indices returned then count within these. None takes all.
            claim: The least probability, of all tasks', with which the task of a row must claim it; the task of other
                rows is `UNCLAIMED`. None needs none.

        Raises:
            InputError: The features are of another width.
        """
        scores = self.scores(features)
        chosen = scores if among is None else scores[:, list(among)]
        highest, tasks = chosen.max(dim=1)
        if claim is None:
            return tasks
        # The highest probability is that of the highest score; the softmax runs over tasks that were not loaded too.
        return tasks.where((highest - scores.logsumexp(dim=1)).exp() >= claim, UNCLAIMED)


def fit(
    features: Tensor,
    labels: Tensor,
    tasks: int,
    settings: RouterSettings,
    on_epoch: Callable[[float], object] = lambda _: None,
) -> Router:
    """Returns a router trained to tell tasks apart; torch's global random state neither enters nor changes.

    Args:
        features: Pooled features [rows, width] float32.
        labels: The task of each row, [rows] int64.
        tasks: T.
        settings: How to train.
        on_epoch: Called with the mean loss after each epoch.

    Raises:
        InputError: There are fewer than two rows, which no batch can be normalised by.
    """
    if len(features) < 2:
        raise InputError(f"The router cannot be trained on {len(features)} rows: give it two or more.")
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
    rows = (features - mean) / deviation
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # torch.manual_seed would seed accelerators as well
        net = _network(features.shape[1], tasks).train()
        optimiser = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
        for _ in range(settings.epochs):
            on_epoch(_epoch(net, optimiser, rows, labels))
    weights = {f"{_NET}{name}": value for name, value in net.state_dict().items()}
    return Router({"mean": mean, "deviation": deviation, **weights})


def accuracy_per_task(predicted: Tensor, labels: Tensor, tasks: Sequence[str]) -> dict[str, float]:
    """Returns the share of each task's rows that were routed to it; tasks without rows are left out.

    Args:
        predicted: The task that each row was routed to, [rows] int64.
        labels: The task of each row, [rows] int64.
        tasks: The tasks' names.
    """
    return {
        task: float((predicted[labels == index] == index).float().mean())
        for index, task in enumerate(tasks)
        if bool((labels == index).any())
    }


def _epoch(net: nn.Module, optimiser: torch.optim.Optimizer, rows: Tensor, labels: Tensor) -> float:
    """Runs one epoch in random order and returns the mean loss."""
    total = 0.0
    for batch in _batches(torch.randperm(len(rows))):
        loss = nn.functional.cross_entropy(net(rows[batch]), labels[batch])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        total += float(loss.detach()) * len(batch)
    return total / len(rows)


def _batches(order: Tensor) -> Iterator[Tensor]:
    """Yields batches of row numbers; a last row left alone, which cannot be normalised, joins the batch before it."""
    last = len(order) - 1
    starts = [start for start in range(0, len(order), _BATCH) if start == 0 or start != last]
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:stop]


def _network(width: int, tasks: int) -> nn.Sequential:
    hidden = 2 * width
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(), nn.Dropout(_DROPOUT),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(), nn.Dropout(_DROPOUT),
        nn.Linear(hidden, tasks),
    )  # fmt: skip


def _require_sound(name: str, tensor: Tensor | None, expected: Tensor) -> None:
    if tensor is None or tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise MalformedChainMap(
            f"The router's tensor '{name}' is {found} where {expected.dtype} {list(expected.shape)} is needed."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise MalformedChainMap(f"The router's tensor '{name}' holds NaN or infinity.")
    if (name == "deviation" and bool((tensor <= 0).any())) or (
        name.endswith("running_var") and bool((tensor < 0).any())
    ):
        raise MalformedChainMap(f"The router's tensor '{name}' holds spreads that are not above 0.")
