"""Methods that need more than weights, beside the same recomputed in plain numpy from their papers' formulas."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging import methods
from hf_merge.merging.methods import Gathered, Member, MethodSpec


Floats = NDArray[np.float64]


class _Stream:
    """Members in one buffer, with what was gathered of each; `axis` says how a weight lies."""

    def __init__(self, weights: Sequence[Floats], gathered: Sequence[Floats | None], axis: int = 1) -> None:
        self._weights, self._gathered, self._axis = weights, gathered, axis

    def __iter__(self) -> Iterator[Member]:
        for number, (weights, found) in enumerate(zip(self._weights, self._gathered, strict=True)):
            values = None if found is None else Gathered(torch.tensor(found, dtype=torch.float32), self._axis)
            yield Member(f"t{number}", torch.tensor(weights, dtype=torch.float32), number, values)


def _merged(name: str, base: Floats, members: _Stream, settings: Mapping[str, object] | None = None) -> Floats:
    spec = MethodSpec.resolve(name, settings or {})
    merged: Tensor = methods.get(name).merge(torch.tensor(base, dtype=torch.float32), members, spec.mapping)
    return merged.double().numpy()


def _case(*shape: int, tasks: int = 3, seed: int = 0) -> tuple[Floats, list[Floats], np.random.Generator]:
    random = np.random.default_rng(seed)
    base = random.normal(size=shape)
    return base, [base + 0.1 * random.normal(size=shape) for _ in range(tasks)], random


def _close(found: Floats, expected: Any) -> None:
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


class TestFisher:
    @pytest.mark.parametrize("floor", [1e-6, 1e-2])
    def test_is_the_papers_weighted_mean(self, floor: float) -> None:
        base, weights, random = _case(500)
        fishers = [random.exponential(size=500) ** 4 for _ in weights]
        raised = [fisher + floor for fisher in fishers]
        expected = sum(f * w for f, w in zip(raised, weights, strict=True)) / sum(raised)
        _close(_merged("fisher", base, _Stream(weights, fishers), {"floor": floor}), expected)

    def test_a_weight_on_which_no_task_depends_is_the_mean(self) -> None:
        base, weights, _ = _case(50)
        _close(_merged("fisher", base, _Stream(weights, [np.zeros(50)] * 3)), np.mean(weights, axis=0))

    def test_what_nothing_was_gathered_of_is_the_mean(self) -> None:
        base, weights, _ = _case(50)
        _close(_merged("fisher", base, _Stream(weights, [None] * 3)), np.mean(weights, axis=0))

    def test_a_task_that_alone_depends_on_a_weight_decides_it(self) -> None:
        base, weights, _ = _case(50)
        found = _merged("fisher", base, _Stream(weights, [np.ones(50), np.zeros(50), np.zeros(50)]))
        assert np.abs(found - weights[0]).max() < 1e-5


class TestRegMean:
    def test_bytes_do_not_depend_on_threads(self) -> None:
        base, weights, random = _case(200, 150)
        inputs = [random.normal(size=(40, 150)) for _ in weights]  # fewer rows than inputs: many directions are empty
        products = [each.T @ each for each in inputs]
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(_merged("regmean", base, _Stream(weights, products), {"shrink": 1.0}))
        finally:
            torch.set_num_threads(before)
        assert np.array_equal(found[0], found[1])

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("shrink", [0.0, 0.6, 0.9])
    def test_is_the_papers_least_squares(self, axis: int, shrink: float) -> None:
        base, weights, random = _case(7, 7, seed=axis)  # square, so that only `axis` tells how it lies
        inputs = [random.normal(size=(40, 7)) * random.exponential(size=7) for _ in weights]
        products = [rows.T @ rows / len(rows) for rows in inputs]
        shrunk = [shrink * p + (1 - shrink) * np.diag(np.diag(p)) for p in products]
        as_written = weights if axis == 0 else [each.T for each in weights]  # [in, out]
        solved = np.linalg.solve(sum(shrunk), sum(p @ w for p, w in zip(shrunk, as_written, strict=True)))
        expected = solved if axis == 0 else solved.T
        _close(_merged("regmean", base, _Stream(weights, products, axis), {"shrink": shrink}), expected)

    def test_it_answers_every_tasks_inputs_better_than_the_mean_does(self) -> None:
        base, weights, random = _case(20, 10)
        inputs = [random.normal(size=(200, 10)) @ random.normal(size=(10, 10)) for _ in weights]
        products = [rows.T @ rows / len(rows) for rows in inputs]

        def error(merged: Floats) -> float:
            pairs = zip(inputs, weights, strict=True)
            return float(sum(np.square(rows @ (merged - own).T).mean() for rows, own in pairs))

        merged = _merged("regmean", base, _Stream(weights, products), {"shrink": 1.0})
        assert error(merged) < 0.98 * error(np.mean(weights, axis=0))

    @pytest.mark.parametrize("axis", [0, 1])
    def test_directions_that_only_rounding_filled_leave_the_mean(self, axis: int) -> None:
        base, weights, random = _case(64, 64)
        sizes = 10 ** random.uniform(-2, 2, size=64)
        inputs = [random.normal(size=(12, 64)) * sizes for _ in weights]
        products = [rows.T @ rows for rows in inputs]
        rounded = [product.astype(np.float32).astype(np.float64) for product in products]
        exact, found = (
            _merged("regmean", base, _Stream(weights, each, axis), {"shrink": 1.0}) for each in (products, rounded)
        )
        mean = np.mean(weights, axis=0)
        assert np.linalg.norm(found - mean) < 2 * np.linalg.norm(exact - mean)

    def test_inputs_that_never_vary_leave_the_mean(self) -> None:
        base, weights, _ = _case(4, 6)
        _close(_merged("regmean", base, _Stream(weights, [np.zeros((6, 6))] * 3)), np.mean(weights, axis=0))

    @pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
    def test_what_is_no_linear_layer_is_the_mean(self, shape: tuple[int, ...]) -> None:
        base, weights, _ = _case(*shape)
        _close(_merged("regmean", base, _Stream(weights, [None] * 3)), np.mean(weights, axis=0))
