"""Reading tensors: bit for bit what the library reads, into the caller's memory, in bounded pieces, never mapped."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import CheckpointDamaged, ModelMismatch
from hf_merge.storing import tensors
from hf_merge.storing.headers import ITEM_BYTES
from hf_merge.storing.tensors import DTYPES, SafetensorsFile, read_header, sha256_of


FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_floating_point]


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if dtype == torch.bool:
        return torch.arange(torch.Size(shape).numel()).remainder(2).bool().view(shape)
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 100, shape).to(dtype)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    held = {f"{name}/{len(shape)}": random_tensor(dtype, shape) for name, dtype in DTYPES.items() for shape in SHAPES}
    save_file(held, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


SHAPES = ((), (7,), (3, 0), (2, 3, 4))


def same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


def test_types_have_the_sizes_that_headers_assume() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == dict(ITEM_BYTES)


def test_every_type_and_shape_is_read_as_the_library_reads_it(path: Path) -> None:
    expected = load_file(path)
    with SafetensorsFile(path) as file:
        assert set(file.specs) == set(expected)
        for name, tensor in expected.items():
            assert same_bits(file.read(name), tensor), name
    assert file.specs == read_header(path)


def test_every_float_type_is_converted_exactly(path: Path) -> None:
    expected = load_file(path)
    with SafetensorsFile(path) as file:
        for name in (f"{dtype}/{len(shape)}" for dtype in FLOATS for shape in SHAPES):
            assert same_bits(file.read_float32(name), expected[name].float()), name


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_part_of_a_larger_buffer_is_filled_and_nothing_beside_it(path: Path, dtype: str) -> None:
    buffer = torch.full((40,), 7.0)
    part = buffer[5:29]
    with SafetensorsFile(path) as file:
        assert file.read_float32(f"{dtype}/3", part) is part
    assert same_bits(part, load_file(path)[f"{dtype}/3"].float().reshape(-1))
    assert bool((buffer[:5] == 7).all())
    assert bool((buffer[29:] == 7).all())


def test_a_parameter_can_be_filled(path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 3, 4))
    with SafetensorsFile(path) as file:
        file.read_float32("F16/3", parameter)
    assert same_bits(parameter.detach(), load_file(path)["F16/3"].float())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["F16", "BF16", "F32", "F64", "F8_E4M3"]), st.integers(0, 70), st.sampled_from([8, 16, 40]))
def test_pieces_join_without_a_seam(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, length: int, buffer_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.safetensors"
    tensor = (torch.arange(length) - 20.0).to(DTYPES[dtype])
    save_file({"before": torch.ones(3), "x": tensor}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "_BUFFER_BYTES", buffer_bytes)
        with SafetensorsFile(path) as file:
            assert same_bits(file.read_float32("x"), tensor.float())
            assert file.read_float32("before").tolist() == [1, 1, 1]


def test_short_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, buffers, offset: real(descriptor, [buffers[0][:5]], offset))
    expected = load_file(path)
    with SafetensorsFile(path) as file:
        assert same_bits(file.read("F64/3"), expected["F64/3"])
        assert same_bits(file.read_float32("BF16/3"), expected["BF16/3"].float())


def test_nothing_is_mapped(path: Path) -> None:
    with SafetensorsFile(path) as file:
        kept = [file.read(name) for name in file.specs]
        assert str(path) not in Path("/proc/self/maps").read_text()
    assert kept


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL"])
def test_integers_are_no_weights(path: Path, dtype: str) -> None:
    with (
        SafetensorsFile(path) as file,
        pytest.raises(ModelMismatch, match=f"'{dtype}/1' is stored as {dtype}, not as"),
    ):
        file.read_float32(f"{dtype}/1")


@pytest.mark.parametrize(
    "out",
    [torch.zeros(6), torch.zeros(7, dtype=torch.float64), torch.zeros(14)[::2], torch.zeros(7, device="meta")],
)
def test_memory_that_does_not_fit_is_refused(path: Path, out: Tensor) -> None:
    with SafetensorsFile(path) as file, pytest.raises(ValueError, match="out must be 7 contiguous float32 values"):
        file.read_float32("F32/1", out)


def test_an_unknown_name_is_named(path: Path) -> None:
    with SafetensorsFile(path) as file:
        for read in (file.read, file.read_float32):
            with pytest.raises(CheckpointDamaged, match="holds no tensor 'nobody'"):
                read("nobody")


def test_a_file_cut_while_open_is_an_error_not_a_crash(path: Path) -> None:
    with SafetensorsFile(path) as file:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointDamaged, match="became shorter"):
            for name in file.specs:
                file.read(name)


def test_bytes_that_are_no_truth_values_still_make_sound_ones(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([True, False])}, tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    content[-2:] = b"\x02\x00"
    (tmp_path / "x").write_bytes(content)
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.read("x").tolist() == [True, False]
        assert int(file.read("x").view(torch.uint8)[0]) == 1


def test_links_are_followed_only_where_allowed(path: Path) -> None:
    link = path.parent / "link.safetensors"
    link.symlink_to(path.name)
    SafetensorsFile(link).close()
    with pytest.raises(CheckpointDamaged, match="cannot be opened"):
        SafetensorsFile(link, follow_links=False)


def test_no_descriptor_is_left_open(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"bad")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with SafetensorsFile(path) as file:
            file.close()
        read_header(path)
        with pytest.raises(CheckpointDamaged):
            SafetensorsFile(tmp_path / "bad")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("length", [0, 1, 4 * 2**20, 9 * 2**20 + 5])
def test_digests_are_those_of_hashlib(tmp_path: Path, length: int) -> None:
    content = bytes(range(251)) * (length // 251 + 1)
    (tmp_path / "x").write_bytes(content[:length])
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content[:length]).hexdigest()


def test_what_cannot_be_digested_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", ""):
        with pytest.raises(CheckpointDamaged):
            sha256_of(tmp_path / name)
