"""Passes begun at a block give the bits of whole ones, and depend on no tensor that lies behind."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hf_merge.merging.components import decompose
from hf_merge.modeling.assembly import Head, Kind, TaskModel
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.passes import Passes, state_bytes
from hf_merge.modeling.prompts import Prompter
from tests.modeling.test_language import opened_speakers, speaker_model
from tests.tiny_speakers import TAUGHT_SPEAKERS, SpeakingFamily, answers_of


TEXT: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4},
    "modernbert": {"global_attn_every_n_layers": 2, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32, "pad_token_id": 0},
    "llama": {"num_key_value_heads": 2, "pad_token_id": 0},
    "qwen2": {"num_key_value_heads": 2, "pad_token_id": 0, "use_sliding_window": True, "max_window_layers": 2},
}
IMAGE: dict[str, dict[str, Any]] = {
    "vit": {},
    "dinov2": {},
    "swin": {
        "embed_dim": 16,
        "depths": [2, 2, 2],
        "num_heads": [2, 2, 2],
        "window_size": 2,
        "patch_size": 2,
        "image_size": 32,
    },
    "convnext": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]},
    "resnet": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "embedding_size": 8, "layer_type": "basic"},
}
COMMON = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50,
    "max_position_embeddings": 40, "image_size": 32, "patch_size": 4, "num_channels": 3,
}  # fmt: skip


def kind_of(model_type: str) -> Kind:
    return "image" if model_type in IMAGE else "text"


def filled(model_type: str, changes: Mapping[str, Any] | None = None) -> TaskModel:
    """Returns a small model of random weights."""
    own = TEXT.get(model_type, {}) | IMAGE.get(model_type, {}) | dict(changes or {})
    settings = own if "depths" in own else COMMON | own
    model = TaskModel({"model_type": model_type, **settings}, kind_of(model_type), Head(3), pad_token_id=0)
    generator = torch.Generator().manual_seed(0)
    for name, slot in model.slots.items():
        spread = torch.rand(slot.shape, generator=generator) if "var" in name else torch.randn(slot.shape) * 0.2
        slot.fill(spread)
    return model


def batch_of(model_type: str, rows: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind_of(model_type) == "image":
        return {"pixel_values": torch.randn(rows, 3, 32, 32, generator=generator)}
    ids = torch.randint(2, 50, (rows, 9), generator=generator)
    mask = torch.arange(9)[None, :] < torch.tensor([9, 4, 7, 2, 9][:rows])[:, None]
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def by_depth(model: TaskModel, granularity: str) -> list[frozenset[str]]:
    backbone = [name for name in model.slots if not name.startswith(("classifier", "score"))]
    components = decompose(backbone, granularity, stages=3)
    return [frozenset(component.tensors) for component in components]


@pytest.mark.parametrize("model_type", [*TEXT, *IMAGE])
def test_a_pass_begun_at_a_boundary_gives_the_bits_of_a_whole_one(model_type: str) -> None:
    model = filled(model_type)
    passes = Passes(model, by_depth(model, "type-stage"), batch_of(model_type, rows=2))
    batch = batch_of(model_type)
    whole = model.logits(batch)
    assert passes.boundaries, f"no place to begin was found in {model_type}"
    recorded_logits, states = passes.run(batch, record=[boundary.block for boundary in passes.boundaries])
    assert torch.equal(recorded_logits, whole)
    for boundary in passes.boundaries:
        for _ in range(2):  # a state serves more than once
            begun, _ = passes.run(batch, start=boundary.block, state=states[boundary.block])
            assert torch.equal(begun, whole)


@pytest.mark.parametrize("model_type", [*TEXT, *IMAGE])
def test_what_lies_behind_a_boundary_does_not_change_its_states(model_type: str) -> None:
    model = filled(model_type)
    parts = by_depth(model, "type-stage")
    passes, batch = Passes(model, parts, batch_of(model_type, rows=2)), batch_of(model_type)
    boundary = passes.boundaries[0]
    _, before = passes.run(batch, record=[boundary.block])
    for index in set(range(len(parts))) - set(boundary.before):
        for name in parts[index]:
            model.slots[name].fill(model.slots[name].tensor() + 1.0)
    changed, after = passes.run(batch, record=[boundary.block])
    begun, _ = passes.run(batch, start=boundary.block, state=before[boundary.block])
    assert state_bytes(before[boundary.block]) == state_bytes(after[boundary.block]) > 0
    assert torch.equal(begun, changed), "a state kept before the change serves after it"


def test_a_begun_pass_needs_only_the_parts_behind() -> None:
    model = filled("bert")
    parts = by_depth(model, "type-stage")
    passes, batch = Passes(model, parts, batch_of("bert", rows=2)), batch_of("bert")
    boundary = passes.boundaries[-1]
    whole, states = passes.run(batch, record=[boundary.block])
    for index in set(range(len(parts))) - set(boundary.behind):
        for name in parts[index]:
            model.slots[name].clear()
    begun, _ = passes.run(batch, start=boundary.block, state=states[boundary.block])
    assert set(boundary.behind) < set(range(len(parts)))
    assert torch.equal(begun, whole)


@pytest.mark.parametrize(("granularity", "blocks"), [("type-stage", [2, 3]), ("layer", [1, 2, 3]), ("type", [])])
def test_boundaries_lie_where_another_component_begins(granularity: str, blocks: list[int]) -> None:
    model = filled("bert")
    passes = Passes(model, by_depth(model, granularity), batch_of("bert", rows=2))
    assert passes.blocks == 4
    assert [boundary.block for boundary in passes.boundaries] == blocks


def test_a_final_norm_is_no_part_of_the_first_stages() -> None:
    model = filled("llama")
    parts = [{name for name in model.slots if "layers" in name or "embed" in name}, {"model.norm.weight"}]
    passes = Passes(model, parts, batch_of("llama", rows=2))
    assert [(boundary.block, boundary.before) for boundary in passes.boundaries] == [(4, (0,))]


def test_blocks_that_are_run_again_and_again_offer_no_boundary() -> None:
    shared = {"embedding_size": 16, "num_hidden_groups": 1, "inner_group_num": 1}
    model = filled("albert", shared)
    assert Passes(model, [{name} for name in model.slots], batch_of("albert", rows=2)).boundaries == ()


def test_a_tensor_that_every_block_uses_is_part_of_every_prefix() -> None:
    model = filled("deberta-v2")
    relative = next(name for name in model.slots if "rel_embeddings" in name)
    passes = Passes(model, [{relative}, model.slots.keys() - {relative}], batch_of("deberta-v2", rows=2))
    assert passes.boundaries == ()


def test_a_boundary_whose_states_do_not_carry_everything_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled("bert")
    blocks = [module for name, module in model.module.named_modules() if name.endswith(tuple("0123"))]
    kept: list[Tensor] = []

    def smuggles(module: Any, arguments: Any, given: Any) -> None:
        kept[:] = [given]

    def adds(module: Any, arguments: Any, given: Any) -> Any:
        return given + kept[0].mean()  # what reaches the last block past the states

    blocks[0].register_forward_hook(smuggles)
    blocks[-1].register_forward_hook(adds)
    passes = Passes(model, by_depth(model, "layer"), batch_of("bert", rows=2))
    assert all(boundary.block < 2 for boundary in passes.boundaries)


# Language models, whose options are scored


@pytest.mark.slow
@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_an_options_pass_needs_nothing_of_what_lies_elsewhere(
    tiny_speakers: Callable[[str], SpeakingFamily], layout: str
) -> None:
    """With NaN before a boundary a pass begun there gives the same bits, with NaN behind it the states do."""
    tiny = tiny_speakers(layout)
    with opened_speakers(tiny) as family:
        model = speaker_model(tiny, family)
        model.set_backbone({name: family.tasks["colours"].read(name) for name in family.shapes}, family.base.trunk)
        components = decompose(family.shapes, "layer")
        parts = [{model.own_name(name, family.base.trunk) for name in part.tensors} for part in components]
    prompter = Prompter(load_tokenizer(tiny.base), tiny.kind, {}, batch_size=64)  # type: ignore[arg-type]
    (batch,) = prompter.option_batches(["paint bright wall", "a pale shade"], answers_of("colours"))
    passes = Passes(model, parts, batch.inputs)
    blocks = [boundary.block for boundary in passes.boundaries]
    assert blocks
    whole, states = passes.run(batch.inputs, record=blocks)
    held = model.tensors()
    for boundary in passes.boundaries:
        for keeping in (boundary.behind, boundary.before):
            kept = set().union(*(parts[index] for index in keeping))
            for name, tensor in held.items():
                model.slots[name].fill(tensor if name in kept else torch.full_like(tensor, torch.nan))
            for name in kept:  # a tied tensor is kept by any of its names
                model.slots[name].fill(held[name])
            if keeping is boundary.behind:
                begun, _ = passes.run(batch.inputs, start=boundary.block, state=states[boundary.block])
                assert torch.equal(begun, whole)
            else:
                _, seen = passes.run(batch.inputs, record=[boundary.block])
                assert state_bytes(seen[boundary.block]) == state_bytes(states[boundary.block])
                first, again = (tree_leaves(item[boundary.block]) for item in (states, seen))
                assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
