"""Names that trunks do not align: a prefix more or less, before all names or some, and towers that nobody runs."""

import pytest

from hf_merge.storing.counterparts import backbone_beside, counterpart, prefixes_of, unused_in_all


LAYER = "layers.0.attention.query.weight"
CLIP = (
    "logit_scale", "text_model.encoder.layers.0.mlp.fc1.weight", "text_model.embeddings.token_embedding.weight",
    "text_projection.weight", "vision_model.encoder.layers.0.mlp.fc1.weight",
    "vision_model.embeddings.patch_embedding.weight", "visual_projection.weight",
)  # fmt: skip


def same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}


def test_prefixes_are_leading_segments_without_numbers() -> None:
    assert prefixes_of(["model.decoder.layers.0.w", "score.weight", "layers.3.w"]) == (
        "layers.", "model.", "score.", "model.decoder.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        (LAYER, LAYER, LAYER),
        (LAYER, f"model.{LAYER}", f"model.{LAYER}"),
        (LAYER, f"model.decoder.{LAYER}", f"model.decoder.{LAYER}"),
        (f"model.{LAYER}", LAYER, LAYER),
        (f"model.decoder.{LAYER}", LAYER, LAYER),
        (f"encoder.{LAYER}", f"decoder.{LAYER}", None),
        ("norm.weight", "model.layers.0.norm.weight", None),
        ("w", "bias", None),
    ],
)
def test_a_counterpart_has_a_prefix_more_or_less(name: str, known: str, expected: str | None) -> None:
    assert counterpart(name, {known}, prefixes_of([known])) == expected


def test_a_backbone_whose_names_fit_stays_as_it_is() -> None:
    own = {"embed.weight": "bert.embed.weight", "extra.weight": "bert.extra.weight"}
    assert backbone_beside({"embed.weight": "embed.weight"}, own, tuple(own.values())) == own


def test_a_decoder_is_found_below_its_model() -> None:
    base = {"embed_tokens.weight": "decoder.embed_tokens.weight", LAYER: f"decoder.{LAYER}"}
    names = ("model.decoder.embed_tokens.weight", f"model.decoder.{LAYER}", "score.weight")
    own = {name.removeprefix("model."): name for name in names[:2]}
    assert backbone_beside(base, own, names) == {key: f"model.{name}" for key, name in base.items()}


def test_names_of_which_only_some_have_a_prefix_are_found() -> None:
    base = same(("embeddings.cls_token", LAYER))
    names = ("vit.embeddings.cls_token", LAYER, "classifier.weight")
    found = backbone_beside(base, same(names), names)
    assert found == {"embeddings.cls_token": "vit.embeddings.cls_token", LAYER: LAYER}


def test_what_stands_among_the_backbones_modules_is_no_head() -> None:
    names = (f"net.{LAYER}", "net.extra.weight", "other.blocks.0.mlp.weight", "classifier.weight")
    found = backbone_beside(same((LAYER,)), same(names), names)
    assert set(found.values()) == {f"net.{LAYER}", "net.extra.weight", "other.blocks.0.mlp.weight"}


def test_a_tower_that_no_fine_tune_has_is_unused_with_what_joins_it() -> None:
    vision = tuple(name for name in CLIP if name.startswith("vision_model"))
    assert unused_in_all(same(CLIP), [same(vision), same(vision)]) == set(CLIP) - set(vision)


def test_a_tower_that_one_fine_tune_has_is_used() -> None:
    vision = tuple(name for name in CLIP if name.startswith("vision_model"))
    assert unused_in_all(same(CLIP), [same(vision), same(CLIP)]) == frozenset()


def test_a_block_that_every_fine_tune_lacks_is_no_tower() -> None:
    base = same(("embeddings.weight", LAYER, LAYER.replace("0", "1")))
    assert unused_in_all(base, [same(("embeddings.weight", LAYER))]) == frozenset()
    assert unused_in_all(base, [{}]) == frozenset()
