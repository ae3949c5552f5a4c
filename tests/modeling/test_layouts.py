"""Layouts: names and shapes on disk from the meta device, and every model type of transformers cut into components."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hf_merge.merging.components import GRANULARITIES, decompose, places, unplaced
from hf_merge.modeling.assembly import skeleton_of
from hf_merge.modeling.layouts import Layout, layout_of
from hf_merge.modeling.skeletons import slots
from tests.tiny_models import config_of, new_base


SURVEY = Path(__file__).parents[2] / "examples" / "benchmarks" / "decompose.py"
TINY: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
TEXT: dict[str, Any] = {**TINY, "vocab_size": 10, "num_key_value_heads": 1, "head_dim": 4}
TYPES: dict[str, dict[str, Any]] = {
    "bert": {**TINY, "vocab_size": 10},
    "clip": {"vision_config": {**TINY, "image_size": 8, "patch_size": 4}, "text_config": {**TINY, "vocab_size": 10}},
    "vit": {**TINY, "image_size": 8, "patch_size": 4},
    "swin": {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "image_size": 32, "window_size": 2},
    "segformer": {},
    "resnet": {},
    "convnext": {},
    "t5": {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 2, "num_heads": 2, "vocab_size": 10},
    "bart": {},
    "whisper": {},
    "llama": TEXT,
    "mixtral": {**TEXT, "num_local_experts": 3},
    "qwen3_moe": {**TEXT, "num_experts": 3, "moe_intermediate_size": 8},
    "jamba": {**TEXT, "mamba_d_state": 2, "num_experts": 2},
    "wav2vec2": {},
    "xlm": {"emb_dim": 8, "n_layers": 2, "n_heads": 2, "n_words": 10},
}


def layout(model_type: str) -> Layout:
    return layout_of(skeleton_of(AutoConfig.for_model(model_type, **TYPES[model_type])))


def test_a_layout_is_what_a_real_model_has_on_disk() -> None:
    model = new_base("vit")
    found = layout_of(skeleton_of(config_of("vit")))
    assert found.shapes == {name: slot.shape for name, slot in slots(model).items()}
    assert found.memory["encoder.layer.0.attention.attention.key.weight"] == "layers.0.attention.k_proj.weight"
    assert found.fused == ()


def test_a_skeleton_takes_no_memory() -> None:
    model = skeleton_of(AutoConfig.for_model("bert", hidden_size=2**14, num_hidden_layers=48, num_attention_heads=2))
    assert all(held.is_meta for held in model.parameters())
    assert sum(held.numel() for held in model.parameters()) > 10**10


def test_what_is_fused_in_memory_stands_one_by_one_on_disk() -> None:
    found = layout("mixtral")
    experts = [f"layers.{layer}.block_sparse_moe.experts.{expert}" for layer in range(2) for expert in range(3)]
    assert sorted(found.fused) == sorted(
        f"{expert}.{part}.weight" for expert in experts for part in ("w1", "w2", "w3")
    )
    assert found.shapes[f"{experts[0]}.w1.weight"] == (8, 8)
    assert not any("gate_up_proj" in name for name in found.shapes)
    model = skeleton_of(AutoConfig.for_model("mixtral", **TYPES["mixtral"]))
    assert sum(held.numel() for held in model.parameters()) == sum(
        rows * (columns[0] if columns else 1) for rows, *columns in found.shapes.values()
    )


def test_tied_tensors_are_there_once() -> None:
    found = layout("t5")
    assert "shared.weight" in found.shapes
    assert not any("embed_tokens" in name for name in found.shapes)


@pytest.mark.parametrize("model_type", TYPES)
def test_types_are_cut_by_their_names_on_disk_as_by_those_in_memory(model_type: str) -> None:
    found = layout(model_type)
    placed = places(found.shapes)
    assert unplaced(placed) == ()
    for granularity in GRANULARITIES:
        components = decompose(found.shapes, granularity)
        assert sorted(name for component in components for name in component.tensors) == sorted(found.shapes)
    model = skeleton_of(AutoConfig.for_model(model_type, **TYPES[model_type]))
    in_memory = places(model.state_dict())
    moved = {name for name, held in found.memory.items() if in_memory[held] != placed[name]}
    assert all("patch_embeddings" in name for name in moved)  # Segformer's: beside its stages, or inside them


@pytest.mark.slow
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.soak)])
def test_every_model_type_is_cut_into_named_components(every: int, tmp_path: Path) -> None:
    types = sorted(MODEL_MAPPING_NAMES)[::every]
    command = [sys.executable, str(SURVEY), "--out", str(tmp_path / "report.md"), *types]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    listed, built = map(int, re.findall(r"(\d+) model types, of which (\d+) can be built", run.stdout)[0])
    assert listed == len(types)
    assert built >= 0.9 * listed
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"| {model_type} |" in report for model_type in types)
