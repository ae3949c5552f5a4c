"""Adapters in a running model: peft's arithmetic on the base's own tensors, and folded in on demand."""

from collections.abc import Callable

import pytest
import torch

from hf_merge.errors import ModelMismatch, UnsupportedArchitecture
from hf_merge.merging.components import Shape
from hf_merge.modeling.adapters import adapter_shapes, fold
from hf_merge.modeling.assembly import Head, TaskModel
from hf_merge.storing.checkpoints import Checkpoint
from tests.families.catalogue import FAMILIES
from tests.tiny_models import TinyFamily


KEY, INNER = "encoder.layer.0.attention.self.key", "encoder.layer.1.output.dense"
VECTORS: dict[str, Shape] = {f"{KEY}.ia3_l": (32, 1), f"{INNER}.ia3_l": (1, 64)}
UPDATES: dict[str, Shape] = {
    f"{KEY}.lora_A.weight": (2, 32), f"{KEY}.lora_B.weight": (32, 2),
    f"{INNER}.lora_A.weight": (5, 64), f"{INNER}.lora_B.weight": (32, 5),
}  # fmt: skip
INPUTS = {"input_ids": torch.arange(6, 12).view(2, 3), "attention_mask": torch.ones(2, 3, dtype=torch.int64)}


def assembled(base: Checkpoint, adapter: dict[str, Shape]) -> TaskModel:
    """Returns a model with the base's weights, whose adapter is yet to be set."""
    model = TaskModel(base.config, "text", Head(2), adapter=adapter)
    model.set_head({"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.zeros(2)})
    model.set_backbone({name: base.read(name) for name in base.specs}, "")
    return model


@pytest.fixture
def base(tiny_family: Callable[[str], TinyFamily]) -> Checkpoint:
    folder = tiny_family("bert").base
    return Checkpoint(str(folder), folder)


def test_the_adapters_tensors_are_told_by_their_names() -> None:
    assert adapter_shapes({"wte": (3, 2), **VECTORS, **UPDATES}) == VECTORS | UPDATES


@pytest.mark.parametrize("adapter", [VECTORS, UPDATES], ids=["ia3", "lora"])
def test_a_running_adapter_is_its_arithmetic_on_the_weights(base: Checkpoint, adapter: dict[str, Shape]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 1 + 0.3 * torch.randn(shape, generator=generator) for name, shape in adapter.items()}
    model = assembled(base, adapter)
    with pytest.raises(ModelMismatch, match=f"lacks {len(adapter)} tensors"):
        model.require_complete()
    model.set_backbone(tensors, "")
    model.require_complete()
    plain = assembled(base, {})
    for module in (KEY, INNER):
        weight, bias = base.read(f"{module}.weight"), base.read(f"{module}.bias")
        if adapter is VECTORS:
            scale = tensors[f"{module}.ia3_l"]
            weight, bias = weight * scale, bias * scale.view(-1) if module == KEY else bias
        else:
            weight = weight + tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        plain.set_backbone({f"{module}.weight": weight, f"{module}.bias": bias}, "")
    torch.testing.assert_close(model.logits(INPUTS), plain.logits(INPUTS), atol=1e-4, rtol=1e-4)
    expected = model.logits(INPUTS)
    for name in [name for name in model.slots if name.startswith("bert.")]:
        model.put(name, model.slots[name].tensor().clone())
    model.fold_adapter()
    assert not [name for name, _ in model.module.named_modules() if "lora" in name or "ia3" in name]
    torch.testing.assert_close(model.logits(INPUTS), expected, atol=1e-4, rtol=1e-4)


def test_an_adapters_tensors_are_set_by_reference(base: Checkpoint) -> None:
    model = assembled(base, UPDATES)
    factor = torch.randn(2, 32)
    model.set_backbone({f"{KEY}.lora_A.weight": factor}, "")
    assert model.tensors()[f"bert.{KEY}.lora_A.weight"].data_ptr() == factor.data_ptr()


def test_building_an_adapter_draws_no_random_number(base: Checkpoint) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        assembled(base, UPDATES)
        assert torch.equal(torch.get_rng_state(), before)


def test_a_module_that_the_model_lacks_is_named(base: Checkpoint) -> None:
    with pytest.raises(ModelMismatch, match=r"acts on 'bert\.nowhere', which BertForSequenceClassification"):
        TaskModel(base.config, "text", Head(2), adapter={"nowhere.ia3_l": (32, 1)})


def test_folding_leaves_models_without_adapters_alone(base: Checkpoint) -> None:
    model = assembled(base, {})
    expected = model.logits(INPUTS)
    model.fold_adapter()
    fold(model.module)
    assert torch.equal(model.logits(INPUTS), expected)


def test_an_adapter_of_fused_experts_is_refused() -> None:
    config = FAMILIES["mixtral"].config().to_dict()
    module = "model.layers.0.block_sparse_moe.experts.0.w1"
    with pytest.raises(UnsupportedArchitecture, match=rf"acts on '{module}', .* runs fused with others"):
        TaskModel(config, "text", Head(2), adapter={f"{module}.ia3_l": (24, 1)}, trunk="model.")
