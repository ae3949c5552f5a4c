"""EMR-Merging and Twin-Merging beside the same in plain numpy, with all task vectors in memory at once."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hf_merge.errors import NonFiniteWeights
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.peers.emr import elected, emr_merge
from hf_merge.merging.peers.twin import is_matrix, twin_merge
from tests.merging.test_task_vectors import SHAPES, Checkpoint, Memory, checkpoints, sources


SHARED = MethodSpec.resolve("task_arithmetic", {"scale": 0.3})


def task_vectors(base: Checkpoint, tuned: dict[str, Checkpoint]) -> dict[str, NDArray[np.float64]]:
    """Returns all task vectors by tensor, [tasks, n]."""
    return {
        name: np.stack([(tensors[name].double() - base[name].double()).numpy().ravel() for tensors in tuned.values()])
        for name in SHAPES
    }


# EMR-Merging


@pytest.mark.parametrize("tasks", [2, 5])
def test_emr_is_elect_mask_and_rescale(tasks: int) -> None:
    base, tuned = checkpoints(tasks)
    seen: list[int] = []
    found = emr_merge(SHAPES, Memory(base), sources(tuned), seen.append)
    vectors = task_vectors(base, tuned)
    signs = {name: np.sign(part.mean(axis=0)) for name, part in vectors.items()}
    unified = {
        name: signs[name] * np.where(np.sign(part) == signs[name], np.abs(part), 0).max(axis=0)
        for name, part in vectors.items()
    }
    for index, task in enumerate(tuned):
        masks = {name: np.sign(part[index]) == signs[name] for name, part in vectors.items()}
        own = sum(np.abs(part[index]).sum() for part in vectors.values())
        rescaler = own / sum(np.abs(unified[name][masks[name]]).sum() for name in SHAPES)
        assert found.rescalers[task] == pytest.approx(rescaler, rel=1e-6)
        weights = found.weights(task)
        for name, shape in SHAPES.items():
            expected = base[name].double().numpy().ravel() + rescaler * masks[name] * unified[name]
            np.testing.assert_allclose(weights[name].numpy().ravel(), expected, rtol=1e-5, atol=1e-6)
            assert tuple(weights[name].shape) == shape and weights[name].dtype == torch.float32
    assert sum(seen) == sum(np.prod(shape) for shape in SHAPES.values())


def test_emr_of_one_task_is_that_task() -> None:
    base, tuned = checkpoints(1)
    found = emr_merge(SHAPES, Memory(base), sources(tuned)).weights("task0")
    for name in SHAPES:
        torch.testing.assert_close(found[name], tuned["task0"][name], rtol=1e-5, atol=1e-6)


def test_emr_takes_a_dense_vector_and_a_bit_per_task_and_weight() -> None:
    base, tuned = checkpoints(4)
    found = emr_merge(SHAPES, Memory(base), sources(tuned))
    weights = 9 * 4 + 5 * 7 + 7
    assert found.parameters == pytest.approx(weights * (1 + 4 / 32) + 4)
    held = sum(part.nbytes for part in found.unified.values())
    bits = sum(mask.nbytes for masks in found.masks.values() for mask in masks.values())
    assert held == 4 * weights and weights * 4 / 8 <= bits < weights * 4 / 8 + 4 * len(SHAPES)


def test_a_place_at_which_tasks_cancel_out_stays_the_base() -> None:
    vectors = np.array([[1.0, -2.0, 0.0], [-1.0, -1.0, 3.0]], dtype=np.float32)
    assert elected(3, lambda: iter(vectors)).tolist() == [0.0, -2.0, 3.0]


def test_a_fine_tune_that_equals_the_base_comes_back_as_the_base() -> None:
    base, tuned = checkpoints(2)
    tuned["task1"] = {name: tensor.clone() for name, tensor in base.items()}
    found = emr_merge(SHAPES, Memory(base), sources(tuned)).weights("task1")
    assert all(torch.equal(found[name], base[name]) for name in SHAPES)


def test_emr_refuses_weights_that_are_not_finite() -> None:
    base, tuned = checkpoints(2)
    tuned["task1"]["h.0.mlp.b"][3] = torch.nan
    with pytest.raises(NonFiniteWeights, match=r"Task 'task1': tensor 'h.0.mlp.b'"):
        emr_merge(SHAPES, Memory(base), sources(tuned))


# Twin-Merging


@pytest.mark.parametrize(("tasks", "keep"), [(2, 0.5), (4, 0.25)])
def test_twin_is_task_arithmetic_and_truncated_differences(tasks: int, keep: float) -> None:
    base, tuned = checkpoints(tasks)
    found = twin_merge(SHAPES, Memory(base), sources(tuned), SHARED, keep)
    shares = np.random.default_rng(0).dirichlet(np.ones(tasks)).tolist()
    weights, count = found.weights(shares), 0
    for name, shape in SHAPES.items():
        origin = base[name].double().numpy()
        shared = origin + 0.3 * sum(tensors[name].double().numpy() - origin for tensors in tuned.values())
        expected = shared.copy()
        if name != "h.0.mlp.b":
            kept = max(1, round(keep * min(shape)))
            for share, tensors in zip(shares, tuned.values(), strict=True):
                left, values, right = np.linalg.svd(tensors[name].double().numpy() - shared, full_matrices=False)
                expected += share * (left[:, :kept] * values[:kept]) @ right[:kept]
            count += tasks * kept * sum(shape)
        np.testing.assert_allclose(weights[name].numpy(), expected, rtol=1e-4, atol=1e-5)
        count += int(np.prod(shape))
    assert found.parameters == count


def test_twin_at_full_rank_with_the_task_known_has_the_fine_tunes_matrices() -> None:
    base, tuned = checkpoints(3)
    found = twin_merge(SHAPES, Memory(base), sources(tuned), SHARED, 1.0)
    for task, tensors in tuned.items():
        weights = found.weights(found.shares(task))
        for name in ("wte", "h.0.mlp.a"):
            torch.testing.assert_close(weights[name], tensors[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(weights["h.0.mlp.b"], tensors["h.0.mlp.b"], atol=0.01)
        torch.testing.assert_close(weights["h.0.mlp.b"], found.shared["h.0.mlp.b"])


def test_a_matrix_has_two_axes_that_both_hold_something() -> None:
    shapes = {(3, 4): True, (1, 4): False, (4, 1): False, (4,): False, (3, 4, 2, 2): False}
    assert {shape: is_matrix(shape) for shape in shapes} == shapes
