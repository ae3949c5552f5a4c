from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, Gemma3Config, PreTrainedModel

from hf_merge.errors import MalformedChainMap, ModelMismatch
from hf_merge.modeling.features import ALL_LAYERS, FeatureExtractor, base_names, padded_behind
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import Family
from tests.families.catalogue import FAMILIES, SIDE, WORDS
from tests.modeling.test_assembly import PAD, batch_of, opened
from tests.modeling.test_language import opened_speakers
from tests.tiny_models import LAYOUTS, TEXT_LAYOUTS, WIDTH, TinyFamily
from tests.tiny_speakers import SPEAKERS, SpeakingFamily, speaking_tokenizer


@pytest.fixture
def bert(tiny_family: Callable[[str], TinyFamily]) -> Iterator[Family]:
    with opened(tiny_family("bert")) as family:
        yield family


def extractor(family: Family, layers: int = 0) -> FeatureExtractor:
    base = family.base
    return FeatureExtractor.from_base(base.config, list(family.shapes), base.trunk, layers, base)


def padded(batch: dict[str, Tensor], layout: str, more: int) -> dict[str, Tensor]:
    filling = {"input_ids": PAD[layout], "attention_mask": 0}
    return {name: torch.nn.functional.pad(value, (0, more), value=filling[name]) for name, value in batch.items()}


@pytest.mark.parametrize("layers", [0, 1, ALL_LAYERS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_one_vector_per_row(
    tiny_family: Callable[[str], TinyFamily], layout: str, layers: int
) -> None:
    with opened(tiny_family(layout)) as family:
        features = extractor(family, layers).pooled(batch_of(layout))
    assert features.shape == (6, WIDTH)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert features.std(dim=0).min() > 0


@pytest.mark.parametrize("layers", [0, 2, ALL_LAYERS])
@pytest.mark.parametrize("layout", TEXT_LAYOUTS)
def test_padding_does_not_change_features(tiny_family: Callable[[str], TinyFamily], layout: str, layers: int) -> None:
    batch = batch_of(layout)
    with opened(tiny_family(layout)) as family:
        eyes = extractor(family, layers)
        assert torch.allclose(eyes.pooled(padded(batch, layout, 9)), eyes.pooled(batch), atol=1e-5)
        for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
            assert torch.allclose(eyes.pooled(alone)[0], eyes.pooled(batch)[row], atol=1e-5)


def test_a_mask_of_nothing_gives_zeros(bert: Family) -> None:
    inputs = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[0, 0]])}
    assert torch.equal(extractor(bert).pooled(inputs), torch.zeros(1, WIDTH))


@pytest.mark.parametrize("layers", [0, 1, ALL_LAYERS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stored_tensors_give_the_very_same_features(
    tiny_family: Callable[[str], TinyFamily], layout: str, layers: int
) -> None:
    batch = batch_of(layout)
    with opened(tiny_family(layout)) as family:
        fresh = extractor(family, layers)
        names = base_names(list(fresh.tensors))
        loaded = FeatureExtractor(family.base.config, names, family.base.trunk, layers, fresh.tensors)
    assert torch.equal(loaded.pooled(batch), fresh.pooled(batch))
    assert loaded.layers == fresh.layers == layers


def test_features_are_close_to_those_of_the_unquantised_model(bert: Family) -> None:
    batch = batch_of("bert")
    eyes = extractor(bert)
    ids, mask = batch["input_ids"], batch["attention_mask"].unsqueeze(-1)
    words = bert.base.read("embeddings.word_embeddings.weight")[ids]
    places = bert.base.read("embeddings.position_embeddings.weight")[: ids.shape[1]]
    kinds = bert.base.read("embeddings.token_type_embeddings.weight")[0]
    states = torch.nn.functional.layer_norm(words + places + kinds, (WIDTH,), eps=1e-12)
    assert torch.allclose(eyes.pooled(batch), (states * mask).sum(1) / mask.sum(1), atol=0.05)


def test_only_the_blocks_asked_for_are_stored_and_matrices_in_8_bits(bert: Family) -> None:
    stored = extractor(bert, 1).tensors
    assert stored["embeddings.word_embeddings.weight"].dtype == torch.uint8
    assert "encoder.layer.0.attention.self.query.weight" in stored
    assert not any(name.startswith(("encoder.layer.1.", "pooler.")) for name in stored)


def test_scales_are_not_mistaken_for_tensors() -> None:
    stored = ["a", "a.scale", "a.zero_point", "b.scale", "b.scale.scale", "c"]
    assert base_names(stored) == ["a", "b.scale", "c"]


def test_tensors_that_the_codec_would_not_write_are_refused(bert: Family) -> None:
    good = extractor(bert).tensors
    name = "embeddings.word_embeddings.weight"
    for changes in (
        {f"{name}.scale": good[f"{name}.scale"][:3]},
        {f"{name}.zero_point": torch.tensor(1, dtype=torch.int32)},
        {f"{name}.scale": good[f"{name}.scale"] * torch.inf},
        {"embeddings.LayerNorm.bias": torch.zeros(WIDTH, dtype=torch.int64)},
        {"embeddings.LayerNorm.bias": torch.full((WIDTH,), torch.nan)},
    ):
        with pytest.raises(MalformedChainMap, match=r"feature tensor 'embeddings\."):
            loaded(bert, good | changes)


def test_tensors_that_nothing_needs_are_refused(bert: Family) -> None:
    good = extractor(bert).tensors
    for name in ("pooler.dense.bias", "embeddings.LayerNorm.bias.more", "encoder.layer.0.output.dense.bias"):
        with pytest.raises(MalformedChainMap, match=f"'{name}', which they have no use for"):
            loaded(bert, good | {name: torch.zeros(WIDTH)})


def test_missing_or_misshapen_tensors_are_refused(bert: Family) -> None:
    good = extractor(bert).tensors
    lacking = {name: tensor for name, tensor in good.items() if name != "embeddings.LayerNorm.bias"}
    with pytest.raises(ModelMismatch, match=r"embeddings\.LayerNorm\.bias"):
        loaded(bert, lacking)
    with pytest.raises(ModelMismatch, match=r"has shape \[3\]"):
        loaded(bert, good | {"embeddings.LayerNorm.bias": torch.zeros(3)})
    without_scale = {name: tensor for name, tensor in good.items() if not name.endswith(".scale")}
    with pytest.raises(MalformedChainMap, match="uint8 without scale"):
        loaded(bert, without_scale)


def loaded(family: Family, tensors: dict[str, Tensor]) -> FeatureExtractor:
    return FeatureExtractor(family.base.config, base_names(list(tensors)), family.base.trunk, 0, tensors)


# Families beyond the tiny ones: what is pooled, and which part of the model looks


def base_of(name: str, folder: Path) -> tuple[PreTrainedModel, Checkpoint]:
    """Returns a random base of a family, and the same as a checkpoint."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(FAMILIES[name].config())
    model.train(False)
    model.save_pretrained(folder)
    return model, Checkpoint(name, folder)


def eyes_of(base: Checkpoint, layers: int) -> FeatureExtractor:
    return FeatureExtractor.from_base(base.config, list(base.backbone().values()), base.trunk, layers, base)


def sentences() -> dict[str, Tensor]:
    ids = torch.randint(4, WORDS, (3, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("name", ["resnet", "convnext", "bit", "regnet"])
def test_the_grid_of_a_convolutional_network_is_pooled(name: str, tmp_path: Path) -> None:
    model, base = base_of(name, tmp_path)
    with base, torch.inference_mode():
        features = eyes_of(base, ALL_LAYERS).pooled(pixels())
        grid = model(**pixels()).last_hidden_state
    assert features.shape == grid.shape[:2]
    torch.testing.assert_close(features, grid.mean(dim=(2, 3)), rtol=0.05, atol=0.05 * float(grid.std()))


@pytest.mark.parametrize("name", ["vit", "dinov2_with_registers", "swin"])
def test_all_positions_of_an_image_are_pooled(name: str, tmp_path: Path) -> None:
    model, base = base_of(name, tmp_path)
    with base, torch.inference_mode():
        features = eyes_of(base, ALL_LAYERS).pooled(pixels())
        states = model(**pixels()).last_hidden_state
    torch.testing.assert_close(features, states.mean(dim=1), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("layers", [0, 1, ALL_LAYERS])
def test_of_an_encoder_and_its_decoder_the_encoder_looks(name: str, layers: int, tmp_path: Path) -> None:
    model, base = base_of(name, tmp_path)
    encoder = model.get_encoder()
    inputs = sentences()
    with base, torch.inference_mode():
        eyes = eyes_of(base, layers)
        features = eyes.pooled(inputs)
        states = encoder(**inputs).last_hidden_state
    assert not any(stored.startswith("decoder.") for stored in eyes.tensors)
    assert features.shape == (3, states.shape[2])
    if layers == ALL_LAYERS:
        mask = inputs["attention_mask"].unsqueeze(-1)
        expected = (states * mask).sum(dim=1) / mask.sum(dim=1)
        torch.testing.assert_close(features, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("layers", [0, 1, ALL_LAYERS])
def test_of_a_base_of_texts_with_a_vision_tower_the_language_model_looks(layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**blocks, "vocab_size": WORDS, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 40}
    vision = {**blocks, "image_size": SIDE, "patch_size": 8}
    model = AutoModel.from_config(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).eval()
    model.save_pretrained(tmp_path)
    inputs = sentences()
    with Checkpoint("gemma3", tmp_path) as base, torch.inference_mode():
        eyes = eyes_of(base, layers)
        features = eyes.pooled(inputs)
        again = FeatureExtractor(base.config, base_names(list(eyes.tensors)), base.trunk, layers, eyes.tensors)
        states = model(**inputs).last_hidden_state
    assert not any("vision" in stored for stored in eyes.tensors)
    assert torch.equal(again.pooled(inputs), features)
    if layers == ALL_LAYERS:
        mask = inputs["attention_mask"].unsqueeze(-1)
        torch.testing.assert_close(features, (states * mask).sum(dim=1) / mask.sum(dim=1), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("layers", [0, 1, ALL_LAYERS])
def test_the_real_frames_of_a_sound_are_pooled(layers: int, tmp_path: Path) -> None:
    model, base = base_of("wav2vec2", tmp_path)
    samples = torch.randn(2, 900, generator=torch.Generator().manual_seed(0))
    samples[1, 600:] = 0
    mask = torch.tensor([[1] * 900, [1] * 600 + [0] * 300])
    with base, torch.inference_mode():
        eyes = eyes_of(base, layers)
        together = eyes.pooled({"input_values": samples, "attention_mask": mask})
        alone = eyes.pooled({"input_values": samples[1:, :600], "attention_mask": mask[1:, :600]})
        states = model(samples[:1]).last_hidden_state
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    if layers == ALL_LAYERS:
        torch.testing.assert_close(together[:1], states.mean(dim=1), rtol=0.1, atol=0.1)


def test_of_whisper_the_encoder_hears(tmp_path: Path) -> None:
    model, base = base_of("whisper", tmp_path)
    heard = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0))
    with base, torch.inference_mode():
        eyes = eyes_of(base, ALL_LAYERS)
        features = eyes.pooled({"input_features": heard})
        states = model.get_encoder()(heard).last_hidden_state
    assert not any(stored.startswith("decoder.") for stored in eyes.tensors)
    torch.testing.assert_close(features, states.mean(dim=1), rtol=0.1, atol=0.1)


def test_a_model_that_cannot_run_without_blocks_runs_one(tmp_path: Path) -> None:
    _, base = base_of("deberta-v2", tmp_path)
    with base:
        none, one = eyes_of(base, 0), eyes_of(base, 1)
        assert torch.equal(none.pooled(sentences()), one.pooled(sentences()))
    assert none.layers == 0


def test_blocks_in_stages_are_not_counted_and_all_run(tmp_path: Path) -> None:
    _, base = base_of("resnet", tmp_path)
    with base:
        assert torch.equal(eyes_of(base, 1).pooled(pixels()), eyes_of(base, ALL_LAYERS).pooled(pixels()))


def test_features_of_fused_experts_are_those_of_the_model(tmp_path: Path) -> None:
    model, base = base_of("mixtral", tmp_path)
    inputs = {"input_ids": sentences()["input_ids"]}
    with base, torch.inference_mode():
        features = eyes_of(base, ALL_LAYERS).pooled(inputs)
        expected = model(**inputs).last_hidden_state.mean(dim=1)
    assert float(torch.nn.functional.cosine_similarity(features, expected).min()) > 0.95


# Language models


@pytest.mark.parametrize("layers", [0, 2, ALL_LAYERS])
@pytest.mark.parametrize("layout", SPEAKERS)
def test_neither_padding_nor_its_side_changes_what_is_seen_of_a_prompt(
    tiny_speakers: Callable[[str], SpeakingFamily], layout: str, layers: int
) -> None:
    prompts = ["the old dog", "cat", "snow today the sky near wind"]
    with opened_speakers(tiny_speakers(layout)) as family:
        eyes = extractor(family, layers)
    tokenizer = speaking_tokenizer(layout)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    alone = torch.cat([eyes.pooled(dict(tokenizer([prompt], return_tensors="pt"))) for prompt in prompts])
    assert alone.shape == (3, WIDTH) and alone.std(dim=0).min() > 0
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = dict(tokenizer(prompts, padding=True, return_tensors="pt"))
        assert torch.allclose(eyes.pooled(batch), alone, atol=1e-5)


@pytest.mark.parametrize("layout", ["t5", "bart"])
def test_of_an_encoder_decoder_the_encoder_alone_is_stored(
    tiny_speakers: Callable[[str], SpeakingFamily], layout: str
) -> None:
    with opened_speakers(tiny_speakers(layout)) as family:
        names = set(base_names(list(extractor(family, ALL_LAYERS).tensors)))
        encoders = {name for name in family.shapes if name.removeprefix("model.").startswith("encoder.")}
    assert names > encoders and len(names - encoders) == 1, "the encoder and the table of words"


def test_batches_are_moved_whole_to_the_right() -> None:
    batch = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 1]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "other": torch.tensor([1, 2]),
    }
    moved = padded_behind(batch)
    assert moved["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 1]]
    assert moved["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert torch.equal(moved["other"], batch["other"])
    assert padded_behind(moved)["input_ids"] is moved["input_ids"], "what is right stays as it is"
