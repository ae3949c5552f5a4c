"""Inputs: batches by length and back, images, and tokenizers and processors from folders that may be damaged."""

import json
import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertTokenizer, PreTrainedTokenizerFast, ViTImageProcessorPil

from hf_merge.errors import CheckpointDamaged, DatasetError, LimitExceeded, RecipeError, UntrustedContentError
from hf_merge.modeling.inputs import (
    Batch,
    as_rgb,
    image_batches,
    load_image_processor,
    load_tokenizer,
    restore,
    text_batches,
)


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple("abcdefgh")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    BertTokenizer(vocab=vocabulary, model_max_length=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Any:
    return load_tokenizer(bert_folder)


@pytest.fixture
def damaged(bert_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tokenizer folder, to damage."""
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def warned() -> Iterator[list[logging.LogRecord]]:
    """Collects what transformers logs at its ordinary verbosity."""
    handler = logging.handlers.BufferingHandler(1000)
    logger, level = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    logger.addHandler(handler)
    yield handler.buffer
    logger.removeHandler(handler)
    transformers.logging.set_verbosity(level)


def words_only(folder: Path, **tokens: str) -> Path:
    """Saves a tokenizer without any template, as decoders have."""
    model = Tokenizer(
        WordLevel({word: index for index, word in enumerate(("<unk>", "<eos>", *WORDS))}, unk_token="<unk>")
    )
    model.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", **tokens).save_pretrained(folder)
    return folder


def picture(mode: str = "RGB", size: tuple[int, int] = (5, 7)) -> PIL.Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    return PIL.Image.fromarray(noise).convert(mode)


# Texts


def test_rows_are_sorted_by_length_and_padded_to_the_longest_of_their_batch(bert: Any) -> None:
    batches = text_batches(bert, ["a b c d e", "a", "b c", "d", "e f"], None, batch_size=2, max_length=None)
    assert [batch.rows.tolist() for batch in batches] == [[1, 3], [2, 4], [0]]
    assert all(batch.rows.dtype == np.int64 for batch in batches)
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(2, 3), (2, 4), (1, 7)]
    assert set(batches[0].inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert all(value.dtype == torch.int64 for value in batches[0].inputs.values())


def test_padding_is_masked_and_equals_what_the_tokenizer_itself_gives(bert: Any) -> None:
    texts, pairs = ["a b c", "d", "e f"], ["g", "h a b c", "b"]
    (batch,) = text_batches(bert, texts, pairs, batch_size=8)
    expected = bert([texts[row] for row in batch.rows], [pairs[row] for row in batch.rows], padding=True)
    for name, value in batch.inputs.items():
        assert value.tolist() == expected[name]
    assert batch.inputs["attention_mask"].sum(1).tolist() == sorted([7, 8, 6])
    assert 1 in batch.inputs["token_type_ids"]


@pytest.mark.parametrize(("max_length", "expected"), [(None, 16), (6, 6), (1000, 16)])
def test_rows_are_cut_to_the_limit(bert: Any, max_length: int | None, expected: int) -> None:
    (batch,) = text_batches(bert, ["a " * 900], None, batch_size=1, max_length=max_length)
    assert batch.inputs["input_ids"].shape == (1, expected)
    assert batch.inputs["input_ids"][0, -1] == bert.sep_token_id


def test_rows_are_cut_to_512_where_the_tokenizer_states_no_limit(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(words_only(tmp_path, eos_token="<eos>"))
    (batch,) = text_batches(tokenizer, ["a " * 900], None, batch_size=1)
    assert batch.inputs["input_ids"].shape == (1, 512)


def test_rows_are_cut_to_the_positions_of_a_model_whose_tokenizer_states_no_limit(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(words_only(tmp_path, eos_token="<eos>"))
    config = {"model_type": "bert", "max_position_embeddings": 24}
    (batch,) = text_batches(tokenizer, ["a " * 900], None, batch_size=1, max_length=1024, config=config)
    assert batch.inputs["input_ids"].shape == (1, 24)


def test_a_limit_without_room_for_text_is_refused(bert: Any) -> None:
    text_batches(bert, ["a b"], None, batch_size=1, max_length=3)
    with pytest.raises(
        RecipeError, match=r"max_length 2 leaves no room: this tokenizer adds 2 special .* Give 3 or more"
    ):
        text_batches(bert, ["a b"], None, batch_size=1, max_length=2)
    (batch,) = text_batches(bert, ["a b c"], ["d e f"], batch_size=1, max_length=5)
    assert batch.inputs["input_ids"].shape == (1, 5)
    with pytest.raises(RecipeError, match=r"max_length 4 leaves no room.*adds 3"):
        text_batches(bert, ["a b"], ["c"], batch_size=1, max_length=4)


def test_no_rows_give_no_batches(bert: Any) -> None:
    assert text_batches(bert, [], None, batch_size=4) == []
    assert image_batches(ViTImageProcessorPil(), [], batch_size=4) == []


def test_texts_and_pairs_of_different_number_are_refused(bert: Any) -> None:
    with pytest.raises(DatasetError, match="2 texts but 1 second texts"):
        text_batches(bert, ["a", "b"], ["c"], batch_size=4)


def test_a_row_without_tokens_is_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(words_only(tmp_path, eos_token="<eos>"))
    with pytest.raises(DatasetError, match=r"Row 1 \('  '\) gives no tokens"):
        text_batches(tokenizer, ["a", "  ", "b"], None, batch_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    rows=st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=20), batch_size=st.integers(1, 7)
)
def test_restored_outputs_are_in_the_order_of_the_rows(bert: Any, rows: list[list[str]], batch_size: int) -> None:
    texts = [" ".join(row) for row in rows]
    batches = text_batches(bert, texts, None, batch_size=batch_size)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(len(rows)))
    assert all(len(batch.rows) <= batch_size for batch in batches)
    lengths = [batch.inputs["attention_mask"].sum(1) for batch in batches]
    assert torch.equal(torch.cat(lengths), torch.cat(lengths).sort().values)
    assert restore(batches, lengths).tolist() == [len(row) + 2 for row in rows]
    assert restore(batches[::-1], lengths[::-1]).tolist() == [len(row) + 2 for row in rows]


# Restoring


def batch_of(*rows: int) -> Batch:
    return Batch({}, np.array(rows, dtype=np.int64))


def test_restore_keeps_further_dimensions_and_type() -> None:
    outputs = [
        torch.tensor([[2.0, 2.5], [0.0, 0.5]], dtype=torch.bfloat16),
        torch.tensor([[1.0, 1.5]], dtype=torch.bfloat16),
    ]
    restored = restore([batch_of(2, 0), batch_of(1)], outputs)
    assert restored.dtype == torch.bfloat16
    assert restored.tolist() == [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [([], []), ([batch_of(0)], []), ([batch_of(0, 1)], [1]), ([batch_of(0, 0)], [2]), ([batch_of(0, 2)], [2])],
)
def test_outputs_that_do_not_fit_the_batches_are_refused(batches: list[Batch], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="batches"):
        restore(batches, [torch.zeros(size) for size in sizes])


# Images


def test_images_are_processed_in_their_order(vit_folder: Path) -> None:
    processor = load_image_processor(vit_folder)
    images = [picture("RGB", (side, 9)) for side in range(4, 9)]
    batches = image_batches(processor, images, batch_size=2)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch.inputs["pixel_values"].shape for batch in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert batches[0].inputs["pixel_values"].dtype == torch.float32
    alone = image_batches(processor, images[3:4], batch_size=1)[0].inputs["pixel_values"]
    assert torch.equal(batches[1].inputs["pixel_values"][1:], alone)
    assert restore(batches, [batch.inputs["pixel_values"][:, 0, 0, 0] for batch in batches]).shape == (5,)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_every_mode_become_rgb(vit_folder: Path, mode: str) -> None:
    assert as_rgb(picture(mode)).mode == "RGB"
    (batch,) = image_batches(load_image_processor(vit_folder), [picture(mode), picture()], batch_size=2)
    assert batch.inputs["pixel_values"].shape == (2, 3, 8, 8)


def test_a_palette_with_transparency_becomes_rgb_without_a_warning() -> None:
    image = picture("P")
    image.info["transparency"] = bytes(range(200))
    assert as_rgb(image).mode == "RGB"
    kept = picture()
    assert as_rgb(kept) is kept


def test_images_that_make_no_tensor_are_named() -> None:
    processor = ViTImageProcessorPil(do_resize=False)
    with pytest.raises(DatasetError, match=r"ViTImageProcessorPil cannot process images 2 to 3: .*do_resize"):
        image_batches(processor, [picture()] * 3 + [picture(size=(6, 6))], batch_size=2)


def test_image_processor_loads_without_a_word_about_torchvision(
    vit_folder: Path, warned: list[logging.LogRecord], capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((vit_folder / "preprocessor_config.json").read_text())
    for name in ("ViTImageProcessor", "ViTImageProcessorFast", "BitImageProcessor"):
        (vit_folder / "preprocessor_config.json").write_text(json.dumps(config | {"image_processor_type": name}))
        assert type(load_image_processor(vit_folder)).__name__.endswith("Pil")
    assert [record.getMessage() for record in warned] == []
    assert capfd.readouterr() == ("", "")


# Loading


def test_tokenizer_loads_without_a_word(
    bert_folder: Path, warned: list[logging.LogRecord], capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(bert_folder)
    text_batches(tokenizer, ["a b", "c"], None, batch_size=2)
    assert tokenizer.pad_token == "[PAD]"
    assert [record.getMessage() for record in warned] == []
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(words_only(tmp_path, eos_token="<eos>"))
    assert tokenizer.pad_token == "<eos>"
    (batch,) = text_batches(tokenizer, ["a b c", "d"], None, batch_size=2)
    assert batch.inputs["input_ids"].tolist() == [[5, 1, 1], [2, 3, 4]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    words_only(tmp_path)
    with pytest.raises(
        CheckpointDamaged, match=rf"{tmp_path} has neither a padding.*Name one of its tokens as 'pad_token'"
    ):
        load_tokenizer(tmp_path)
    bare = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointDamaged, match="has neither a padding"):
        text_batches(bare, ["a"], None, batch_size=1)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (load_tokenizer, "cannot be loaded: .* Replace its"),
        (load_image_processor, "so nothing says how pictures"),
    ],
)
def test_missing_folder_and_empty_folder_are_named(load: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointDamaged, match=f"There is no folder {tmp_path / 'gone'}"):
        load(tmp_path / "gone")
    with pytest.raises(CheckpointDamaged, match=rf"in {tmp_path},? {said}"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "{}",
        "[]",
        '["a"]',
        '{"added_tokens": [], "model": {"type": "Nope"}}',
        '{"added_tokens": [], "model": {"type": "WordPiece", "vocab": 3}}',
        "[" * 100_000,
    ],
)
def test_damaged_tokenizer_is_named(damaged: Path, content: str) -> None:
    (damaged / "tokenizer.json").write_text(content)
    with pytest.raises(
        CheckpointDamaged, match=rf"The tokenizer in {damaged} cannot be loaded: .* Replace its tokenizer"
    ):
        load_tokenizer(damaged)


def test_a_tokenizer_whose_vocabulary_is_missing_is_refused(damaged: Path) -> None:
    (damaged / "tokenizer.json").unlink()
    with pytest.raises(CheckpointDamaged, match="knows 5 tokens, all of them special ones: its vocabulary is missing"):
        load_tokenizer(damaged)


@pytest.mark.parametrize("content", ["{", "[1]", "3", "[" * 100_000, '{"tokenizer_class": 3}'])
def test_damaged_configuration_is_named(damaged: Path, vit_folder: Path, content: str) -> None:
    for name, load in (("tokenizer_config.json", load_tokenizer), ("preprocessor_config.json", load_image_processor)):
        (damaged / name).write_text(
            content.replace("tokenizer_class", "image_processor_type") if "pre" in name else content
        )
        with pytest.raises(CheckpointDamaged, match=str(damaged)):
            load(damaged)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("tokenizer_config.json", load_tokenizer),
        ("preprocessor_config.json", load_image_processor),
        ("processor_config.json", load_image_processor),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_code_that_comes_with_a_checkpoint_is_refused(tmp_path: Path, name: str, load: Any, nested: bool) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    content = {"auto_map": {"AutoTokenizer": ["evil.T", None], "AutoImageProcessor": "evil.P"}}
    (tmp_path / name).write_text(json.dumps({"image_processor": content} if nested else content))
    with pytest.raises(UntrustedContentError, match=rf"{name} asks to run code.*remove 'auto_map'"):
        load(tmp_path)


def test_code_named_in_the_model_configuration_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None], "AutoImageProcessor": "evil.P"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for load in (load_tokenizer, load_image_processor):
        with pytest.raises(CheckpointDamaged, match="cannot be loaded"):
            load(tmp_path)


def test_an_oversized_file_is_not_read(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_merge.modeling.reader_files.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(LimitExceeded, match="more than the 100 allowed"):
        load_tokenizer(damaged)


def test_nothing_but_the_listed_damage_is_blamed_on_the_folder(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(bert_folder)
