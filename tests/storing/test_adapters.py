"""Adapters on disk: what peft writes is read as peft means it, and what cannot be merged is refused by name."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import CheckpointDamaged, HfMergeError, ModelMismatch, PickleRefused
from hf_merge.storing.adapters import Adapter, Scale
from tests.tiny_models import TinyFamily


Build = Callable[[str, str], TinyFamily]


def edited(
    source: Path, out: Path, *, settings: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None
) -> Path:
    """Returns a copy of an adapter folder with other settings and tensors."""
    shutil.copytree(source, out)
    path = out / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(settings or {})))
    held = load_file(out / "adapter_model.safetensors")
    save_file(held | dict(tensors or {}), out / "adapter_model.safetensors")
    return out


@pytest.fixture
def lora(tiny_adapters: Build) -> Path:
    return tiny_adapters("bert", "lora").tasks["animals"].folder


@pytest.fixture
def ia3(tiny_adapters: Build) -> Path:
    return tiny_adapters("bert", "ia3").tasks["animals"].folder


def test_an_adapter_says_what_it_is(lora: Path, ia3: Path) -> None:
    with Adapter("source", lora) as adapter:
        assert adapter.kind == "LoRA"
        assert adapter.trained_on == str(lora.parent / "base")
        assert adapter.scale == Scale(6.0, {}, False)
        assert "bert.encoder.layer.0.attention.self.key" in adapter.modules()
        assert set(adapter.whole()) == {"classifier.weight", "classifier.bias"}
    with Adapter("source", ia3) as adapter:
        assert adapter.kind == "(IA)3"
        assert adapter.scale is None
        assert adapter.modules()["bert.encoder.layer.1.output.dense"] == ("bert.encoder.layer.1.output.dense.ia3_l",)


def test_tensors_are_read_as_they_were_saved(lora: Path) -> None:
    saved = load_file(lora / "adapter_model.safetensors")
    with Adapter("source", lora) as adapter:
        for name in adapter.specs:
            assert torch.equal(adapter.read(name), saved[f"base_model.model.{name}"])


@pytest.mark.parametrize(
    ("scale", "module", "rank", "expected"),
    [
        (Scale(6, {}, False), "h.0.k", 3, 2.0),
        (Scale(6, {}, True), "h.0.k", 4, 3.0),
        (Scale(6, {"k": 12.0}, False), "h.0.k", 3, 4.0),
        (Scale(6, {"k": 12.0}, False), "h.0.block", 3, 2.0),
        (Scale(6, {"^h.0.k": 12.0}, False), "h.0.k", 3, 4.0),
        (Scale(6, {"^0.k": 12.0}, False), "h.0.k", 3, 2.0),
    ],
)
def test_the_scale_is_alpha_over_the_rank_or_its_root(scale: Scale, module: str, rank: int, expected: float) -> None:
    assert scale.of(module, rank) == pytest.approx(expected)


def test_the_digest_changes_with_the_weights_and_with_the_scale(lora: Path, tmp_path: Path) -> None:
    name = "base_model.model.classifier.bias"
    other = edited(lora, tmp_path / "weights", tensors={name: torch.ones(2)})
    scaled = edited(lora, tmp_path / "scale", settings={"lora_alpha": 7})
    digests = []
    for folder in (lora, lora, other, scaled):
        with Adapter("source", folder) as adapter:
            digests.append(adapter.digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, r"kind 'PREFIX_TUNING'; \(IA\)3 and LoRA can be merged"),
        ({"peft_type": None}, "kind 'None'"),
        ({"peft_type": ["LORA"]}, r"an adapter of kind .*LORA.*; \(IA\)3 and LoRA can be merged"),
        ({"use_dora": True}, "use_dora is set in adapter_config.json: DoRA"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication is set"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changed the base's weights"),
    ],
)
def test_kinds_that_are_not_merged_are_refused(
    lora: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelMismatch, match=message):
        Adapter("org/adapter", edited(lora, tmp_path / "other", settings=settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r is 0 in adapter_config.json; it must be above 0"),
        ({"lora_alpha": "six"}, "lora_alpha is 'six'"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is \[1\] in adapter_config\.json; it must map"),
        ({"alpha_pattern": {"(a|b)+": 2}}, r"alpha_pattern has '\(a\|b\)\+'"),
    ],
)
def test_settings_without_meaning_are_refused(
    lora: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointDamaged, match=message):
        Adapter("org/adapter", edited(lora, tmp_path / "other", settings=settings))


A, B = (f"base_model.model.bert.encoder.layer.0.attention.self.key.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        (
            {A: torch.zeros(0, 32), B: torch.zeros(32, 0)},
            CheckpointDamaged,
            "rank 0",
        ),
        ({A: torch.zeros(4, 32)}, CheckpointDamaged, "are no two factors"),
        ({"base_model.model.x.lora_B.weight": torch.zeros(4, 3)}, CheckpointDamaged, "has no partner 'lora_A"),
        ({"base_model.model.x.lora_embedding_A": torch.zeros(3, 4)}, ModelMismatch, "update that is not supported"),
        ({"base_model.model.x.lora_magnitude_vector": torch.zeros(3)}, ModelMismatch, "update that is not supported"),
    ],
)
def test_tensors_that_are_no_update_are_refused(
    lora: Path, tmp_path: Path, tensors: dict[str, Tensor], error: type[HfMergeError], message: str
) -> None:
    folder = edited(lora, tmp_path / "other", tensors=tensors)
    with Adapter("org/adapter", folder) as adapter, pytest.raises(error, match=message):
        adapter.whole()


def test_a_whole_model_is_no_adapter(tiny_adapters: Build) -> None:
    with pytest.raises(CheckpointDamaged, match="a whole model: give it as `model`"):
        Adapter("org/base", tiny_adapters("bert", "lora").base)


def test_a_pickled_adapter_is_refused(lora: Path, tmp_path: Path) -> None:
    folder = edited(lora, tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(PickleRefused, match=r"adapter_model\.bin is pickled"):
        Adapter("org/adapter", folder)


def test_an_adapter_without_weights_is_refused(lora: Path, tmp_path: Path) -> None:
    folder = edited(lora, tmp_path / "empty")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointDamaged, match=r"there is no adapter_model\.safetensors"):
        Adapter("org/adapter", folder)
