"""Every merge method as plain numpy computes it from its definition, in float64 and without any of our shortcuts."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hf_merge.merging import methods
from hf_merge.merging.methods import Member, MethodSpec


Array = NDArray[np.float64]
Settings = Mapping[str, float | str]
TOLERANCE = 1e-5  # of the largest weight


def _group(shape: Sequence[int], tasks: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Returns base and members: changes as large as the weights, part of them common, singular values far apart."""
    random = np.random.default_rng(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    fade = 0.9 ** np.arange(columns)
    common = random.standard_normal((rows, columns)) * fade
    changes = [common + random.standard_normal((rows, columns)) * fade for _ in range(tasks)]
    base = random.standard_normal((rows, columns))
    return [(0.05 * each).reshape(shape).astype(np.float32) for each in (base, *(base + each for each in changes))]


class _Members:
    """The members in one buffer that is overwritten, as the caller gives them."""

    def __init__(self, weights: Sequence[NDArray[np.float32]]) -> None:
        self._weights = weights

    def __iter__(self) -> Iterator[Member]:
        buffer = torch.empty(self._weights[0].shape)
        for seed, each in enumerate(self._weights):
            yield Member(f"task-{seed}", buffer.copy_(torch.from_numpy(each)), seed)
        buffer.fill_(torch.nan)


def _agree(name: str, given: Settings, weights: Sequence[NDArray[np.float32]], expected: Array) -> None:
    """Compares a method with what the task vector should be, in units of the largest weight."""
    base, members = torch.from_numpy(weights[0]), _Members(weights[1:])
    spec = MethodSpec.resolve(name, given)
    result = methods.get(name).merge(base, members, spec.mapping).numpy()
    assert result.shape == weights[0].shape
    difference = np.abs(result - (weights[0] + expected.reshape(result.shape))).max()
    assert difference <= TOLERANCE * np.abs(weights[0] + expected.reshape(result.shape)).max()


def _changes(weights: Sequence[NDArray[np.float32]]) -> Array:
    """Returns the task vectors as matrices, [tasks, out, in]."""
    # Subtracted in float32, as everywhere: what rounding takes there is part of the task vector.
    changes = np.stack([each - weights[0] for each in weights[1:]]).astype(np.float64)
    return changes.reshape(len(changes), len(weights[0]), -1)


# Entry by entry


def _largest(vector: Array, skip: int, count: int) -> Array:
    kept = np.zeros_like(vector)
    ranks = np.argsort(-np.abs(vector), kind="stable")[skip : skip + count]
    kept[ranks] = vector[ranks]
    return kept


def _elected(vectors: Array, mean: bool) -> Array:
    agree = np.where(np.sign(vectors) == np.sign(vectors.sum(0)), vectors, 0)
    summed: Array = agree.sum(0) / (np.maximum((agree != 0).sum(0), 1) if mean else 1)
    return summed


def _ties(vectors: Array, density: float, mean: bool) -> Array:
    return _elected(np.stack([_largest(each, 0, int(density * each.size)) for each in vectors]), mean)


def _breadcrumbs(vectors: Array, skip: int, count: int) -> Array:
    summed: Array = np.stack([_largest(each, skip, count) for each in vectors]).sum(0)
    return summed


def _dare(vectors: Array, density: float) -> Array:
    """Returns the thinned sum; the masks are those that the members' seeds draw."""
    draws = [torch.rand(vectors.shape[1], generator=torch.Generator().manual_seed(i)) for i in range(len(vectors))]
    thinned: Array = (vectors * (np.stack([each.numpy() for each in draws]) < density) / density).sum(0)
    return thinned


def _pcb(vectors: Array, density: float, clamp: float, normalised: bool) -> Array:
    tasks, length = vectors.shape
    cut = int(clamp * length)
    ordered = np.sort(np.abs(vectors), axis=1)
    low, high = ordered[:, cut, None], ordered[:, length - 1 - cut, None]
    sizes = np.clip(np.abs(vectors), low, high)
    units = (sizes - low) / (high - low)
    others = (np.sign(vectors) * units if normalised else vectors).sum(0)
    scores = np.exp(tasks * units**2) * np.tanh(vectors * others)
    border = np.sort(scores, axis=1)[:, max(0, length - 1 - int(density * length)), None]
    shares = np.maximum(scores - border, 0) / (scores.max(1, keepdims=True) - border)
    weighted: Array = (np.sign(vectors) * sizes * shares).sum(0) / np.maximum(shares.sum(0), 1e-12)
    return weighted


ENTRIES: dict[str, tuple[str, Settings, Callable[[Array], Array]]] = {
    "average": ("average", {}, lambda v: v.mean(0)),
    "task arithmetic": ("task_arithmetic", {"scale": 0.3}, lambda v: 0.3 * v.sum(0)),
    "ties": ("ties", {}, lambda v: _ties(v, 0.2, mean=True)),
    "ties, sum": ("ties", {"combine": "sum", "scale": 0.3}, lambda v: 0.3 * _ties(v, 0.2, mean=False)),
    "breadcrumbs": ("breadcrumbs", {}, lambda v: 0.2 * _breadcrumbs(v, 7, 180)),
    "dare": ("dare", {}, lambda v: 0.4 * _dare(v, 0.5)),
    "pcb": ("pcb", {}, lambda v: 1.2 * _pcb(v, 0.05, 0.01, normalised=True)),
    "pcb, dense": ("pcb", {"density": 1, "clamp": 0}, lambda v: 1.2 * _pcb(v, 1.0, 0.0, normalised=True)),
    "pcb, stand-alone": (
        "pcb",
        {"density": 0.1, "clamp": 0.0001, "balance": "raw"},
        lambda v: 1.2 * _pcb(v, 0.1, 0.0001, normalised=False),
    ),
}


@pytest.mark.parametrize("tasks", [1, 2, 8])
@pytest.mark.parametrize("case", ENTRIES)
def test_a_method_on_vectors_is_its_definition(case: str, tasks: int) -> None:
    name, given, expected = ENTRIES[case]
    weights = [each.ravel() for each in _group((40, 30), tasks)]
    _agree(name, given, weights, expected(_changes(weights)[:, :, 0]))


# On matrices


def _procrustes(columns: Array) -> Array:
    left, _, right = np.linalg.svd(columns, full_matrices=False)
    nearest: Array = left @ right
    return nearest


def _tsv(changes: Array) -> Array:
    tasks, rows, columns = changes.shape
    kept = max(1, min(rows, columns) // tasks)
    parts = [np.linalg.svd(each, full_matrices=False) for each in changes]
    left = _procrustes(np.hstack([left[:, :kept] for left, _, _ in parts]))
    right = _procrustes(np.hstack([right[:kept].T for _, _, right in parts]))
    merged: Array = left @ np.diag(np.concatenate([values[:kept] for _, values, _ in parts])) @ right.T
    return merged


def _iso_c(changes: Array) -> Array:
    left, values, right = np.linalg.svd(changes.sum(0), full_matrices=False)
    flat: Array = values.mean() * left @ right
    return flat


def _iso_cts(changes: Array, own: int) -> Array:
    left, values, right = np.linalg.svd(changes.sum(0), full_matrices=False)
    common = len(values) - own * len(changes)
    lefts, rights, all_values = [left[:, :common]], [right[:common].T], [values[:common]]
    for change in changes:
        left, values, right = np.linalg.svd(change - lefts[0] @ lefts[0].T @ change, full_matrices=False)
        lefts.append(left[:, :own])
        rights.append(right[:own].T)
        all_values.append(values[:own])
    merged: Array = (
        np.concatenate(all_values).mean() * _procrustes(np.hstack(lefts)) @ _procrustes(np.hstack(rights)).T
    )
    return merged


def _wudi(changes: Array, time: float, density: float) -> Array:
    """Returns the flow by a million steps of gradient descent, the Hessian cut to its leading directions."""
    norms = (changes**2).sum((1, 2))
    hessian: Array = np.stack([each.T @ each / norm for each, norm in zip(changes, norms, strict=True)]).sum(0)
    target: Array = np.stack([each @ each.T @ each / norm for each, norm in zip(changes, norms, strict=True)]).sum(0)
    size = changes.shape[2]
    directions = np.linalg.svd(hessian)[0][:, : int(np.ceil(density * size))]
    best = target @ np.linalg.pinv(hessian, rcond=1e-11, hermitian=True)
    steps = 1 << 20
    left_over = np.linalg.matrix_power(np.eye(size) - hessian * (time / steps), steps)
    moved = (best - changes.sum(0)) @ (np.eye(size) - left_over) @ directions @ directions.T
    flowed: Array = changes.sum(0) + moved
    return flowed


SHAPES = {"tall": (40, 30), "wide": (30, 40), "kernel": (24, 5, 3, 2), "flat": (4, 90)}


@pytest.mark.parametrize("tasks", [1, 2, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts", "wudi"])
def test_a_method_on_matrices_is_its_definition(name: str, shape: str, tasks: int) -> None:
    weights = _group(SHAPES[shape], tasks)
    changes = _changes(weights)
    rank = min(changes.shape[1:])
    own = min(round((rank - rank * 8 // 10) / tasks), rank // tasks)
    expected = {
        "tsv": lambda: _tsv(changes),
        "iso_c": lambda: _iso_c(changes),
        "iso_cts": lambda: _iso_cts(changes, own),
        "wudi": lambda: _wudi(changes, 1300, 0.65),
    }[name]()
    _agree(name, {}, weights, expected)


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_other_settings_of_iso_cts_are_its_definition(common: float) -> None:
    weights = _group((40, 30), 4)
    own = {0.0: 7, 0.5: 4, 1.0: 0}[common]  # 30 / 4 rounds to 8, of which four tasks cannot have each
    _agree("iso_cts", {"common": common, "scale": 0.5}, weights, 0.5 * _iso_cts(_changes(weights), own))


@pytest.mark.parametrize(("time", "density"), [(0.0, 1.0), (3.0, 1.0), (300.0, 0.3), (1e4, 1.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_other_settings_of_wudi_are_its_definition(shape: str, time: float, density: float) -> None:
    weights = _group(SHAPES[shape], 3)
    _agree("wudi", {"time": time, "density": density}, weights, _wudi(_changes(weights), time, density))
