"""Towers: where the ways to a model's stacks part, and nowhere else."""

import pytest

from hf_merge.merging.blocks import path_of
from hf_merge.merging.towers import TOWERS, rank_of, towers, words_of
from tests.merging.families import FAMILIES


def towers_of(names: list[str]) -> dict[str, str]:
    return towers({name: path_of(name) for name in names})


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_of_families(family: str) -> None:
    placed = FAMILIES[family]
    found = towers_of(list(placed))
    assert {name: found[name] for name, (_, role, _) in placed.items() if role != "head"} == {
        name: tower for name, (tower, role, _) in placed.items() if role != "head"
    }


def test_a_word_on_the_only_way_is_no_tower() -> None:
    assert set(towers_of(["encoder.layers.0.fc1.weight", "encoder.norm.weight"]).values()) == {""}
    found = towers_of(
        ["encoder.layers.0.fc1.weight", "decoder.layers.0.fc1.weight", "encoder.norm.weight", "shared.weight"]
    )
    assert list(found.values()) == ["encoder", "decoder", "encoder", ""]


def test_what_has_no_blocks_is_no_tower() -> None:
    found = towers_of(["layers.0.fc1.weight", "vision_tower.patch_embed.weight", "vision_tower.norm.weight"])
    assert set(found.values()) == {""}


def test_an_unnamed_stack_beside_another_sense_is_the_text() -> None:
    names = [
        "layers.0.fc1.weight",
        "embed_tokens.weight",
        "audio_tower.layers.0.fc1.weight",
        "projector.linear.weight",
    ]
    assert list(towers_of(names).values()) == ["text", "text", "audio", ""]
    names = ["encoder.layers.0.fc1.weight", "encoder.vision_tower.layers.0.fc1.weight", "decoder.layers.0.fc1.weight"]
    assert list(towers_of(names).values()) == ["encoder.text", "encoder.vision", "decoder"]
    names = ["dit.layers.0.fc1.weight", "vision.layers.0.fc1.weight", "text.layers.0.fc1.weight"]
    assert list(towers_of(names).values()) == ["", "vision", "text"]


def test_words_are_found_once_each_in_their_order() -> None:
    assert words_of(path_of("text_decoder.bert.encoder.layer.0.fc1.weight")) == ("text", "decoder", "encoder")
    assert words_of(path_of("encoder.encoder.layer.0.fc1.weight")) == ("encoder",)
    assert words_of(path_of("layers.0.encoder_attn.k_proj.weight")) == ()
    assert words_of(path_of("text_projection")) == ("text",)


def test_towers_are_sorted_as_they_run() -> None:
    assert sorted(["decoder", "text.decoder", "vision", "", "text.encoder", "encoder"], key=rank_of) == [
        "", "vision", "encoder", "text.encoder", "text.decoder", "decoder",
    ]  # fmt: skip
    assert [rank_of(tower) for tower in TOWERS] == [(index,) for index in range(len(TOWERS))]
