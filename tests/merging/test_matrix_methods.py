"""Merge methods on singular values: examples worked by hand, and laws that their definitions imply."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import exp

import pytest
import torch
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st
from torch import Tensor

from hf_merge.merging import methods
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Component
from hf_merge.merging.experts import merged_tensors
from hf_merge.merging.group_reader import GroupReader
from hf_merge.merging.methods import Member, MethodSpec, _spectra
from hf_merge.merging.methods._spectra import TaskMatrices, leading, merge_matrices, whitening


SHAPED = [name for name, method in methods.available().items() if method.shaped and method.needs is None]
every_shaped = pytest.mark.parametrize("name", SHAPED)
shapes = st.sampled_from([(2, 2), (7, 4), (4, 7), (3, 13), (13, 2)])


def changed(name: str, given: Mapping[str, object], changes: Sequence[Tensor]) -> Tensor:
    """Returns the task vector that a method makes of some, on a base of zeros."""
    return methods.get(name).merge(
        torch.zeros_like(changes[0]), _Anew(changes), MethodSpec.resolve(name, given).mapping
    )


class _Anew:
    """Members that a method may overwrite: each pass sees them as they were."""

    def __init__(self, changes: Sequence[Tensor]) -> None:
        self._changes = changes

    def __iter__(self) -> Iterator[Member]:
        return (Member(f"task-{index}", each.clone(), index) for index, each in enumerate(self._changes))


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float32))


def noise(shape: Sequence[int], tasks: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(tasks, *shape, generator=generator))


class TestTsv:
    def test_each_task_keeps_its_share_of_the_directions(self) -> None:
        result = changed("tsv", {}, [diagonal(3, 1), diagonal(1, 2)])
        torch.testing.assert_close(result, diagonal(3, 2))

    def test_directions_that_coincide_are_averaged_not_filled_up_at_random(self) -> None:
        result = changed("tsv", {}, [diagonal(3, 1), diagonal(2, 1)])
        torch.testing.assert_close(result, diagonal(2.5, 0))

    def test_more_tasks_than_directions_keep_one_each(self) -> None:
        result = changed("tsv", {}, [diagonal(3, 0), diagonal(0, 2), diagonal(0, 4)])
        torch.testing.assert_close(result, diagonal(3, 3))


class TestIsoC:
    def test_every_singular_value_becomes_the_mean(self) -> None:
        result = changed("iso_c", {"scale": 0.5}, [diagonal(2, -1), diagonal(1, 0)])
        torch.testing.assert_close(result, diagonal(1, -1))

    def test_a_sum_of_low_rank_is_not_thinned_out(self) -> None:
        column, row = torch.randn(6, 1), torch.randn(1, 5)
        torch.testing.assert_close(changed("iso_c", {}, [column @ row]), column @ row)

    @law(deadline=None, max_examples=10)
    @given(shape=shapes, tasks=st.integers(1, 4), seed=st.integers(0, 99))
    def test_the_spectrum_is_flat_and_sums_to_that_of_the_sum(
        self, shape: tuple[int, int], tasks: int, seed: int
    ) -> None:
        changes = noise(shape, tasks, seed)
        values = torch.linalg.svdvals(changed("iso_c", {}, changes))
        mean = torch.linalg.svdvals(sum(changes, torch.zeros(shape))).mean()
        torch.testing.assert_close(values, mean.expand(len(values)), rtol=1e-4, atol=1e-4)


class TestIsoCts:
    def test_tasks_get_directions_of_their_own(self) -> None:
        changes = [diagonal(4, 0, 1, 0), diagonal(0, 4, 0, 2)]
        # Common are the first two; outside them the first task has the third, the second the fourth.
        torch.testing.assert_close(changed("iso_cts", {"common": 0.5}, changes), 2.75 * torch.eye(4))

    @law(deadline=None, max_examples=10)
    @given(shape=shapes, tasks=st.integers(1, 4), seed=st.integers(0, 99))
    def test_with_everything_common_it_is_iso_c(self, shape: tuple[int, int], tasks: int, seed: int) -> None:
        changes = noise(shape, tasks, seed)
        result = changed("iso_cts", {"common": 1}, changes)
        torch.testing.assert_close(result, changed("iso_c", {}, changes), rtol=1e-4, atol=1e-4)

    def test_a_group_of_one_has_nothing_but_what_is_common(self) -> None:
        (only,) = noise((9, 6), 1, 0)
        torch.testing.assert_close(changed("iso_cts", {"common": 0.5}, [only]), changed("iso_c", {}, [only]))


class TestWudi:
    same_input: tuple[Tensor, ...] = (diagonal(2, 0), diagonal(4, 0))  # the minimum is their mean

    def test_the_minimum_of_tasks_that_use_one_input_is_their_mean(self) -> None:
        result = changed("wudi", {"time": 1e9, "density": 1}, self.same_input)
        torch.testing.assert_close(result, diagonal(3, 0))

    def test_the_flow_has_gone_its_fraction_of_the_way(self) -> None:
        result = changed("wudi", {"time": 0.5, "density": 0.5}, self.same_input)
        torch.testing.assert_close(result, diagonal(6 - 3 * (1 - exp(-1)), 0))

    def test_directions_beyond_the_density_stay_as_in_the_sum(self) -> None:
        # H is diag(2 * 0.9, 2 * 0.1): the same two changes, nine tenths of their squares along the first input.
        changes = [diagonal(3, 1), diagonal(3, 1)]
        result = changed("wudi", {"time": 1e9, "density": 0.5}, changes)
        torch.testing.assert_close(result, diagonal(3, 2))

    @pytest.mark.parametrize("rows", [2, 5])
    def test_tasks_of_separate_inputs_are_added(self, rows: int) -> None:
        first, second = torch.zeros(2, rows, 8)
        first[:, :4], second[:, 4:] = torch.randn(2, rows, 4)
        torch.testing.assert_close(changed("wudi", {}, [first, second]), first + second)

    @law(deadline=None, max_examples=10)
    @given(shape=shapes, tasks=st.integers(2, 4), seed=st.integers(0, 99))
    def test_the_longer_it_flows_the_less_it_disturbs(self, shape: tuple[int, int], tasks: int, seed: int) -> None:
        changes = noise(shape, tasks, seed)
        losses = [
            sum(float((((merged - each) @ each.T).norm() / each.norm()) ** 2) for each in changes)
            for merged in (changed("wudi", {"time": time, "density": 1}, changes) for time in (0, 0.3, 3, 1e6))
        ]
        assert all(later <= earlier * (1 + 1e-5) + 1e-5 for earlier, later in pairwise(losses))


class TestLaws:
    @every_shaped
    @law(deadline=None, max_examples=10)
    @given(shape=shapes, tasks=st.integers(1, 4), seed=st.integers(0, 99))
    def test_scale_multiplies_the_result(self, name: str, shape: tuple[int, int], tasks: int, seed: int) -> None:
        changes = noise(shape, tasks, seed)
        torch.testing.assert_close(changed(name, {"scale": 4}, changes), 4 * changed(name, {"scale": 1}, changes))

    @every_shaped
    @law(deadline=None, max_examples=10)
    @given(shape=shapes, tasks=st.integers(1, 4), seed=st.integers(0, 99))
    def test_larger_changes_give_a_larger_change(
        self, name: str, shape: tuple[int, int], tasks: int, seed: int
    ) -> None:
        changes = noise(shape, tasks, seed)
        larger = changed(name, {}, [each * 1024 for each in changes])
        torch.testing.assert_close(larger / 1024, changed(name, {}, changes), rtol=1e-4, atol=1e-4)

    @every_shaped
    @law(deadline=None, max_examples=10)
    @given(shape=shapes, tasks=st.integers(1, 4), seed=st.integers(0, 99))
    def test_renamed_rows_and_columns_stay_where_they_are_and_signs_do_not_matter(
        self, name: str, shape: tuple[int, int], tasks: int, seed: int
    ) -> None:
        changes = noise(shape, tasks, seed)
        generator = torch.Generator().manual_seed(seed)
        rows, columns = (torch.randperm(size, generator=generator) for size in shape)
        signs = torch.randint(0, 2, (shape[0], 1), generator=generator) * 2.0 - 1
        moved = changed(name, {}, [(signs * each)[rows][:, columns] for each in changes])
        expected = (signs * changed(name, {}, changes))[rows][:, columns]
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["tsv", "iso_c"])
    def test_inputs_and_outputs_count_alike(self, name: str) -> None:
        changes = noise((9, 5), 3, 0)
        turned = changed(name, {}, [each.T.contiguous() for each in changes])
        torch.testing.assert_close(turned.T, changed(name, {}, changes), rtol=1e-4, atol=1e-5)

    @every_shaped
    @pytest.mark.parametrize("shape", [(), (6,), (1, 6), (6, 1), (1, 6, 1, 1)])
    def test_what_is_no_matrix_is_averaged(self, name: str, shape: tuple[int, ...]) -> None:
        changes = noise(shape, 3, 0)
        torch.testing.assert_close(changed(name, {"scale": 2}, changes), 2 * torch.stack(changes).mean(0))

    @every_shaped
    def test_a_kernel_is_the_matrix_of_its_outputs(self, name: str) -> None:
        changes = noise((6, 4, 3, 3), 3, 0)
        flat = changed(name, {}, [each.reshape(6, 36) for each in changes])
        assert torch.equal(changed(name, {}, changes), flat.reshape(6, 4, 3, 3))


@every_shaped
def test_bytes_do_not_depend_on_threads_even_where_rounding_is_amplified(name: str) -> None:
    changes = [each * 0.96 ** torch.arange(300) for each in noise((400, 300), 3, 0)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(changed(name, {}, changes).numpy().tobytes())
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


class _Model:
    """A source of one model's tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        self._tensors = tensors

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        flat = self._tensors[name].reshape(-1)
        return flat.clone() if out is None else out.copy_(flat)


@every_shaped
def test_a_component_is_merged_tensor_by_tensor_in_the_tensors_own_shapes(name: str) -> None:
    weights, biases = noise((6, 4), 3, 0), noise((6,), 3, 1)
    models = {f"task-{index}": _Model(w=weights[index], b=biases[index]) for index in range(3)}
    base = _Model(w=torch.zeros(6, 4), b=torch.zeros(6))
    reader = GroupReader(tuple(models), CodecSpec.resolve("full"), {"w": (6, 4), "b": (6,)}, base, models)
    merged = dict(merged_tensors(tuple(models), MethodSpec.resolve(name), Component("mlp", ("w", "b")), reader))
    assert torch.equal(merged["w"].view(6, 4), changed(name, {}, weights))
    assert torch.equal(merged["b"], changed(name, {}, biases))


class TestSpectra:
    def test_rows_are_taken_block_by_block_to_the_same_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (matrix,) = noise((50, 6), 1, 0)
        whole = leading(matrix, 3)
        monkeypatch.setattr(_spectra, "ROWS", 7)
        for part, expected in zip(leading(matrix, 3), whole, strict=True):
            torch.testing.assert_close(part, expected)

    def test_no_square_of_the_rows_is_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        decompose = torch.linalg.eigh

        def watched(matrix: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(matrix))
            values, vectors = decompose(matrix)
            return values, vectors

        monkeypatch.setattr(torch.linalg, "eigh", watched)
        for name in SHAPED:
            changed(name, {}, noise((300, 6), 2, 0))
            changed(name, {}, noise((6, 300), 2, 0))
        assert max(sizes) <= 12

    def test_directions_below_rounding_are_none(self) -> None:
        left, values, right = leading(diagonal(1, 1e-3, 1e-7), 3)
        assert (left.shape, values.shape, right.shape) == ((3, 2), (2,), (3, 2))
        torch.testing.assert_close(values, torch.tensor([1, 1e-3]).double())

    def test_whitened_columns_are_orthonormal(self) -> None:
        (columns,) = noise((9, 4), 1, 0)
        whitened = columns.double() @ whitening(columns)
        torch.testing.assert_close(whitened.T @ whitened, torch.eye(4, dtype=torch.float64))

    def test_the_number_of_threads_is_as_before_even_after_a_failure(self) -> None:
        before = torch.get_num_threads()

        def fail(vectors: TaskMatrices) -> Tensor:
            assert torch.get_num_threads() == 1
            raise RuntimeError(f"{vectors.shape}")

        torch.set_num_threads(2)
        try:
            with pytest.raises(RuntimeError):
                merge_matrices(torch.zeros(2, 2), [], 1.0, fail)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
