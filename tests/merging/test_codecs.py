"""Codecs: a contract that every registered codec keeps, and the laws of 8-bit compression."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st
from torch import Tensor

from hf_merge.errors import NonFiniteWeights, UntrustedContentError
from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec, int8
from hf_merge.merging.settings import Settings


Given = Mapping[str, object]
CODECS = {"delta", "full", "int4", "int8", "lowrank", "rows", "sign", "ternary"}
# The share of the squared norm of normally distributed weights that may be lost: of many, and of a few.
LOST = {
    "delta": (0.13, 0.6), "full": (0, 0), "int4": (0.013, 0.05), "int8": (2e-4, 2e-4),
    "lowrank": (0.97, 0.01), "rows": (0.92, 0.98), "sign": (0.37, 0.8), "ternary": (0.2, 0.7),
}  # fmt: skip
NAME = "encoder.layer.0.attention.self.query.weight"
SHAPES = [(), (0,), (5,), (1, 7), (7, 1), (2, 2), (3, 4), (0, 4), (4, 0), (6, 2), (3, 2, 5, 5), (300, 700)]


def _cases() -> Iterator[tuple[str, Given]]:
    """Yields every codec with its defaults, and with every other word that one of its settings may be."""
    for name, codec in codecs.available().items():
        yield name, {}
        for each in codec.hyperparameters:
            yield from ((name, {each.name: choice}) for choice in each.choices if choice != each.default)


CASES = list(_cases())
every_codec = pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{chosen}" for name, chosen in CASES])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
both_units = pytest.mark.parametrize("unit", ["tensor", "row"])


def settings_of(codec: str = "int8", /, **settings: object) -> Settings:
    return CodecSpec.resolve(codec, settings).mapping


def encoded(
    weight: Tensor, source_range: Tensor | None = None, name: str = NAME, **settings: object
) -> dict[str, Tensor]:
    return int8.encode(name, weight, source_range, settings_of(**settings))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """A matrix that can be quantised by tensor and by row: any finite values, constant rows among them."""
    rows, columns = draw(st.integers(2, 5)), draw(st.integers(4, 8))
    entries = st.floats(-(2.0**126), 2.0**126, width=32)
    row = st.one_of(
        st.lists(entries, min_size=columns, max_size=columns),
        entries.map(lambda value: [value] * columns),
        st.lists(st.floats(-1, 1, width=32), min_size=columns, max_size=columns),
    )
    return torch.tensor([draw(row) for _ in range(rows)], dtype=torch.float32)


class TestContract:
    @every_codec
    @every_shape
    def test_decoding_gives_the_shape_and_about_the_values_back(
        self, name: str, settings: Given, shape: tuple[int, ...]
    ) -> None:
        weight = _noise(*shape)
        before, chosen, codec = weight.clone(), settings_of(name, **settings), codecs.get(name)
        stored = codec.encode(NAME, weight, None, chosen)
        restored = codec.decode(NAME, stored)
        assert torch.equal(weight, before)
        assert restored.shape == weight.shape
        assert restored.dtype == torch.float32
        many, few = LOST[name]
        lost = float((restored - weight).square().sum())
        assert lost <= (many if weight.numel() > 1000 else few) * float(weight.square().sum())

    @every_codec
    @every_shape
    def test_shape_alone_tells_what_is_quantised_and_only_what_becomes_cheaper(
        self, name: str, settings: Given, shape: tuple[int, ...]
    ) -> None:
        chosen, codec = settings_of(name, **settings), codecs.get(name)
        stored = codec.encode(NAME, _noise(*shape), None, chosen)
        quantised = codec.quantises(NAME, shape, chosen)
        assert quantised == (stored[NAME].dtype == torch.uint8)
        assert set(stored) == {NAME, *(NAME + part for part in codec.parts if quantised)}
        assert codec.fault(NAME, stored) is None
        whole = codec.cost(shape, False, chosen)
        assert whole == np.prod(shape)
        assert not quantised or codec.cost(shape, True, chosen) < whole

    @every_codec
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("shape", [(4,), (8, 9)], ids=str)
    def test_weights_that_are_not_finite_are_refused_by_name(
        self, name: str, settings: Given, bad: float, shape: tuple[int, ...]
    ) -> None:
        weight = torch.ones(shape)
        weight.view(-1)[-1] = bad
        with pytest.raises(NonFiniteWeights, match=r"layer\.0\.attention\.self\.query\.weight"):
            codecs.get(name).encode(NAME, weight, None, settings_of(name, **settings))

    @every_codec
    def test_equal_weights_give_equal_bytes(self, name: str, settings: Given) -> None:
        first, second = (
            codecs.get(name).encode(NAME, _noise(300, 700), None, settings_of(name, **settings)) for _ in range(2)
        )
        assert {key: each.numpy().tobytes() for key, each in first.items()} == {
            key: each.numpy().tobytes() for key, each in second.items()
        }


class TestRegistry:
    def test_a_new_codec_is_one_new_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "again.py").write_text(
            "from dataclasses import replace\n"
            "from hf_merge.merging.codecs.full import CODEC as FULL\n"
            "CODEC = replace(FULL, name='again')\n"
        )
        monkeypatch.setattr(codecs, "__path__", [*codecs.__path__, str(tmp_path)])
        codecs._registry.cache_clear()
        try:
            assert set(codecs.available()) == {"again", *CODECS}
            assert CodecSpec.resolve("again").as_json() == {"name": "again"}
        finally:
            codecs._registry.cache_clear()


class TestInt8:
    def test_worked_example(self) -> None:
        weight = torch.tensor([[-1.0, 0.0], [1.0, 4.0], [0.01, -0.3]])
        stored = encoded(weight)
        assert stored[f"{NAME}.scale"].item() == np.float32(5 / 255)
        assert stored[f"{NAME}.zero_point"].item() == 51
        assert stored[NAME].tolist() == [[0, 51], [102, 255], [52, 36]]  # 0.51 and -15.3 steps from zero
        torch.testing.assert_close(int8.decode(NAME, stored)[:2], weight[:2], rtol=1e-6, atol=1e-6)

    def test_dtypes_and_shapes_are_those_of_the_format(self) -> None:
        for unit, shape in (("tensor", ()), ("row", (6,))):
            stored = encoded(_noise(6, 4, 3), unit=unit)
            assert (stored[NAME].dtype, stored[NAME].shape) == (torch.uint8, (6, 4, 3))
            assert (stored[f"{NAME}.scale"].dtype, stored[f"{NAME}.scale"].shape) == (torch.float32, shape)
            assert (stored[f"{NAME}.zero_point"].dtype, stored[f"{NAME}.zero_point"].shape) == (torch.int32, shape)

    @both_units
    @law(deadline=None, max_examples=50)
    @given(weight=matrices())
    def test_no_weight_is_off_by_more_than_half_a_step(self, unit: str, weight: Tensor) -> None:
        stored = encoded(weight, unit=unit)
        scale = stored[f"{NAME}.scale"].double()
        error = (int8.decode(NAME, stored).double() - weight.double()).abs()
        assert bool((error <= scale.view(-1, 1) * (0.5 + 1e-4)).all())

    @both_units
    @law(deadline=None, max_examples=50)
    @given(weight=matrices())
    def test_codes_follow_the_definition_bit_for_bit(self, unit: str, weight: Tensor) -> None:
        stored = encoded(weight, unit=unit)
        scale = stored[f"{NAME}.scale"].numpy().reshape(-1, 1)
        zero = stored[f"{NAME}.zero_point"].numpy().reshape(-1, 1)
        codes = np.clip(np.rint(weight.numpy() / scale) + zero, 0, 255)
        assert np.array_equal(stored[NAME].numpy(), codes)
        values = stored[NAME].to(torch.float32).sub_(torch.from_numpy(zero)).mul_(torch.from_numpy(scale))
        assert int8.decode(NAME, stored).numpy().tobytes() == values.numpy().tobytes()

    @both_units
    @pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 0.1, -0.3, 3e38, -3e38, 1e-40, -1e-45])
    def test_a_constant_is_exact(self, unit: str, value: float) -> None:
        weight = torch.full((4, 5), value)
        stored = encoded(weight, unit=unit)
        assert stored[NAME].dtype == torch.uint8
        assert torch.equal(int8.decode(NAME, stored), weight)

    @both_units
    def test_zero_stays_zero(self, unit: str) -> None:
        weight = _noise(8, 16)
        weight[:, 3] = 0
        assert not int8.decode(NAME, encoded(weight, unit=unit))[:, 3].any()

    @both_units
    def test_neither_blocks_nor_strides_change_the_bytes(self, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
        weight = _noise(40, 30)
        whole = encoded(weight, unit=unit)
        monkeypatch.setattr(int8, "_BLOCK", 7)
        for same in (weight, weight.T.contiguous().T):
            again = encoded(same, unit=unit)
            assert all(torch.equal(again[key], whole[key]) for key in whole)
            assert torch.equal(int8.decode(NAME, again), int8.decode(NAME, whole))

    @both_units
    @pytest.mark.parametrize("shape", [(6, 8), (6, 4, 3)], ids=str)
    def test_decodes_where_the_tensors_are(self, unit: str, shape: tuple[int, ...]) -> None:
        stored = {key: each.to("meta") for key, each in encoded(_noise(*shape), unit=unit).items()}
        weight = int8.decode(NAME, stored)
        assert (weight.device.type, weight.shape, weight.dtype) == ("meta", shape, torch.float32)

    @pytest.mark.parametrize(
        "change",
        [
            {"scale": torch.ones(5)},
            {"scale": torch.ones(5), "zero_point": torch.zeros(5, dtype=torch.int32)},
            {"scale": torch.ones(7), "zero_point": torch.zeros(7, dtype=torch.int32)},
            {"scale": torch.ones(6, 1), "zero_point": torch.zeros(6, 1, dtype=torch.int32)},
            {"scale": torch.tensor(1.0, dtype=torch.float64)},
            {"zero_point": torch.tensor(1.0)},
        ],
        ids=str,
    )
    def test_a_grid_that_does_not_fit_is_refused_instead_of_leaving_weights_undefined(
        self, change: dict[str, Tensor]
    ) -> None:
        stored = encoded(_noise(6, 8)) | {f"{NAME}.{key}": each for key, each in change.items()}
        with pytest.raises(UntrustedContentError, match="both scalar or one per row"):
            int8.decode(NAME, stored)

    def test_rows_are_finer_than_tensors(self) -> None:
        weight = _noise(8, 64) * torch.logspace(-2, 0, 8).view(-1, 1)
        errors = [(int8.decode(NAME, encoded(weight, unit=unit)) - weight).norm().item() for unit in ("row", "tensor")]
        assert errors[0] < errors[1] / 1.5

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            (NAME, (384,)),
            (NAME, (384, 1)),
            (NAME, (1, 384)),
            (NAME, ()),
            ("embeddings.cls_token", (1, 1, 384)),
            ("vision_model.embeddings.position_embedding.weight", (50, 768)),
        ],
    )
    def test_vectors_and_bare_position_parameters_stay_whole_under_every_policy(
        self, name: str, shape: tuple[int, ...]
    ) -> None:
        for policy in ("criterion", "always"):
            assert not int8.quantises(name, shape, settings_of(policy=policy))
            weight = _noise(*shape)
            assert torch.equal(encoded(weight, name=name, policy=policy)[name], weight)

    def test_rows_too_short_to_pay_for_their_metadata_stay_whole(self) -> None:
        assert int8.quantises(NAME, (9, 3), settings_of(unit="row"))
        assert not int8.quantises(NAME, (9, 2), settings_of(unit="row"))
        assert int8.quantises(NAME, (9, 2), settings_of(unit="tensor"))

    @pytest.mark.parametrize(("unit", "expected"), [("tensor", 300 / 4 + 2), ("row", 300 / 4 + 2 * 10)])
    def test_cost_is_a_quarter_and_two_per_unit(self, unit: str, expected: float) -> None:
        assert int8.cost((10, 30), True, settings_of(unit=unit)) == expected
        assert int8.cost((10, 30), False, settings_of(unit=unit)) == 300


class TestCriterion:
    weight = _noise(6, 8)

    @staticmethod
    def _range(weight: Tensor, unit: str) -> Tensor:
        return (weight.amax() - weight.amin() if unit == "tensor" else weight.amax(1) - weight.amin(1)).double()

    @both_units
    @pytest.mark.parametrize(
        ("factor", "quantised"), [(1.0, True), (1 - 5e-7, True), (2.0, True), (1 - 2e-6, False), (0.5, False)]
    )
    def test_a_range_may_not_grow_beyond_rounding(self, unit: str, factor: float, quantised: bool) -> None:
        stored = encoded(self.weight, self._range(self.weight, unit) * factor, policy="criterion", unit=unit)
        assert (stored[NAME].dtype == torch.uint8) == quantised
        assert quantised or stored[NAME] is self.weight

    def test_one_row_that_grew_keeps_the_whole_tensor(self) -> None:
        ranges = self._range(self.weight, "row")
        ranges[2] *= 0.9
        assert encoded(self.weight, ranges, policy="criterion", unit="row")[NAME].dtype == torch.float32

    @both_units
    def test_it_is_not_asked_unless_the_recipe_wants_it(self, unit: str) -> None:
        assert encoded(self.weight, self._range(self.weight, unit) / 2, unit=unit)[NAME].dtype == torch.uint8

    @both_units
    def test_policies_overrule_it(self, unit: str) -> None:
        too_small = self._range(self.weight, unit) / 2
        assert encoded(self.weight, too_small, unit=unit, policy="always")[NAME].dtype == torch.uint8
        assert encoded(self.weight, None, unit=unit, policy="never")[NAME].dtype == torch.float32

    @law(deadline=None, max_examples=25)
    @given(st.lists(matrices(), min_size=2, max_size=5))
    def test_an_average_always_passes(self, members: list[Tensor]) -> None:
        shape = min(tuple(each.shape) for each in members)
        sources = [each[: shape[0], :4].div(8) for each in members]  # the sum of five must not overflow
        mean = torch.stack(sources).sum(0).div_(len(sources))
        ranges = torch.stack([self._range(each.double(), "tensor") for each in sources]).mean()
        if 0 < ranges < 1e-37:
            return  # subnormal means are rounded by more than the tolerance
        assert encoded(mean, ranges, policy="criterion", unit="tensor")[NAME].dtype == torch.uint8

    def test_ranges_of_other_units_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"source_range is \(\) where the units are \(6,\)"):
            encoded(self.weight, torch.tensor(1.0), policy="criterion", unit="row")


INT4 = codecs.get("int4")


def fours(weight: Tensor) -> dict[str, Tensor]:
    return INT4.encode(NAME, weight, None, {})


@st.composite
def rows_of_any_values(draw: st.DrawFn) -> Tensor:
    """A matrix of any finite values: constant rows, huge ranges, denormals, rows of any length modulo two."""
    rows, columns = draw(st.integers(2, 5)), draw(st.integers(9, 16))
    entries = st.floats(-(2.0**126), 2.0**126, width=32)
    row = st.one_of(
        st.lists(entries, min_size=columns, max_size=columns),
        entries.map(lambda value: [value] * columns),
        st.lists(st.floats(-(2.0**-133), 2.0**-133, width=32), min_size=columns, max_size=columns),
        st.lists(st.floats(-1, 1, width=32), min_size=columns, max_size=columns),
    )
    return torch.tensor([draw(row) for _ in range(rows)], dtype=torch.float32)


class TestInt4:
    def test_worked_example(self) -> None:
        weight = torch.tensor([[7.0, -7.0, 3.0] * 3, [0.0] * 9])
        stored = fours(weight)
        assert stored[NAME].shape == (2, 5) and stored[NAME].dtype == torch.uint8
        assert stored[f"{NAME}.scale"].tolist() == [1.0, 1.0]
        assert stored[f"{NAME}.shape"].tolist() == [2, 9]
        assert stored[NAME][0].tolist() == [15 + (1 << 4), 11 + (15 << 4), 1 + (11 << 4), 15 + (1 << 4), 11 + (8 << 4)]
        assert torch.equal(INT4.decode(NAME, stored), weight)

    @pytest.mark.parametrize("seed", range(3))
    def test_each_weight_is_at_its_nearest_level_at_the_scale_that_is_stored(self, seed: int) -> None:
        weight = torch.randn(64, 200, generator=torch.Generator().manual_seed(seed))
        stored = fours(weight)
        scales = stored[f"{NAME}.scale"].double()[:, None]
        exact = weight.double() / scales
        nearest = exact.round().clamp(-8, 7)
        off, least = (
            (each * scales - weight.double()).abs() for each in (INT4.decode(NAME, stored) / scales, nearest)
        )
        assert bool((off <= least + 1e-6 * scales).all())

    @law(deadline=None)
    @given(rows_of_any_values())
    def test_a_row_is_no_further_off_than_on_the_grid_without_clipping(self, weight: Tensor) -> None:
        restored = INT4.decode(NAME, fours(weight)).double()
        step = weight.double().abs().amax(dim=1, keepdim=True) / 7
        plain = ((weight.double() - restored) ** 2).sum(dim=1)
        # The grid without clipping is among those tried, and the best of all is taken.
        bound = ((weight.double() / step.clamp_min(1e-300)).round() * step - weight.double()).square().sum(dim=1)
        # What float32 rounds of a scale and of a product, and the smallest scale there is.
        rounding = (7 * step).squeeze(1) * 2.0**-21 + 4 * torch.finfo(torch.float32).tiny
        assert bool((plain <= bound * (1 + 1e-5) + weight.shape[1] * rounding**2).all())

    @law(deadline=None)
    @given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**31))
    def test_whole_numbers_of_any_length_come_back(self, rows: int, columns: int, seed: int) -> None:
        numbers = torch.randint(-7, 8, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
        numbers[:, 0] = 7
        stored = fours(numbers)
        torch.testing.assert_close(INT4.decode(NAME, stored), numbers)
        if stored[NAME].dtype == torch.uint8:
            assert stored[NAME].shape == (rows, -(-columns // 2))

    def test_the_scale_is_better_than_the_largest_magnitude_would_give(self) -> None:
        weight = _noise(64, 256)
        restored = INT4.decode(NAME, fours(weight))
        step = weight.abs().amax(dim=1, keepdim=True) / 7
        guessed = (weight / step).round().clamp(-8, 7) * step
        assert float((weight - restored).square().sum()) < 0.9 * float((weight - guessed).square().sum())

    @pytest.mark.parametrize("shape", [(6, 40), (5, 33), (3, 2, 5, 5)], ids=str)
    def test_cost_is_the_bytes(self, shape: tuple[int, ...]) -> None:
        stored = fours(_noise(*shape))
        held = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        assert INT4.cost(shape, True, {}) == held / 4

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({NAME: None}, "is missing"),
            ({f"{NAME}.scale": None}, "is uint8 without scale or shape"),
            ({f"{NAME}.shape": torch.tensor([6, 41], dtype=torch.int32)}, "of shape \\[6, 41\\] is packed into"),
            ({f"{NAME}.shape": torch.tensor([6, -4], dtype=torch.int32)}, "is packed into"),
            ({f"{NAME}.shape": torch.tensor([240], dtype=torch.int32)}, "two axes or more"),
            ({f"{NAME}.shape": torch.tensor([6, 40])}, "int32 shape"),
            ({f"{NAME}.scale": torch.zeros(6)}, "not finite and above 0"),
            ({f"{NAME}.scale": torch.ones(5)}, "is packed into"),
            ({NAME: torch.zeros(6, 40, dtype=torch.int8)}, "is torch.int8, where float32"),
        ],
    )
    def test_a_damaged_tensor_is_told(self, change: dict[str, Tensor | None], said: str) -> None:
        held = {key: value for key, value in (fours(_noise(6, 40)) | change).items() if value is not None}
        assert re.search(said, str(INT4.fault(NAME, held)))
        if NAME in held and held[NAME].dtype == torch.uint8:
            with pytest.raises(UntrustedContentError, match=said):
                INT4.decode(NAME, held)
