"""Codecs that store differences from the shared expert: numbers recomputed by hand, bounds, bytes, and refusals."""

import re
from collections.abc import Iterator
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st
from torch import Tensor

from hf_merge.errors import RecipeError, UntrustedContentError
from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec, _packing, _rows, lowrank
from hf_merge.merging.codecs._packing import BITS, HALVES, PAIRS, TRITS, Packing, looked_up
from hf_merge.merging.settings import Setting, Settings


NAME = "encoder.layer.0.attention.self.query.weight"
CASES: list[tuple[str, dict[str, object]]] = [
    ("ternary", {}), ("ternary", {"density": 0.1}), ("ternary", {"density": 0.999}), ("sign", {}),
    ("delta", {}), ("delta", {"bits": 4}), ("lowrank", {}), ("lowrank", {"rank": 1}),
    ("rows", {}), ("rows", {"density": 0.6, "bits": 2}),
]  # fmt: skip
every_case = pytest.mark.parametrize(("name", "chosen"), CASES, ids=str)
both_bits = pytest.mark.parametrize("bits", [2, 4])


def settings_of(codec: str, /, **chosen: object) -> Settings:
    return CodecSpec.resolve(codec, chosen).mapping


def encoded(codec: str, weight: Tensor, /, **chosen: object) -> dict[str, Tensor]:
    stored = codecs.get(codec).encode(NAME, weight, None, settings_of(codec, **chosen))
    assert codecs.get(codec).fault(NAME, stored) is None
    return stored


def decoded(codec: str, stored: dict[str, Tensor]) -> Tensor:
    return codecs.get(codec).decode(NAME, stored)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


@st.composite
def rows_of_any_values(draw: st.DrawFn, limit: float = 2.0**126) -> Tensor:
    """A matrix of any finite values: constant rows, one element, zeros, huge ranges, denormals."""
    rows, columns = draw(st.integers(8, 12)), draw(st.integers(8, 21))
    entries = st.floats(-limit, limit, width=32)
    row = st.one_of(
        st.lists(entries, min_size=columns, max_size=columns),
        entries.map(lambda value: [value] * columns),
        entries.map(lambda value: [0.0] * (columns - 1) + [value]),
        st.lists(st.floats(-(2.0**-133), 2.0**-133, width=32), min_size=columns, max_size=columns),
        st.lists(st.floats(-1, 1, width=32), min_size=columns, max_size=columns),
    )
    return torch.tensor([draw(row) for _ in range(rows)], dtype=torch.float32)


def lost(codec: str, weight: Tensor, stored: dict[str, Tensor]) -> Tensor:
    """Returns the squared error of each row, [rows] float64."""
    return (weight.double() - decoded(codec, stored).double()).square().sum(dim=1)


def rounding(weight: Tensor) -> Tensor:
    """Returns what float32 may add to the squared error of each row: of scales, products and the smallest numbers."""
    exact, smallest = weight.double().abs(), 2.0**-148
    largest = exact.amax(dim=1)
    each = (largest * 2.0**-20 + smallest).square() + largest * smallest
    return weight.shape[1] * each + 1e-6 * exact.square().sum(dim=1)


class TestContract:
    @every_case
    @pytest.mark.parametrize("shape", [(6, 40), (50, 33), (30, 2, 5, 5), (9, 3), (31, 64), (200, 17)], ids=str)
    def test_cost_is_the_bytes(self, name: str, chosen: dict[str, object], shape: tuple[int, ...]) -> None:
        codec, settings = codecs.get(name), settings_of(name, **chosen)
        stored = encoded(name, noise(*shape), **chosen)
        held = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        assert codec.cost(shape, codec.quantises(NAME, shape, settings), settings) == held / 4

    @every_case
    def test_a_difference_is_uint8_and_what_is_not_quantised_float32(
        self, name: str, chosen: dict[str, object]
    ) -> None:
        assert codecs.get(name).residual
        stored = encoded(name, noise(40, 60), **chosen)
        assert (stored[NAME].dtype, set(stored)) == (
            torch.uint8,
            {NAME + part for part in ("", *codecs.get(name).parts)},
        )
        vector = noise(60)
        assert encoded(name, vector, **chosen)[NAME] is vector

    @every_case
    def test_what_is_decoded_may_be_added_to(self, name: str, chosen: dict[str, object]) -> None:
        stored = encoded(name, noise(30, 3, 4, 5), **chosen)
        before = {key: tensor.clone() for key, tensor in stored.items()}
        first = decoded(name, stored)
        kept = first.clone()
        first.add_(1)
        assert all(torch.equal(stored[key], before[key]) for key in stored)
        assert torch.equal(decoded(name, stored), kept) and kept.shape == (30, 3, 4, 5)

    @every_case
    def test_neither_blocks_nor_strides_change_the_bytes(
        self, name: str, chosen: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weight = noise(40, 31)
        whole = encoded(name, weight, **chosen)
        for module in (_packing, _rows, lowrank):
            monkeypatch.setattr(module, "_BLOCK", 70)
        for same in (weight, weight.T.contiguous().T):
            again = encoded(name, same, **chosen)
            assert all(again[key].numpy().tobytes() == whole[key].numpy().tobytes() for key in whole)
            assert decoded(name, again).numpy().tobytes() == decoded(name, whole).numpy().tobytes()

    @every_case
    def test_no_difference_is_exact(self, name: str, chosen: dict[str, object]) -> None:
        weight = noise(40, 31)
        weight[::2] = 0
        if name != "lowrank":
            assert not decoded(name, encoded(name, weight, **chosen))[::2].any()
        assert not decoded(name, encoded(name, torch.zeros(40, 31), **chosen)).any()

    @pytest.mark.slow
    @every_case
    @law(deadline=None, max_examples=40)
    @given(weight=rows_of_any_values())
    def test_any_finite_row_comes_back_finite_and_no_worse_than_zero_would(
        self, name: str, chosen: dict[str, object], weight: Tensor
    ) -> None:
        stored = encoded(name, weight, **chosen)
        assert bool(torch.isfinite(decoded(name, stored)).all())
        if name != "lowrank":  # whose error is one of the whole matrix
            assert bool((lost(name, weight, stored) <= weight.double().square().sum(dim=1) + rounding(weight)).all())

    @every_case
    @pytest.mark.parametrize("value", [3.4028234e38, -3.4028234e38, 1e-45, -1e-40])
    def test_a_constant_at_the_ends_of_float32_stays_finite(
        self, name: str, chosen: dict[str, object], value: float
    ) -> None:
        weight = torch.full((30, 40), value)
        found = decoded(name, encoded(name, weight, **chosen))
        assert bool(torch.isfinite(found).all())
        if name in ("sign", "delta") and abs(value) > 1:
            torch.testing.assert_close(found, weight)

    @pytest.mark.parametrize(
        ("name", "setting", "value"),
        [
            ("ternary", "density", 0), ("ternary", "density", 1), ("rows", "density", 0.0), ("rows", "density", 1.0),
            ("rows", "bits", 3), ("delta", "bits", 8), ("delta", "bits", "2"),
            ("lowrank", "rank", 0), ("lowrank", "rank", 4097), ("lowrank", "rank", 2.5),
        ],
    )  # fmt: skip
    def test_impossible_settings_are_refused(self, name: str, setting: str, value: Setting) -> None:
        with pytest.raises(RecipeError, match=f"Codec '{name}': {setting} is {value!r}"):
            CodecSpec.resolve(name, {setting: value})


class TestPacking:
    @law(deadline=None)
    @given(st.sampled_from([BITS, PAIRS, TRITS, HALVES, Packing(16, 2, filler=8)]), st.integers(1, 41), st.data())
    def test_digits_of_any_length_come_back(self, packing: Packing, columns: int, data: st.DataObject) -> None:
        digits = data.draw(
            st.lists(
                st.lists(st.integers(0, packing.base - 1), min_size=columns, max_size=columns), min_size=1, max_size=4
            )
        )
        packed = packing.pack(np.array(digits, dtype=np.uint8))
        assert packed.shape == (len(digits), packing.width(columns))
        for row, numbers in zip(packed.tolist(), digits, strict=True):
            filled = [*numbers, *[packing.filler] * (-len(numbers) % packing.per_byte)]
            places = [filled[at : at + packing.per_byte] for at in range(0, len(filled), packing.per_byte)]
            assert row == [sum(digit * packing.base**place for place, digit in enumerate(byte)) for byte in places]
        stored = torch.from_numpy(packed)
        assert packing.fault(stored, columns) is None
        table = packing.table(np.arange(packing.base, dtype=np.float32))
        assert looked_up(stored, table, torch.ones(len(digits)), columns).tolist() == digits

    def test_bytes_that_no_digits_make_are_told(self) -> None:
        assert TRITS.fault(torch.tensor([[242, 2]], dtype=torch.uint8), 6) is None
        assert "above 242" in str(TRITS.fault(torch.tensor([[243, 2]], dtype=torch.uint8), 6))
        assert "filler" in str(TRITS.fault(torch.tensor([[242, 3]], dtype=torch.uint8), 6))
        assert "filler" in str(BITS.fault(torch.tensor([[1], [2]], dtype=torch.uint8), 1))


class TestTernary:
    def test_recomputed_in_plain_python(self) -> None:
        weight = noise(6, 13)
        weight[2] = torch.tensor([1.0, -1.0] * 6 + [1.0])  # of equal magnitudes the earlier
        weight[3, 2:] = 0  # fewer than are asked for
        stored = encoded("ternary", weight, density=0.4)
        for row, values in enumerate(weight.tolist()):
            order = sorted(range(13), key=lambda at, of=values: (-abs(of[at]), at))[: round(0.4 * 13)]  # type: ignore[misc]
            kept = [at for at in order if values[at] != 0]
            digits = [(2 if values[at] < 0 else 1) if at in kept else 0 for at in range(13)] + [0, 0]
            places = [digits[at : at + 5] for at in (0, 5, 10)]
            assert stored[NAME][row].tolist() == [sum(d * 3**k for k, d in enumerate(byte)) for byte in places]
            mean = np.float32(sum(abs(values[at]) for at in kept) / len(kept))
            assert stored[f"{NAME}.scale"][row].item() == mean
            signs = [mean * (0, 1, -1)[digit] for digit in digits[:13]]
            assert decoded("ternary", stored)[row].tolist() == signs

    @law(deadline=None)
    @given(rows_of_any_values(), st.floats(0.01, 0.99))
    def test_the_error_is_the_norm_less_that_of_what_is_kept(self, weight: Tensor, density: float) -> None:
        stored = encoded("ternary", weight, density=density)
        kept = (decoded("ternary", stored) != 0).sum(dim=1)
        assert int(kept.max()) <= max(1, round(density * weight.shape[1]))
        taken = kept * stored[f"{NAME}.scale"].double().square()
        expected = weight.double().square().sum(dim=1) - taken
        assert bool(((lost("ternary", weight, stored) - expected).abs() <= rounding(weight)).all())


class TestSign:
    def test_recomputed_in_plain_python(self) -> None:
        weight = noise(4, 11)
        weight[1, :3] = 0
        stored = encoded("sign", weight)
        for row, values in enumerate(weight.tolist()):
            negative = [int(value < 0) for value in values] + [0] * 5
            assert stored[NAME][row].tolist() == [
                sum(bit << place for place, bit in enumerate(negative[at : at + 8])) for at in (0, 8)
            ]
            mean = np.float32(sum(map(abs, values)) / 11)
            assert stored[f"{NAME}.scale"][row].item() == mean
            assert decoded("sign", stored)[row].tolist() == [-mean if value < 0 else mean for value in values]

    @law(deadline=None)
    @given(rows_of_any_values())
    def test_the_error_is_the_norm_less_that_of_the_signs(self, weight: Tensor) -> None:
        stored = encoded("sign", weight)
        taken = weight.shape[1] * stored[f"{NAME}.scale"].double().square()
        expected = weight.double().square().sum(dim=1) - taken
        assert bool(((lost("sign", weight, stored) - expected).abs() <= rounding(weight)).all())


class TestDelta:
    @both_bits
    def test_recomputed_in_plain_python(self, bits: int) -> None:
        weight, best = noise(5, 21), {2: 0.9957, 4: 0.3352}[bits]
        stored, half = encoded("delta", weight, bits=bits), 2**bits // 2
        for row, values in enumerate(weight.tolist()):
            deviation, largest = (sum(v * v for v in values) / 21) ** 0.5, max(map(abs, values))
            found = []
            for step in (*(deviation * best * f for f in (0.6, 0.8, 1, 1.25, 1.6)), largest / (half - 0.5)):
                levels = [min(max(np.floor(v / step), -half), half - 1) + 0.5 for v in values]
                scale = sum(v * t for v, t in zip(values, levels, strict=True)) / sum(t * t for t in levels)
                found.append((sum((v - scale * t) ** 2 for v, t in zip(values, levels, strict=True)), scale))
            assert stored[f"{NAME}.scale"][row].item() == np.float32(min(found)[1])
            assert lost("delta", weight, stored)[row].item() <= min(found)[0] * (1 + 1e-6)
            digits = [min(max(int(np.floor(v / np.float32(min(found)[1]))) + half, 0), 2 * half - 1) for v in values]
            digits += [0] * (-len(digits) % (8 // bits))
            places = [digits[at : at + 8 // bits] for at in range(0, len(digits), 8 // bits)]
            assert stored[NAME][row].tolist() == [sum(d << bits * k for k, d in enumerate(byte)) for byte in places]

    @both_bits
    @law(deadline=None)
    @given(weight=rows_of_any_values())
    def test_a_weight_within_the_grid_is_off_by_half_a_scale_at_most(self, bits: int, weight: Tensor) -> None:
        stored = encoded("delta", weight, bits=bits)
        scale = stored[f"{NAME}.scale"].double()[:, None]
        inside = weight.double().abs() <= scale * 2 ** (bits - 1)
        error = (decoded("delta", stored).double() - weight.double()).abs()
        assert bool((error <= scale * (0.5 + 1e-6) + 2.0**-149)[inside].all())

    @both_bits
    def test_a_constant_row_is_exact_but_for_rounding(self, bits: int) -> None:
        weight = torch.tensor([0.3, -2e-3, 1e20, -7.0, 1.0])[:, None].expand(5, 12)
        torch.testing.assert_close(decoded("delta", encoded("delta", weight, bits=bits)), weight, rtol=1e-6, atol=0)

    def test_rows_whose_width_does_not_tell_the_bits_stay_whole(self) -> None:
        for bits in (2, 4):
            assert encoded("delta", noise(90, 2), bits=bits)[NAME].dtype == torch.float32
            assert encoded("delta", noise(90, 3), bits=bits)[NAME].dtype == torch.uint8


class TestRows:
    @both_bits
    def test_the_rows_of_largest_norm_are_kept_as_delta_would(self, bits: int) -> None:
        weight = (
            noise(20, 17)
            * torch.linspace(1, 3, 20)[torch.randperm(20, generator=torch.Generator().manual_seed(1))][:, None]
        )
        stored = encoded("rows", weight, density=0.26, bits=bits)
        norms = [sum(value * value for value in row) for row in weight.tolist()]
        kept = sorted(sorted(range(20), key=lambda row: -norms[row])[: round(0.26 * 20)])
        assert stored[f"{NAME}.rows"].tolist() == kept
        alone = encoded("delta", weight[kept], bits=bits)
        assert torch.equal(stored[NAME], alone[NAME]) and torch.equal(stored[f"{NAME}.scale"], alone[f"{NAME}.scale"])
        found = decoded("rows", stored)
        assert torch.equal(found[kept], decoded("delta", alone))
        assert not found[[row for row in range(20) if row not in kept]].any()

    def test_of_equal_rows_the_earlier_are_kept(self) -> None:
        assert encoded("rows", torch.ones(20, 8), density=0.25)[f"{NAME}.rows"].tolist() == [0, 1, 2, 3, 4]

    def test_one_row_is_kept_at_least(self) -> None:
        assert len(encoded("rows", noise(20, 8), density=1e-6)[f"{NAME}.rows"]) == 1


class TestLowrank:
    @pytest.mark.parametrize("shape", [(12, 9), (9, 12)], ids=str)
    def test_recomputed_by_a_singular_value_decomposition(self, shape: tuple[int, int]) -> None:
        left, _ = torch.linalg.qr(noise(shape[0], 9, seed=1).double())
        right, _ = torch.linalg.qr(noise(shape[1], 9, seed=2).double())
        weight = ((left * torch.logspace(0, -2, 9).double()) @ right.T).float()
        stored = encoded("lowrank", weight, rank=3)
        vectors = torch.linalg.svd(weight.double()).Vh[:3]
        vectors *= torch.stack([row[row.abs().argmax()] for row in vectors]).sign()[:, None]
        numbers = (vectors / (vectors.abs().amax(dim=1, keepdim=True) / 127)).round()
        assert torch.equal(stored[f"{NAME}.right"].double() - 128, numbers)
        columns = torch.linalg.lstsq(numbers.T, weight.double().T).solution
        scale = columns.abs().amax(dim=1, keepdim=True) / 127
        torch.testing.assert_close(stored[f"{NAME}.scale"], scale.squeeze(1).float())
        assert torch.equal(stored[NAME].double() - 128, (columns / scale).round().T)
        product = (columns / scale).round().T @ (scale * numbers)
        torch.testing.assert_close(decoded("lowrank", stored), product.float())

    @law(deadline=None, max_examples=60)
    @given(rows_of_any_values(limit=2.0**100), st.integers(1, 4))
    def test_the_error_is_that_of_the_projection_and_of_two_roundings_at_most(self, weight: Tensor, rank: int) -> None:
        stored = encoded("lowrank", weight, rank=rank)
        if stored[NAME].dtype == torch.float32:
            return
        _, values, vectors = torch.linalg.svd(weight.double(), full_matrices=False)
        steps = vectors[:rank].abs().amax(dim=1) / 127
        rows, columns = weight.shape
        numbers = stored[f"{NAME}.right"].double() - 128
        first = columns**0.5 / 2 * (values[:rank] * steps).sum()
        second = rows**0.5 / 2 * (stored[f"{NAME}.scale"].double() * numbers.norm(dim=1)).sum()
        # Where singular values are equal the vectors are others than ours: no step is above that of a unit vector.
        first = torch.maximum(first, columns**0.5 / 2 * values[:rank].sum() / 127)
        bound = values[rank:].square().sum().sqrt() + first + second
        assert lost("lowrank", weight, stored).sum().sqrt() <= bound * (1 + 1e-6) + (rows * columns) ** 0.5 * 2.0**-148

    def test_a_matrix_of_low_rank_comes_back_but_for_rounding(self) -> None:
        weight = noise(60, 4, seed=1) @ noise(4, 90, seed=2)
        stored = encoded("lowrank", weight, rank=8)
        assert float((decoded("lowrank", stored) - weight).norm()) < 0.01 * float(weight.norm())
        assert stored[f"{NAME}.scale"][4:].tolist() == [0] * 4

    def test_a_matrix_with_fewer_columns_than_the_rank_has_as_many(self) -> None:
        stored = encoded("lowrank", noise(90, 5), rank=64)
        assert stored[f"{NAME}.right"].shape == (5, 5) and stored[NAME].shape == (90, 5)
        assert float((decoded("lowrank", stored) - noise(90, 5)).norm()) < 0.02 * float(noise(90, 5).norm())

    def test_the_order_of_sums_changes_no_bit(self) -> None:
        stored = encoded("lowrank", noise(50, 70) * torch.logspace(-6, 0, 50)[:, None], rank=16)
        left, right = stored[NAME].double() - 128, stored[f"{NAME}.right"].double() - 128
        for order in (range(16), reversed(range(16))):
            summed = torch.zeros(50, 70, dtype=torch.float64)
            for k in order:
                summed += stored[f"{NAME}.scale"][k].double() * left[:, k : k + 1] * right[k]
            assert torch.equal(summed.float(), decoded("lowrank", stored))

    @pytest.mark.parametrize("power", [1.0, 2.0**-120, 2.0**60])
    def test_a_largest_scale_that_is_a_power_of_two_is_taken(self, power: float) -> None:
        weight = torch.zeros(20, 20)
        weight[0, 0], weight[1, 1], weight[2, 2] = 127 * 127 * power, 3.3 * power, 1e-3 * power
        found = decoded("lowrank", encoded("lowrank", weight, rank=3))
        torch.testing.assert_close(found[:2], weight[:2], rtol=1e-3, atol=0)


def changed(stored: dict[str, Tensor], part: str, value: object) -> dict[str, Tensor]:
    """Returns stored tensors with a part replaced; None takes it away, a pair is an index and what comes there."""
    held, key = {name: tensor.clone() for name, tensor in stored.items()}, NAME + part
    if isinstance(value, tuple):
        held[key][value[0]] = value[1]
    elif isinstance(value, Tensor):
        held[key] = value
    else:
        del held[key]
    return held


def _damages() -> Iterator[tuple[str, str, object, str]]:
    """Yields a codec, a part of what it stores for [20, 33], what is put there, and what must be said."""
    for name in ("ternary", "sign", "delta", "lowrank", "rows"):
        yield name, "", None, "is missing"
        yield name, "", torch.zeros(20, 33, dtype=torch.int8), "is torch.int8, where float32 without scale"
        yield name, "", torch.zeros(20, 33), "is torch.float32, where float32 without scale"
        yield name, "", torch.zeros(20, 1, dtype=torch.uint8), "of shape"
        yield from ((name, part, None, "is uint8 without") for part in codecs.get(name).parts)
        yield name, ".scale", torch.ones(19), "of shape"
        yield name, ".scale", torch.ones(20, dtype=torch.float64), "float32 scale"
        yield name, ".shape", torch.tensor([20, 33]), "int32 shape"
        yield name, ".shape", torch.tensor([660], dtype=torch.int32), "two axes or more"
        yield name, ".shape", torch.tensor([20, -33], dtype=torch.int32), "of shape"
        yield name, ".shape", torch.tensor([20, 99], dtype=torch.int32), "of shape"
        for value in (torch.nan, torch.inf, -1.0, 3.4028234e38 if name in ("delta", "lowrank", "rows") else -1e-45):
            yield name, ".scale", (0, value), "scale that is not finite, or below 0"
    yield "ternary", "", ((3, 0), 243), "above 242"
    yield "ternary", "", ((3, -1), 27), "filler"
    yield "sign", "", ((3, -1), 2), "filler"
    yield "delta", "", ((3, -1), 4), "filler"
    yield "rows", "", ((0, -1), 16), "filler"
    yield "rows", ".rows", torch.tensor([3, 1], dtype=torch.int32), "do not rise"
    yield "rows", ".rows", torch.tensor([3, 3], dtype=torch.int32), "do not rise"
    yield "rows", ".rows", torch.tensor([-1, 3], dtype=torch.int32), "do not rise"
    yield "rows", ".rows", torch.tensor([3, 20], dtype=torch.int32), "do not rise"
    yield "rows", ".rows", torch.tensor([1, 3]), "not int32"
    yield "rows", ".rows", torch.tensor([], dtype=torch.int32), "has rows of shape"
    yield "rows", ".rows", torch.tensor([1], dtype=torch.int32), "is packed into"
    yield "lowrank", "", ((0, 0), 0), "byte of 0"
    yield "lowrank", ".right", ((0, 0), 0), "byte of 0"
    yield "lowrank", ".right", torch.ones(8, 33), "torch.float32"
    yield "lowrank", ".right", torch.ones(7, 33, dtype=torch.uint8), "of shape"
    yield "lowrank", ".scale", (0, 1e30), "no multiples"


class TestFaults:
    @pytest.mark.parametrize(("name", "part", "value", "said"), list(_damages()))
    def test_what_encode_cannot_have_written_is_told(self, name: str, part: str, value: object, said: str) -> None:
        chosen: dict[str, object] = {"rank": 2} if name == "lowrank" else {}
        if part == ".right":
            chosen = {"rank": 8}
        held = changed(encoded(name, noise(20, 33), **chosen), part, value)
        assert re.search(said, str(codecs.get(name).fault(NAME, held)))
        if NAME in held and held[NAME].dtype == torch.uint8:
            with pytest.raises(UntrustedContentError, match=said):
                decoded(name, held)

    @pytest.mark.parametrize("name", ["delta", "rows"])
    def test_too_few_columns_are_told(self, name: str) -> None:
        held = {
            NAME: torch.zeros(90, 1, dtype=torch.uint8),
            f"{NAME}.scale": torch.ones(90),
            f"{NAME}.shape": torch.tensor([90, 2], dtype=torch.int32),
            f"{NAME}.rows": torch.arange(90, dtype=torch.int32),
        }
        assert "3 columns are needed" in str(codecs.get(name).fault(NAME, held))

    @every_case
    def test_a_shape_that_claims_too_much_is_told_without_being_allocated(
        self, name: str, chosen: dict[str, object]
    ) -> None:
        shape = torch.tensor([2**31 - 1] * 8, dtype=torch.int32)
        held = changed(encoded(name, noise(20, 33), **chosen), ".shape", shape)
        assert prod(shape.tolist()) > 2**200
        assert "of shape" in str(codecs.get(name).fault(NAME, held))
