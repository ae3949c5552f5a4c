"""Blocks: which numbers of a name count, and depths that rise as a model runs."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.merging.blocks import depth_of, depths, path_of
from tests.merging.families import FAMILIES


def depths_of(names: list[str]) -> list[int | None]:
    found = depths({name: path_of(name) for name in names})
    return [found[name] for name in names]


@pytest.mark.parametrize(
    ("name", "before", "stack", "position", "inside"),
    [
        ("bert.encoder.layer.3.output.dense.weight", "bert encoder", "layer", (3,), "output dense weight"),
        ("encoder.layers.1.blocks.4.mlp.fc1.bias", "encoder", "layers blocks", (1, 4), "mlp fc1 bias"),
        ("encoder.block.2.0.attention.self.sr.bias", "encoder", "block", (2, 0), "attention self sr bias"),
        ("encoder.block.2.layer.1.SelfAttention.k.weight", "encoder", "block", (2,), "layer 1 selfattention k weight"),
        ("layers.3.mlp.experts.17.w1.weight", "", "layers", (3,), "mlp experts 17 w1 weight"),
        ("encoder.layer.2.transformer.layer.1.output.dense.bias", "encoder", "layer transformer layer", (2, 1),
         "output dense bias"),
        ("encoder.stages.0.layers.1.layer.2.convolution.weight", "encoder", "stages layers", (0, 1),
         "layer 2 convolution weight"),
        ("stages.2.layers.1.gamma", "", "stages layers", (2, 1), "gamma"),
    ],
)  # fmt: skip
def test_names_are_taken_apart(name: str, before: str, stack: str, position: tuple[int, ...], inside: str) -> None:
    path = path_of(name)
    assert (path.before, path.stack) == (tuple(before.split()), tuple(stack.split()))
    assert (path.position, path.inside) == (position, tuple(inside.split()))
    assert path.in_block


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "classifier.0.weight",
        "mlp_head.layers.1.weight",
        "bbox_embed.2.layers.0.weight",
        "visual.merger.mlp.0.weight",
        "encoder.fpn_blocks.1.conv1.conv.weight",
        "encoder.patch_embeddings.3.proj.weight",
        "feature_extractor.conv_layers.4.conv.weight",
        "decoder.ref_point_head.layers.1.bias",
        "0.weight",
        "layers.7",
        "",
    ],
)
def test_lists_that_are_no_stacks_have_no_depth(name: str) -> None:
    assert depth_of(name) is None
    assert depths_of([name]) == [None]


def test_bare_layers_count_only_along_a_stack() -> None:
    stack = [f"attentions.{index}.q_lin.weight" for index in range(3)]
    alongside = [f"layer_norm1.{index}.weight" for index in range(3)]
    others = [f"projections.{index}.weight" for index in range(2)]
    assert depths_of([*stack, *alongside, *others]) == [0, 1, 2, 0, 1, 2, None, None]
    assert depths_of(alongside) == [None] * 3


def test_what_stands_beside_the_blocks_of_a_stage_joins_the_first_or_the_last() -> None:
    blocks = [f"encoder.stages.{stage}.layers.{layer}.fc1.weight" for stage in range(3) for layer in range(2)]
    opening = [f"encoder.stages.{stage}.downsampling_layer.1.weight" for stage in (1, 2)]
    closing = [f"encoder.stages.{stage}.downsample.reduction.weight" for stage in (0, 1)]
    norms = [f"encoder.stages.{stage}.layer_norm.weight" for stage in range(3)]
    assert depths_of([*blocks, *opening, *closing, *norms]) == [0, 1, 2, 3, 4, 5, 2, 4, 1, 3, 1, 3, 5]


def test_each_module_counts_its_own_stages() -> None:
    staged = [f"down.{stage}.layers.{layer}.fc1.weight" for stage in range(2) for layer in range(2)]
    assert depths_of([*staged, "bridge.bridge.1.fc1.weight"]) == [0, 1, 2, 3, 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True))
def test_blocks_in_stages_are_counted_through(positions: list[tuple[int, int]]) -> None:
    names = [f"encoder.layers.{stage}.blocks.{block}.fc1.weight" for stage, block in sorted(positions)]
    assert depths_of(names) == list(range(len(names)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_changes_no_depth(family: str) -> None:
    names = list(FAMILIES[family])
    found = depths_of(names)
    assert depths_of([f"model.{name}" for name in names]) == found
    by_block = sorted(depth for depth in found if depth is not None)
    assert all(later - earlier >= 0 for earlier, later in pairwise(by_block))
