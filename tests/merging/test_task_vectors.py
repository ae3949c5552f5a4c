"""The geometry of task vectors: as plain numpy computes it, and what cannot be merged is refused by name."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.errors import InputError, NonFiniteWeights
from hf_merge.merging import task_vectors
from hf_merge.merging.components import Component
from hf_merge.merging.task_vectors import measure


COMPONENTS = (Component("embedding", ("wte",)), Component("mlp", ("h.0.mlp.a", "h.0.mlp.b")))
SHAPES = {"wte": (9, 4), "h.0.mlp.a": (5, 7), "h.0.mlp.b": (7,)}
Checkpoint = dict[str, Tensor]


class Memory:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        return self.tensors[name] if out is None else out.copy_(self.tensors[name].view(out.shape))


def checkpoints(count: int) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    generator = torch.Generator().manual_seed(0)
    base, *tuned = (
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()} for _ in range(count + 1)
    )
    return base, {f"task{index}": tensors for index, tensors in enumerate(tuned)}


def sources(tuned: Mapping[str, Checkpoint]) -> dict[str, Memory]:
    return {task: Memory(tensors) for task, tensors in tuned.items()}


def naive_gram(component: Component, base: Checkpoint, tuned: Mapping[str, Checkpoint]) -> NDArray[np.float64]:
    rows = [
        np.concatenate([(tensors[name].double() - base[name].double()).numpy().ravel() for name in component.tensors])
        for tensors in tuned.values()
    ]
    gram: NDArray[np.float64] = np.stack(rows) @ np.stack(rows).T
    return gram


@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("chunk", [3, 1 << 18])
def test_grams_are_the_plain_inner_products(tasks: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_vectors, "_CHUNK", chunk)
    base, tuned = checkpoints(tasks)
    geometry = measure(COMPONENTS, SHAPES, Memory(base), sources(tuned))
    expected = {component.name: naive_gram(component, base, tuned) for component in COMPONENTS}
    assert geometry.grams.keys() == expected.keys()
    for name, gram in geometry.grams.items():
        assert gram.dtype == np.float64
        assert gram.shape == (tasks, tasks)
        np.testing.assert_allclose(gram, expected[name], rtol=1e-6)
    total = sum(expected.values())
    np.testing.assert_allclose(geometry.total(), total, rtol=1e-6)
    norm = np.sqrt(sum(float(tensor.double().square().sum()) for tensor in base.values()))
    assert geometry.base_norm == pytest.approx(norm)
    np.testing.assert_allclose(geometry.relative_norms(), np.sqrt(np.diag(total)) / norm, rtol=1e-6)


def test_progress_counts_every_parameter() -> None:
    base, tuned = checkpoints(2)
    done: list[int] = []
    measure(COMPONENTS, SHAPES, Memory(base), sources(tuned), done.append)
    assert done == [36, 35, 7]


def test_a_fine_tune_that_equals_the_base_is_refused() -> None:
    base, tuned = checkpoints(3)
    tuned["task1"] = dict(base)
    with pytest.raises(InputError, match=r"task 'task1' equals the base.*nothing to merge"):
        measure(COMPONENTS, SHAPES, Memory(base), sources(tuned))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("owner", ["task2", "base"])
def test_weights_that_are_not_finite_are_refused(owner: str, value: float) -> None:
    base, tuned = checkpoints(3)
    (base if owner == "base" else tuned[owner])["h.0.mlp.b"][1] = value
    who = "The base" if owner == "base" else "Task 'task2'"
    with pytest.raises(NonFiniteWeights, match=rf"{who}: tensor 'h\.0\.mlp\.b' holds NaN or infinity"):
        measure(COMPONENTS, SHAPES, Memory(base), sources(tuned))


def test_the_gram_of_factors_is_that_of_their_products_and_a_shared_component_has_none() -> None:
    shapes = {"h.0.k.lora_A.weight": (2, 5), "h.0.k.lora_B.weight": (4, 2), "wte": (3, 2)}
    generator = torch.Generator().manual_seed(0)
    tuned = {
        task: {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for task in ("a", "b")
    }
    base = {name: torch.ones(shape) for name, shape in shapes.items()}
    names = tuple(sorted(shapes)[:2])
    components = (Component("base", ("wte",), shared=True), Component("attention", names))
    geometry = measure(components, shapes, Memory(base), sources(tuned))
    updates = torch.stack([(held[names[1]] @ held[names[0]]).view(-1) for held in tuned.values()]).double()
    np.testing.assert_allclose(geometry.grams["attention"], (updates @ updates.T).numpy(), rtol=1e-5)
    assert not geometry.grams["base"].any()
    assert geometry.base_norm == pytest.approx(6**0.5)
