from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, ViTConfig, ViTModel

from hf_merge.errors import CheckpointDamaged, ModelMismatch
from hf_merge.modeling.skeletons import (
    BlameConfig,
    Slot,
    configuration,
    in_precision,
    move_buffers,
    skeleton_config,
    slots,
)


SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


def test_slots_carry_the_names_on_disk() -> None:
    found = slots(ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)))
    assert "encoder.layer.0.attention.attention.query.weight" in found
    assert found["encoder.layer.0.attention.attention.query.weight"].shape == (8, 8)
    assert not any(name.startswith("layers.") for name in found)


def test_persistent_buffers_have_slots_and_others_have_none() -> None:
    found = slots(Normalised())
    assert set(found) == {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    mean = torch.ones(3)
    found["norm.running_mean"].fill(mean)
    assert found["norm.running_mean"].tensor().data_ptr() == mean.data_ptr()


class Normalised(nn.Module):
    """Has parameters, persistent buffers, a counter, and a buffer that it computes itself."""

    computed: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("computed", torch.arange(3.0), persistent=False)
        self.config = BertConfig()
        self.base_model_prefix = ""


def test_a_slot_is_filled_and_cleared_by_reference_everywhere() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    slot = Slot((2, 2), [(first, "weight"), (second, "weight")])
    tensor = torch.ones(2, 2)
    slot.fill(tensor)
    assert slot.filled
    assert first.weight is second.weight
    assert first.weight.data_ptr() == tensor.data_ptr()
    slot.clear()
    assert not slot.filled
    assert slot.tensor().numel() == 0


def test_only_what_the_skeleton_computed_is_moved() -> None:
    model = Normalised()
    move_buffers(model, slots(model), torch.device("meta"))
    assert model.computed.is_meta
    assert not model.norm.running_mean.is_meta  # type: ignore[union-attr]


def test_floats_take_the_type_of_the_weights_and_numbers_of_words_do_not() -> None:
    inputs = {"pixel_values": torch.zeros(1), "input_ids": torch.zeros(1, dtype=torch.int64)}
    converted = in_precision(nn.Linear(1, 1, dtype=torch.bfloat16), inputs)
    assert converted["pixel_values"].dtype == torch.bfloat16
    assert converted["input_ids"] is inputs["input_ids"]


def test_a_skeletons_configuration_gives_the_same_model() -> None:
    original = BertConfig(**SMALL, vocab_size=11, layer_norm_eps=1e-3)
    kept = skeleton_config(original.to_dict())
    built = configuration(kept, {})
    assert skeleton_config(built.to_dict()) == kept
    assert type(AutoModelForSequenceClassification.from_config(built)).__name__ == "BertForSequenceClassification"


def test_errors_of_ours_and_interrupts_pass_through() -> None:
    with pytest.raises(ModelMismatch), BlameConfig({}):
        raise ModelMismatch("ours")
    with pytest.raises(KeyboardInterrupt), BlameConfig({}):
        raise KeyboardInterrupt
    with (
        pytest.raises(CheckpointDamaged, match=r"no 'x' model .* IndexError: far\. Take"),
        BlameConfig({"model_type": "x"}),
    ):
        raise IndexError("far.")
