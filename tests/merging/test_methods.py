"""Merge methods: a contract that every registered method keeps, laws, and examples worked by hand."""

import random
from collections.abc import Iterator, Mapping, Sequence
from math import inf, nan
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hf_merge.merging import methods
from hf_merge.merging.methods import Member, MethodSpec, _election, _selection, dare, pcb
from hf_merge.merging.methods._selection import keep_ranks_, magnitude_at, portion


Given = Mapping[str, object]
Floats = NDArray[np.float32]


def _cases() -> Iterator[tuple[str, Given]]:
    """Yields every method with its defaults, with its largest numbers, and with every other word that it knows."""
    for name, method in methods.available().items():
        yield name, {}
        yield name, {each.name: each.high for each in method.hyperparameters if each.high is not None}
        for each in method.hyperparameters:
            yield from ((name, {each.name: choice}) for choice in each.choices if choice != each.default)


# How a group's tensors are given to a method: flat, and where it works on matrices, as these and as kernels too.
CASES = [
    (name, settings, view)
    for name, settings in _cases()
    for view in (("flat", "matrix", "kernel") if methods.get(name).shaped else ("flat",))
]
every_method = pytest.mark.parametrize(("name", "settings"), list(_cases()))
# Other settings than the defaults are tried on matrices in the quick suite, flat and as kernels in the slow one.
every_view = pytest.mark.parametrize(
    ("name", "settings", "view"),
    [
        pytest.param(
            name,
            settings,
            view,
            id=f"{name}-{settings}-{view}",
            marks=pytest.mark.slow if settings and view != "matrix" and methods.get(name).shaped else (),
        )
        for name, settings, view in CASES
    ],
)

LINEAR = [name for name, method in methods.available().items() if method.linear]

# With what a group of one model comes back as it was.
IDENTITIES: list[tuple[str, Given]] = [
    ("average", {}),
    ("task_arithmetic", {"scale": 1}),
    ("ties", {"density": 1, "scale": 1}),
    ("ties", {"density": 1, "scale": 1, "combine": "sum"}),
    ("breadcrumbs", {"density": 1, "gamma": 0, "scale": 1}),
    ("breadcrumbs", {"density": 1, "gamma": 0, "scale": 1, "combine": "mean"}),
    ("breadcrumbs", {"density": 1, "gamma": 0, "scale": 1, "combine": "ties"}),
    ("dare", {"density": 1, "scale": 1}),
    ("dare", {"density": 1, "scale": 1, "combine": "ties", "trim": 1}),
    ("tsv", {"scale": 1}),
    ("wudi", {"scale": 1}),
    ("wudi", {"scale": 1, "density": 1, "time": 1e9}),
]


class _Stream:
    """Members the way the caller gives them: all in one buffer, which is worth nothing afterwards."""

    def __init__(self, weights: Sequence[Tensor], seeds: Sequence[int]) -> None:
        self._weights, self._seeds = weights, seeds

    def __iter__(self) -> Iterator[Member]:
        buffer = torch.empty_like(self._weights[0])
        for seed, each in zip(self._seeds, self._weights, strict=True):
            buffer.copy_(each)
            yield Member(f"task-{seed}", buffer, seed)
        buffer.fill_(torch.nan)


def merged(name: str, settings: Given, base: Tensor, weights: Sequence[Tensor], seeds: Sequence[int] = ()) -> Tensor:
    spec = MethodSpec.resolve(name, settings)
    return methods.get(name).merge(base, _Stream(weights, seeds or range(len(weights))), spec.mapping)


def _noise(length: int, tasks: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(length, generator=generator)
    return base, [base + 0.01 * torch.randn(length, generator=generator) for _ in range(tasks)]


def _seen(group: tuple[Tensor, list[Tensor]], view: str, rows: int) -> tuple[Tensor, list[Tensor]]:
    """Returns a group of flat tensors as matrices of so many rows, or as kernels of that many outputs."""
    shape = {"flat": (-1,), "matrix": (rows, -1), "kernel": (rows, -1, 2, 1)}[view]
    if group[0].numel() == 0:
        shape = (0,) if view == "flat" else (rows, 0)
    base, weights = group
    return base.reshape(shape), [each.reshape(shape) for each in weights]


@st.composite
def groups(draw: st.DrawFn, rows: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Base and members whose entries are multiples of 1/64: their sums are exact, so no order of adding can matter.

    Their length is a multiple of `rows`.
    """
    length, tasks = draw(st.integers(0, 24 // rows)) * rows, draw(st.integers(1, 5))
    entries = st.lists(st.integers(-256, 256), min_size=length, max_size=length)
    base, *others = (torch.tensor(draw(entries), dtype=torch.float32) / 64 for _ in range(tasks + 1))
    return base, others


@st.composite
def views(draw: st.DrawFn, view: str) -> tuple[Tensor, list[Tensor]]:
    """A group as a method is given it: flat, as matrices or as kernels."""
    rows = 1 if view == "flat" else draw(st.integers(1, 4))
    return _seen(draw(groups(rows if view != "kernel" else 2 * rows)), view, rows)


class TestContract:
    @every_view
    @law(deadline=None, max_examples=10)
    @given(data=st.data())
    def test_result_is_new_finite_and_shaped_like_the_base(
        self, name: str, settings: Given, view: str, data: st.DataObject
    ) -> None:
        base, weights = data.draw(views(view))
        before = base.clone()
        result = merged(name, settings, base, weights)
        assert result.shape == base.shape
        assert result.dtype == torch.float32
        assert bool(torch.isfinite(result).all())
        assert torch.equal(base, before)
        assert base.numel() == 0 or result.data_ptr() != base.data_ptr()

    @every_view
    @law(deadline=None, max_examples=10)
    @given(data=st.data(), order=st.randoms(use_true_random=False))
    def test_the_order_of_members_does_not_matter(
        self, name: str, settings: Given, view: str, data: st.DataObject, order: random.Random
    ) -> None:
        base, weights = data.draw(views(view))
        pairs = list(enumerate(weights))
        order.shuffle(pairs)
        shuffled = merged(name, settings, base, [each for _, each in pairs], [seed for seed, _ in pairs])
        torch.testing.assert_close(shuffled, merged(name, settings, base, weights))

    @every_view
    def test_members_equal_to_the_base_give_the_base(self, name: str, settings: Given, view: str) -> None:
        base, _ = _seen(_noise(1000, 0), view, 20)
        result = merged(name, settings, base, [base, base, base])
        if name == "average":
            torch.testing.assert_close(result, base)
        else:
            assert torch.equal(result, base)

    @every_view
    def test_equal_inputs_give_equal_bytes_on_any_number_of_threads(
        self, name: str, settings: Given, view: str
    ) -> None:
        # Large enough that torch would share out the work: eigenvectors of matrices this size differ with threads.
        base, weights = _seen(_noise(40_001 if view == "flat" else 90_000, 2), view, 300)
        before = torch.get_num_threads()
        try:
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(merged(name, settings, base, weights).numpy().tobytes())
        finally:
            torch.set_num_threads(before)
        assert results[0] == results[1]

    @every_method
    def test_scope_is_a_setting_exactly_of_scoped_methods(self, name: str, settings: Given) -> None:
        assert methods.get(name).scoped == ("scope" in MethodSpec.resolve(name, settings).mapping)

    @pytest.mark.parametrize(
        ("name", "settings", "view"),
        [(*each, view) for each in IDENTITIES for name, chosen, view in CASES if each[0] == name and not chosen],
    )
    def test_a_group_of_one_can_come_back_as_it_was(self, name: str, settings: Given, view: str) -> None:
        base, (only,) = _seen(_noise(1000, 1), view, 20)
        torch.testing.assert_close(merged(name, settings, base, [only]), only, rtol=1e-6, atol=1e-6)


class TestRegistry:
    def test_a_new_method_is_one_new_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "first_of_all.py").write_text(
            "from hf_merge.merging.methods import MergeMethod\n"
            "def merge(base, members, settings):\n"
            "    return next(iter(members)).weights.clone()\n"
            "METHOD = MergeMethod('first_of_all', merge, (), 'nowhere', 'The first member.')\n"
        )
        monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
        methods._registry.cache_clear()
        try:
            base, weights = _noise(8, 2)
            assert "first_of_all" in methods.available()
            assert torch.equal(merged("first_of_all", {}, base, weights), weights[0])
        finally:
            methods._registry.cache_clear()

    def test_the_methods_of_the_paper_are_there(self) -> None:
        assert {"average", "task_arithmetic", "ties", "breadcrumbs"} <= set(methods.available())

    def test_the_answer_is_the_callers_to_change(self) -> None:
        methods.available().clear()
        assert methods.available()


class TestAverage:
    def test_is_the_mean(self) -> None:
        weights = [torch.tensor([1.0, -2.0]), torch.tensor([2.0, 4.0]), torch.tensor([6.0, 1.0])]
        assert merged("average", {}, torch.zeros(2), weights).tolist() == [3.0, 1.0]

    def test_of_one_is_that_one_exactly(self) -> None:
        base, (only,) = _noise(1000, 1)
        assert torch.equal(merged("average", {}, base, [only]), only)

    def test_of_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            methods.get("average").merge(torch.zeros(2), [], {})


class TestTaskArithmetic:
    def test_adds_the_scaled_sum_of_the_task_vectors_whatever_the_group_size(self) -> None:
        base = torch.tensor([1.0, 2.0])
        weights = [torch.tensor([2.0, 2.0]), torch.tensor([1.0, 4.0])]
        assert merged("task_arithmetic", {"scale": 0.5}, base, weights).tolist() == [1.5, 3.0]
        assert merged("task_arithmetic", {"scale": 0.5}, base, weights[:1]).tolist() == [1.5, 2.0]

    def test_scale_is_that_of_the_paper_by_default(self) -> None:
        assert MethodSpec.resolve("task_arithmetic").as_json() == {"name": "task_arithmetic", "scale": 0.4}


class TestTies:
    base = torch.ones(5)
    deltas = torch.tensor([[5.0, -1.0, 2.0, 0.5, 0.0], [3.0, -4.0, -1.0, 0.5, 0.0], [-6.0, -2.0, -3.0, 0.1, 0.0]])

    def test_worked_example(self) -> None:
        # Two entries of each stay: [5 . 2 . .], [3 -4 . . .], [-6 . -3 . .]. Signs by sum: +2, -4, -1, none, none.
        weights = [self.base + delta for delta in self.deltas]
        mean = merged("ties", {"density": 0.4}, self.base, weights)
        assert mean.tolist() == [1 + 4, 1 - 4, 1 - 3, 1, 1]
        total = merged("ties", {"density": 0.4, "combine": "sum", "scale": 0.5}, self.base, weights)
        assert total.tolist() == [1 + 4, 1 - 2, 1 - 1.5, 1, 1]

    def test_entries_that_cancel_exactly_leave_the_base(self) -> None:
        weights = [self.base + 2, self.base - 2]
        assert torch.equal(merged("ties", {"density": 1}, self.base, weights), self.base)

    def test_exactly_the_density_stays_by_index_where_magnitudes_are_equal(self) -> None:
        result = merged("ties", {"density": 0.4}, torch.zeros(5), [torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])])
        assert result.tolist() == [1.0, -1.0, 0.0, 0.0, 0.0]

    def test_at_least_one_entry_stays(self) -> None:
        assert merged("ties", {}, torch.zeros(2), [torch.tensor([1.0, 2.0])]).tolist() == [0.0, 2.0]

    def test_more_models_than_can_be_counted_are_refused(self) -> None:
        ones = [torch.ones(2)] * 256
        assert merged("ties", {}, torch.zeros(2), ones[:255]).tolist() == [1.0, 0.0]
        with pytest.raises(ValueError, match="at most 255"):
            merged("ties", {}, torch.zeros(2), ones)

    @law(deadline=None)
    @given(group=groups(), density=st.sampled_from([0.1, 0.2, 0.5, 1.0]), combine=st.sampled_from(["mean", "sum"]))
    def test_agrees_with_the_definition(
        self, group: tuple[Tensor, list[Tensor]], density: float, combine: str
    ) -> None:
        base, weights = group
        kept = max(1, portion(base.numel(), density))
        trimmed = np.array([_ranked(each.numpy() - base.numpy(), 0, kept) for each in weights])
        agree = np.where(np.sign(trimmed) == np.sign(trimmed.sum(0)), trimmed, 0)
        votes = np.maximum(np.count_nonzero(agree, axis=0), 1) if combine == "mean" else 1
        result = merged("ties", {"density": density, "combine": combine}, base, weights)
        np.testing.assert_allclose(result.numpy(), base.numpy() + agree.sum(0) / votes, rtol=1e-6, atol=1e-6)


class TestBreadcrumbs:
    base = torch.zeros(10)
    falling = torch.tensor([10.0, -9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    mask: ClassVar[Given] = {"gamma": 0.1, "density": 0.3, "scale": 1}

    def test_the_largest_are_dropped_first_and_the_density_is_of_all_entries(self) -> None:
        result = merged("breadcrumbs", {**self.mask, "scale": 0.5}, self.base, [self.falling])
        assert result.tolist() == [0, -4.5, 4, 3.5, 0, 0, 0, 0, 0, 0]

    @pytest.mark.parametrize(
        ("combine", "expected"),
        [
            ("sum", [0, -3, 8, 7, 0, 0, 0, 5, 7, 0]),
            ("mean", [0, -1.5, 4, 3.5, 0, 0, 0, 2.5, 3.5, 0]),
            ("ties", [0, -9, 8, 7, 0, 0, 0, 5, 7, 0]),
        ],
    )
    def test_worked_example_of_two_tasks(self, combine: str, expected: list[float]) -> None:
        other = torch.tensor([1.0, 6.0, 1.0, 2.0, 0.0, 0.0, 3.0, 5.0, 7.0, 9.0])  # stay: 6 at 1, 5 at 7, 7 at 8
        result = merged("breadcrumbs", {**self.mask, "combine": combine}, self.base, [self.falling, other])
        assert result.tolist() == expected

    def test_equal_magnitudes_go_by_index_at_both_ends(self) -> None:
        settings = {"gamma": 0.2, "density": 0.4, "scale": 1}
        result = merged("breadcrumbs", settings, torch.zeros(5), [torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])])
        assert result.tolist() == [0.0, -1.0, 1.0, 0.0, 0.0]

    def test_short_tensors_lose_nothing_to_gamma(self) -> None:
        result = merged("breadcrumbs", {"density": 1, "scale": 1}, torch.zeros(99), [torch.ones(99)])
        assert torch.equal(result, torch.ones(99))

    def test_defaults_are_the_authors_starting_point(self) -> None:
        mapping = MethodSpec.resolve("breadcrumbs").mapping
        assert (mapping["scale"], mapping["density"], mapping["gamma"]) == (0.2, 0.15, 0.006)


class TestDare:
    length = 200_000

    def _mask(self, seed: int, **settings: object) -> Tensor:
        """Returns the merge of one task vector of ones."""
        chosen = {"density": 0.25, "scale": 1, **settings}
        return merged("dare", chosen, torch.zeros(self.length), [torch.ones(self.length)], [seed])

    def test_the_expected_vector_is_preserved(self) -> None:
        result = self._mask(3)
        assert set(result.tolist()) == {0.0, 4.0}
        deviation = (3 / self.length) ** 0.5  # an entry has variance (1 - density) / density
        assert abs(result.mean().item() - 1) < 5 * deviation

    def test_a_sum_is_task_arithmetic_in_expectation(self) -> None:
        base, weights = _noise(self.length, 3)
        difference = merged("dare", {}, base, weights) - merged("task_arithmetic", {}, base, weights)
        assert abs(difference.mean().item()) < 5 * (difference.std().item() / self.length**0.5)

    def test_masks_of_two_seeds_are_independent(self) -> None:
        both = torch.stack([self._mask(1), self._mask(2)])
        assert abs(torch.corrcoef(both)[0, 1].item()) < 5 / self.length**0.5

    def test_a_mask_depends_on_the_members_seed_alone(self) -> None:
        zeros, ones = torch.zeros(self.length), torch.ones(self.length)
        beside = merged("dare", {"density": 0.25, "scale": 1}, zeros, [zeros, ones], [9, 3])
        assert torch.equal(beside, self._mask(3))

    def test_the_size_of_blocks_does_not_change_a_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = self._mask(3)
        monkeypatch.setattr(dare, "BLOCK", 1009)
        assert torch.equal(self._mask(3), whole)

    def test_ties_trims_what_survived_and_rescales_it(self) -> None:
        result = self._mask(3, combine="ties", trim=0.1)
        assert result.count_nonzero().item() == self.length // 10
        assert result.max().item() == 4.0

    def test_mean_is_the_sum_over_the_number_of_models(self) -> None:
        base, weights = _noise(100, 4)
        mean = merged("dare", {"combine": "mean", "scale": 1}, base, weights)
        torch.testing.assert_close(mean, merged("dare", {"combine": "sum", "scale": 0.25}, base, weights))


class TestPcb:
    plain: ClassVar[Given] = {"clamp": 0, "scale": 1, "density": 1}

    def test_the_entries_of_highest_score_come_back_as_they_were(self) -> None:
        only = torch.tensor([1.0, 2.0, 3.0, -4.0, 5.0]) / 8
        result = merged("pcb", {**self.plain, "density": 0.4}, torch.zeros(5), [only])
        assert result.tolist() == [0, 0, 0, -4 / 8, 5 / 8]

    @pytest.mark.parametrize("balance", ["normalised", "raw"])
    def test_who_opposes_the_sum_does_not_count(self, balance: str) -> None:
        weights = [torch.tensor([5.0, 0.0, 2.0]), torch.tensor([-1.0, 4.0, 2.0])]
        result = merged("pcb", {**self.plain, "balance": balance}, torch.zeros(3), weights)
        assert result[:2].tolist() == [5.0, 4.0]

    def test_a_group_of_one_loses_its_smallest_entry_at_most(self) -> None:
        base, (only,) = _noise(1000, 1)
        expected = only.clone()
        smallest = (only - base).abs().argmin()
        expected[smallest] = base[smallest]
        torch.testing.assert_close(merged("pcb", self.plain, base, [only]), expected)

    def test_tails_are_cut_off(self) -> None:
        only = torch.arange(1.0, 11.0) / 64
        result = merged("pcb", {**self.plain, "clamp": 0.1, "density": 0.2}, torch.zeros(10), [only])
        assert result.tolist()[-1] == 9 / 64

    def test_scale_multiplies_the_result(self) -> None:
        base, weights = _noise(1000, 3)
        once, twice = (merged("pcb", {"scale": scale}, base, weights) - base for scale in (1, 2))
        torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-6)

    def test_scores_of_many_models_do_not_overflow(self) -> None:
        base, weights = _noise(100, 2)
        assert bool(torch.isfinite(merged("pcb", {}, base, weights * 400)).all())

    @pytest.mark.parametrize("low", [None, -inf, inf])
    def test_a_sample_changes_nothing_however_it_misleads(
        self, low: float | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, weights = _noise(2 * _selection.FEW, 3)
        sampled = merged("pcb", {}, base, weights)
        if low is None:
            monkeypatch.setattr(pcb, "FEW", base.numel())
        else:
            monkeypatch.setattr(pcb, "bracket", lambda *_: (low, inf))
        assert torch.equal(sampled, merged("pcb", {}, base, weights))

    def test_what_is_not_a_number_is_not_hidden(self) -> None:
        base, weights = _noise(10, 2)
        weights[0][3] = nan
        assert bool(merged("pcb", {}, base, weights).isnan().all())

    def test_a_single_entry_ranks_nowhere(self) -> None:
        assert merged("pcb", {}, torch.zeros(1), [torch.ones(1)]).tolist() == [0.0]

    def test_defaults_are_those_of_the_authors_vision_program(self) -> None:
        mapping = MethodSpec.resolve("pcb").mapping
        assert (mapping["density"], mapping["clamp"], mapping["scale"]) == (0.05, 0.01, 1.2)


def _ranked(values: Floats, skip: int, count: int) -> Floats:
    """Returns the definition of `keep_ranks_`, by sorting."""
    order = np.argsort(-np.abs(values), kind="stable")[skip : skip + count]
    kept = np.zeros_like(values)
    kept[order] = values[order]
    return kept


class TestSelection:
    @law(deadline=None)
    @given(
        values=st.lists(st.one_of(st.integers(-3, 3), st.floats(-5, 5, width=32)), max_size=40),
        skip=st.integers(0, 45),
        count=st.integers(0, 45),
    )
    def test_keeps_exactly_the_ranks_asked_for(self, values: list[float], skip: int, count: int) -> None:
        expected = _ranked(np.array(values, dtype=np.float32), skip, count)
        assert keep_ranks_(torch.tensor(values, dtype=torch.float32), skip, count).tolist() == expected.tolist()

    @pytest.mark.parametrize("ranks", [(0, 60_000), (1800, 45_000), (0, 1), (7, 299_990), (299_999, 5)])
    @pytest.mark.parametrize("kind", ["smooth", "few values", "mostly zero", "the sample misleads"])
    def test_long_vectors_are_exact_whatever_the_sample_says(self, kind: str, ranks: tuple[int, int]) -> None:
        values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)
        if kind == "few values":
            values = np.round(values * 8).astype(np.float32) / np.float32(8)
        elif kind == "mostly zero":
            values[np.abs(values) < 1.5] = 0
        elif kind == "the sample misleads":
            values[:: 300_000 // _selection._SAMPLE | 1] *= 1000
        kept = keep_ranks_(torch.from_numpy(values.copy()), *ranks)
        assert np.array_equal(kept.numpy(), _ranked(values, *ranks))

    @law(deadline=None)
    @given(values=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), data=st.data())
    def test_the_magnitude_at_a_rank_is_that_of_sorting(self, values: list[float], data: st.DataObject) -> None:
        rank = data.draw(st.integers(1, len(values)))
        entries = np.array(values, dtype=np.float32)
        assert magnitude_at(entries, rank) == np.sort(np.abs(entries))[-rank]

    def test_subnormal_magnitudes_are_ranked(self) -> None:
        kept = keep_ranks_(torch.tensor([1e-45, 3e-45, -4e-45, 0.0]), 0, 2)
        assert kept.count_nonzero().item() == 2
        assert kept[0].item() == 0

    def test_what_is_not_finite_does_not_hang(self) -> None:
        assert keep_ranks_(torch.tensor([torch.nan, 1.0, torch.nan]), 0, 2).shape == (3,)

    @pytest.mark.parametrize(
        ("length", "fraction", "expected"), [(100, 0.29, 29), (10, 0.7, 7), (1000, 1e-05, 0), (166, 0.006, 0)]
    )
    def test_portions_are_those_of_the_decimal_written(self, length: int, fraction: float, expected: int) -> None:
        assert portion(length, fraction) == expected


def test_election_does_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    base, weights = _noise(1000, 3)
    whole = merged("ties", {}, base, weights)
    monkeypatch.setattr(_election, "BLOCK", 7)
    assert torch.equal(merged("ties", {}, base, weights), whole)


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_method_is_the_sum_of_task_vectors_with_its_weights(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    base, *rows = torch.randn(4, 50, generator=generator)
    spec = MethodSpec.resolve(name)
    merged = methods.get(name).merge(base, _Stream(rows, range(3)), spec.mapping)
    weights = methods.get(name).weights(3, spec.mapping)
    summed = base + sum((weight * (row - base) for weight, row in zip(weights, rows, strict=True)), torch.zeros(50))
    torch.testing.assert_close(merged, summed)


def test_a_method_that_is_not_linear_has_no_weights() -> None:
    with pytest.raises(ValueError, match="no weighted sum"):
        methods.get("ties").weights(2, MethodSpec.resolve("ties").mapping)
