"""Models that run other tensors than they store: set, exchanged, let go of and given back by their names on disk."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, MixtralConfig, PreTrainedModel

from hf_merge.errors import ModelMismatch, UnsupportedArchitecture
from hf_merge.modeling import skeletons
from hf_merge.modeling.assembly import Head, TaskModel
from hf_merge.modeling.fusing import fusings_of, storage_of
from hf_merge.modeling.passes import Passes
from hf_merge.storing.checkpoints import Checkpoint
from tests.families.catalogue import FAMILIES


FUSED = ("mixtral", "qwen2_moe", "qwen3_moe")
EXPERT = "model.layers.0.block_sparse_moe.experts.1.w1.weight"


def saved(name: str, folder: Path) -> PreTrainedModel:
    """Returns a random classifier that is also in a folder."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(FAMILIES[name].config(num_labels=3))
    model.train(False)
    model.save_pretrained(folder)
    return model


def tensors_in(folder: Path) -> dict[str, Tensor]:
    with Checkpoint("model", folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.specs}


def skeleton(name: str) -> TaskModel:
    return TaskModel(FAMILIES[name].config().to_dict(), "text", Head(3))


def whole(name: str, tensors: dict[str, Tensor]) -> TaskModel:
    model = skeleton(name)
    model.set_backbone({key: held for key, held in tensors.items() if key.startswith("model.")}, "model.")
    model.set_head({key: held for key, held in tensors.items() if not key.startswith("model.")})
    model.require_complete()
    return model


def batch() -> dict[str, Tensor]:
    ids = torch.randint(4, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def logits_of(model: PreTrainedModel) -> Tensor:
    logits: Tensor = model(**batch()).logits
    return logits


@pytest.mark.parametrize("name", FUSED)
def test_a_model_with_fused_experts_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    reference = saved(name, tmp_path)
    tensors = tensors_in(tmp_path)
    model = whole(name, tensors)
    assert torch.equal(model.logits(batch()), logits_of(reference))
    assert set(model.slots) == set(tensors)
    assert all(held.data_ptr() == tensors[key].data_ptr() for key, held in model.tensors().items())


def test_one_expert_exchanged_changes_what_the_model_runs(tmp_path: Path) -> None:
    saved("mixtral", tmp_path / "before")
    tensors = tensors_in(tmp_path / "before")
    model = whole("mixtral", tensors)
    before = model.logits(batch())
    other = tensors[EXPERT] + 1.0
    model.set_backbone({EXPERT: other}, "model.")
    exchanged = model.logits(batch())
    assert torch.equal(exchanged, whole("mixtral", tensors | {EXPERT: other}).logits(batch()))
    assert not torch.equal(exchanged, before)
    model.set_backbone({EXPERT: tensors[EXPERT]}, "model.")
    assert torch.equal(model.logits(batch()), before)


def test_only_the_groups_that_changed_are_made_anew(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    tensors = tensors_in(tmp_path)
    model = whole("mixtral", tensors)
    places = dict(model.module.named_parameters())
    model.set_backbone({EXPERT: tensors[EXPERT].clone()}, "model.")
    after = dict(model.module.named_parameters())
    changed = {name for name, held in after.items() if held.data_ptr() != places[name].data_ptr()}
    assert changed == {"model.layers.0.mlp.experts.gate_up_proj"}


def test_clearing_lets_go_of_what_was_made(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    model = whole("mixtral", tensors_in(tmp_path))
    model.clear()
    assert {name for name, held in model.module.named_parameters() if held.numel()} == {"score.weight"}
    assert {name for name, held in model.tensors().items() if held.numel()} == {"score.weight"}
    with pytest.raises(ModelMismatch, match=r"lacks \d+ tensors: model\.embed_tokens"):
        model.require_complete()


def test_a_model_that_lacks_one_expert_says_so_by_its_name_on_disk(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    tensors = {name: held for name, held in tensors_in(tmp_path).items() if name != EXPERT}
    with pytest.raises(ModelMismatch, match=rf"lacks 1 tensors: {EXPERT}"):
        whole("mixtral", tensors)


def test_an_expert_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = skeleton("mixtral")
    with pytest.raises(ModelMismatch, match=r"has shape \[2, 2\] where .* needs \[24, 16\]"):
        model.put(EXPERT, torch.zeros(2, 2))


def test_passes_begun_behind_fused_experts_give_the_bits_of_whole_ones(tmp_path: Path) -> None:
    saved("mixtral", tmp_path)
    model = whole("mixtral", tensors_in(tmp_path))
    first = {name for name in model.slots if ".layers.0." in name}
    passes = Passes(model, [first, {name for name in model.slots if ".layers.1." in name}], batch())
    assert [(boundary.block, boundary.before, boundary.behind) for boundary in passes.boundaries] == [(1, (0,), (1,))]
    logits, states = passes.run(batch(), record=[1])
    for name in first:
        model.slots[name].clear()
    again, _ = passes.run(batch(), start=1, state=states[1])
    assert torch.equal(again, logits)


def test_a_conversion_that_nobody_describes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeletons, "fusings_of", lambda *_: [])
    with pytest.raises(UnsupportedArchitecture, match="in another layout than it runs"):
        skeleton("mixtral")


def test_storage_tells_what_becomes_what() -> None:
    settings = FAMILIES["mixtral"].config().to_dict()
    model = AutoModelForSequenceClassification.from_config(MixtralConfig(**settings))
    weights = model.state_dict(keep_vars=True)
    storage = storage_of(model, weights)
    assert storage.memory["model.layers.0.self_attn.q_proj.weight"] == "model.layers.0.self_attn.q_proj.weight"
    fused = {fusing.run: set(fusing.stored) for fusing in fusings_of(model, weights, storage)}
    assert fused["model.layers.1.mlp.experts.down_proj",] == {
        f"model.layers.1.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(3)
    }
    assert len(storage.shapes) == len(storage.memory) + sum(map(len, fused.values()))
