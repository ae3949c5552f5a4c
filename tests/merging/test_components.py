"""Components: exact for every layout and granularity, and every tensor in the type that its architecture gives it."""

import random
import re
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_merge.errors import RecipeError
from hf_merge.merging.components import (
    GRANULARITIES,
    Component,
    Place,
    Shape,
    decompose,
    depth_of,
    keeps_full_precision,
    places,
    role_of,
    unplaced,
)
from hf_merge.storing.checkpoints import Checkpoint
from tests.merging.families import FAMILIES
from tests.merging.test_cost import VIT_B, VIT_L, gpt2, open_clip, roberta
from tests.tiny_models import LAYERS, LAYOUTS, TinyFamily


# Names as they stand on disk: transformers' layouts of version 4 and 5, open_clip, and peft's (IA)3.
GOLDEN = {
    "bert.embeddings.word_embeddings.weight": ("embedding", None),
    "bert.embeddings.position_embeddings.weight": ("embedding", None),
    "bert.embeddings.LayerNorm.weight": ("norm", None),
    "bert.encoder.layer.0.attention.self.query.weight": ("attention", 0),
    "bert.encoder.layer.11.attention.output.dense.bias": ("attention", 11),
    "bert.encoder.layer.3.attention.output.LayerNorm.bias": ("norm", 3),
    "bert.encoder.layer.3.intermediate.dense.weight": ("mlp", 3),
    "bert.encoder.layer.3.output.dense.weight": ("mlp", 3),
    "bert.encoder.layer.3.output.LayerNorm.weight": ("norm", 3),
    "bert.pooler.dense.weight": ("embedding", None),
    "roberta.encoder.layer.2.attention.self.key.bias": ("attention", 2),
    "roberta.embeddings.token_type_embeddings.weight": ("embedding", None),
    "distilbert.transformer.layer.5.attention.q_lin.weight": ("attention", 5),
    "distilbert.transformer.layer.5.ffn.lin1.weight": ("mlp", 5),
    "distilbert.transformer.layer.5.sa_layer_norm.weight": ("norm", 5),
    "transformer.layer.5.output_layer_norm.bias": ("norm", 5),
    "vit.embeddings.cls_token": ("embedding", None),
    "vit.embeddings.patch_embeddings.projection.weight": ("embedding", None),
    "vit.encoder.layer.1.attention.attention.value.weight": ("attention", 1),
    "vit.encoder.layer.1.attention.output.dense.weight": ("attention", 1),
    "vit.encoder.layer.1.layernorm_before.weight": ("norm", 1),
    "vit.encoder.layer.1.output.dense.weight": ("mlp", 1),
    "vit.layers.7.attention.q_proj.weight": ("attention", 7),
    "vit.layers.7.mlp.fc1.weight": ("mlp", 7),
    "vit.layernorm.bias": ("norm", None),
    "dinov2.encoder.layer.4.layer_scale1.lambda1": ("norm", 4),
    "dinov2.encoder.layer.4.norm2.weight": ("norm", 4),
    "dinov2.embeddings.mask_token": ("embedding", None),
    "beit.encoder.layer.4.lambda_1": ("norm", 4),
    "blocks.9.ls1.gamma": ("norm", 9),
    "vision_model.embeddings.position_embedding.weight": ("embedding", None),
    "vision_model.encoder.layers.0.self_attn.out_proj.weight": ("attention", 0),
    "vision_model.encoder.layers.0.layer_norm1.weight": ("norm", 0),
    "vision_model.encoder.layers.0.mlp.fc2.bias": ("mlp", 0),
    "vision_model.pre_layrnorm.weight": ("norm", None),
    "vision_model.post_layernorm.weight": ("norm", None),
    "visual.transformer.resblocks.0.attn.in_proj_weight": ("attention", 0),
    "visual.transformer.resblocks.0.attn.in_proj_bias": ("attention", 0),
    "visual.transformer.resblocks.0.attn.out_proj.weight": ("attention", 0),
    "visual.transformer.resblocks.23.ln_2.weight": ("norm", 23),
    "visual.transformer.resblocks.23.mlp.c_fc.weight": ("mlp", 23),
    "visual.ln_pre.weight": ("norm", None),
    "visual.conv1.weight": ("embedding", None),
    "visual.proj": ("embedding", None),
    "positional_embedding": ("embedding", None),
    "logit_scale": ("embedding", None),
    "h.0.attn.c_attn.weight": ("attention", 0),
    "transformer.h.10.mlp.c_proj.weight": ("mlp", 10),
    "transformer.h.10.ln_1.weight": ("norm", 10),
    "transformer.ln_f.weight": ("norm", None),
    "transformer.wte.weight": ("embedding", None),
    "model.layers.30.self_attn.q_norm.weight": ("norm", 30),
    "model.layers.30.mlp.gate_proj.weight": ("mlp", 30),
    "model.layers.30.input_layernorm.weight": ("norm", 30),
    "model.embed_tokens.weight": ("embedding", None),
    "decoder.block.2.layer.1.EncDecAttention.k.weight": ("attention", 2),
    "encoder.block.2.layer.1.DenseReluDense.wo.weight": ("mlp", 2),
    "encoder.block.2.layer.1.layer_norm.weight": ("norm", 2),
    "encoder.block.2.layer.0.SelfAttention.k.ia3_l": ("attention", 2),
    "encoder.block.2.layer.1.DenseReluDense.wo.ia3_l": ("mlp", 2),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_role_and_depth_of_names_on_disk(name: str) -> None:
    assert (role_of(name), depth_of(name)) == GOLDEN[name]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_components_partition_every_layout(
    layout: str, granularity: str, tiny_family: Callable[[str], TinyFamily]
) -> None:
    names = list(_names(tiny_family(layout)))
    components = decompose(names, granularity)
    assert sorted(name for component in components for name in component.tensors) == sorted(names)
    assert all(component.tensors == tuple(sorted(component.tensors)) for component in components)
    assert len({component.name for component in components}) == len(components)
    random.Random(0).shuffle(names)
    assert decompose(names, granularity) == components


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_papers_granularity_gives_four_components(layout: str, tiny_family: Callable[[str], TinyFamily]) -> None:
    components = decompose(_names(tiny_family(layout)), "type")
    assert [component.name for component in components] == ["embedding", "attention", "mlp", "norm"]
    assert {role_of(name) for name in components[0].tensors} == {"embedding"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer_gives_a_stem_and_one_component_per_block(layout: str, tiny_family: Callable[[str], TinyFamily]) -> None:
    components = decompose(_names(tiny_family(layout)), "layer")
    assert [component.name for component in components] == ["stem", *(f"layer.{depth}" for depth in range(LAYERS))]
    assert {depth_of(name) for name in components[0].tensors} == {None}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(list(GOLDEN)), unique=True), st.sampled_from(GRANULARITIES), st.integers(1, 5))
def test_any_subset_of_names_is_partitioned(names: list[str], granularity: str, stages: int) -> None:
    components = decompose(names, granularity, stages=stages)
    assert sorted(name for component in components for name in component.tensors) == sorted(names)
    assert all(component.tensors for component in components)


@given(st.lists(st.integers(0, 40), min_size=1, unique=True), st.integers(1, 8))
def test_stages_are_contiguous_and_none_is_empty(depths: list[int], stages: int) -> None:
    components = decompose([f"encoder.layer.{depth}.mlp.fc1.weight" for depth in depths], "type-stage", stages=stages)
    assert len(components) == min(stages, len(depths))
    found = [
        [depth for name in component.tensors if (depth := depth_of(name)) is not None] for component in components
    ]
    assert all(max(earlier) < min(later) for earlier, later in pairwise(found))
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1


def test_norms_outside_the_blocks_join_the_stage_that_they_run_beside() -> None:
    blocks = [f"visual.transformer.resblocks.{depth}.ln_1.weight" for depth in range(6)]
    ends = [
        "visual.ln_pre.weight",
        "visual.ln_post.weight",
        "bert.embeddings.LayerNorm.weight",
        "vit.layernorm.weight",
    ]
    first, _, last = decompose([*blocks, *ends], "type-stage", stages=3)
    assert {"visual.ln_pre.weight", "bert.embeddings.LayerNorm.weight"} < set(first.tensors)
    assert {"visual.ln_post.weight", "vit.layernorm.weight"} < set(last.tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_places_in_families(family: str) -> None:
    assert places(FAMILIES[family]) == {name: Place(*place) for name, place in FAMILIES[family].items()}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_partitioned(family: str, granularity: str) -> None:
    components = decompose(FAMILIES[family], granularity)
    assert sorted(name for component in components for name in component.tensors) == sorted(FAMILIES[family])
    assert len({component.name for component in components}) == len(components)


def place_of_the_first_release(name: str) -> Place:
    """Returns where release 0.1 put a tensor: the rule of docs/adr/0003, kept here as it was."""
    segments = name.lower().split(".")
    depth = next((int(segment) for segment in segments[1:-1] if segment.isdecimal()), None)
    if any(re.search(r"norm|^ln(_|\d|$)|layer_?scale|^ls\d|^(gamma|lambda)_?\d", segment) for segment in segments):
        return Place("", "norm", depth)
    attends = any(re.search(r"attn|attention", segment) for segment in segments)
    return Place("", "embedding" if depth is None else "attention" if attends else "mlp", depth)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_are_cut_as_in_the_first_release(
    layout: str, tiny_family: Callable[[str], TinyFamily]
) -> None:
    names = _names(tiny_family(layout))
    assert places(names) == {name: place_of_the_first_release(name) for name in names}


@pytest.mark.parametrize("shapes", [open_clip(*VIT_B), open_clip(*VIT_L), gpt2(), roberta()])
def test_published_costs_are_cut_as_in_the_first_release(shapes: Mapping[str, Shape]) -> None:
    assert places(shapes) == {name: place_of_the_first_release(name) for name in shapes}


def test_an_encoder_and_its_decoder_have_components_of_their_own() -> None:
    names = list(FAMILIES["t5"])
    assert named(decompose(names, "type")) == [
        "embedding", "encoder.attention", "encoder.mlp", "encoder.norm", "decoder.attention", "decoder.mlp",
        "decoder.norm", "head",
    ]  # fmt: skip
    cross = "decoder.block.2.layer.1.EncDecAttention.k.weight"
    assert [item.name for item in decompose(names, "type") if cross in item.tensors] == ["decoder.attention"]
    assert named(decompose(names, "layer")) == [
        "stem", "encoder.stem", "encoder.layer.0", "encoder.layer.2", "decoder.layer.2",
    ]  # fmt: skip


def test_each_tower_is_cut_into_stages_of_its_own() -> None:
    vision = [f"vision_model.encoder.layers.{depth}.fc1.weight" for depth in range(6)]
    text = [f"text_model.encoder.layers.{depth}.fc1.weight" for depth in range(2)]
    assert {item.name: len(item.tensors) for item in decompose([*text, *vision, "lm_head.weight"], "type-stage")} == {
        "vision.mlp.0": 2, "vision.mlp.1": 2, "vision.mlp.2": 2, "text.mlp.0": 1, "text.mlp.1": 1, "head": 1,
    }  # fmt: skip


def test_what_the_rule_cannot_place_is_said() -> None:
    names = FAMILIES["what no rule places"]
    assert unplaced(places(names)) == ("model.layers.0.zyx.weight", "model.wvu")
    assert named(decompose(names, "type")) == ["attention", "other"]


def test_components_come_in_forward_order() -> None:
    parts = ("attn.c_attn.weight", "mlp.c_fc.weight", "ln_1.weight")
    names = ["wte.weight", "ln_f.weight", *(f"h.{depth}.{part}" for depth in range(12) for part in parts)]
    assert [component.name for component in decompose(names, "layer")][:4] == ["stem", "layer.0", "layer.1", "layer.2"]
    by_layer = [component.name for component in decompose(names, "type-layer")]
    assert by_layer[:5] == ["embedding", "attention.0", "mlp.0", "norm.0", "attention.1"]
    assert by_layer[-1] == "norm.11"


@pytest.mark.parametrize(
    ("name", "shape", "kept"),
    [
        ("h.0.attn.c_attn.bias", (2304,), True),
        ("base.k_proj.ia3_l", (768, 1), True),
        ("base.wo.ia3_l", (1, 768), True),
        ("vit.embeddings.cls_token", (1, 1, 768), True),
        ("vit.embeddings.position_embeddings", (1, 197, 768), True),
        ("visual.positional_embedding", (50, 768), True),
        ("vision_model.embeddings.position_embedding.weight", (50, 768), True),
        ("logit_scale", (), True),
        ("empty", (0,), True),
        ("bert.embeddings.position_embeddings.weight", (512, 384), False),
        ("roberta.embeddings.token_type_embeddings.weight", (1, 768), False),
        ("wpe.weight", (1024, 768), False),
        ("visual.proj", (768, 512), False),
        ("visual.conv1.weight", (768, 3, 32, 32), False),
        ("classifier.weight", (2, 768), False),
    ],
)
def test_what_keeps_full_precision(name: str, shape: tuple[int, ...], kept: bool) -> None:
    assert keeps_full_precision(name, shape) is kept


def test_unknown_granularity_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'types'.*mean 'type'"):
        decompose(["wte.weight"], "types")
    with pytest.raises(RecipeError, match="stages is 0"):
        decompose(["wte.weight"], "type-stage", stages=0)


def named(components: tuple[Component, ...]) -> list[str]:
    return [component.name for component in components]


def _names(family: TinyFamily) -> tuple[str, ...]:
    with Checkpoint(str(family.base), family.base) as base:
        return tuple(base.backbone().values())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_depths_go_from_the_first_block_to_the_last(granularity: str) -> None:
    names = ["embeddings.word.weight", "final_norm.weight", *(f"layers.{n}.mlp.weight" for n in range(5))]
    found = {
        name: depth
        for component in decompose(names, granularity)
        for name, depth in zip(component.tensors, component.depths, strict=True)
    }
    assert found == {
        "embeddings.word.weight": 0.0,
        "final_norm.weight": 1.0,
        **{f"layers.{n}.mlp.weight": n / 4 for n in range(5)},
    }
