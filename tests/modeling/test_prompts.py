from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from hf_merge.errors import DatasetError, RecipeError
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.options import IGNORED
from hf_merge.modeling.prompts import Prompter
from tests.tiny_models import POSITIONS
from tests.tiny_speakers import SPEAKERS, speaker_config, speaking_tokenizer


@pytest.fixture
def prompter_of(tmp_path: Path) -> Callable[..., Prompter]:
    def prompter(layout: str, config: Mapping[str, Any] | None = None, **settings: Any) -> Prompter:
        if not tmp_path.joinpath(layout).exists():
            speaking_tokenizer(layout).save_pretrained(tmp_path / layout)
            speaker_config(layout).save_pretrained(tmp_path / layout)
        kind: Any = "seq2seq" if layout in ("t5", "bart") else "causal"
        tokenizer = load_tokenizer(tmp_path / layout)
        made = {} if config is None else config
        return Prompter(tokenizer, kind, made, **{"batch_size": 8, **settings})

    return prompter


LONG = " ".join(["small"] * 60)


@pytest.mark.parametrize("layout", SPEAKERS)
def test_options_are_whole_after_every_prompt(layout: str, prompter_of: Callable[..., Prompter]) -> None:
    prompter = prompter_of(layout)
    options = [" cat", " dog near dog near"]
    batches = prompter.option_batches([LONG, "cat", "the old dog"], options)
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2]
    for batch in batches:
        labels = batch.inputs["labels"]
        assert labels.shape[:2] == (len(batch.rows), 2)
        for row in labels:
            said = [[token for token in option.tolist() if token != IGNORED] for option in row]
            texts = [text.split() for text in prompter.decode(said)]
            assert texts == [option.split() for option in options]
        assert batch.inputs["input_ids"].shape[-1] <= POSITIONS
        assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_a_decoders_prompt_loses_its_beginning_and_keeps_its_first_token(
    layout: str, prompter_of: Callable[..., Prompter]
) -> None:
    prompter = prompter_of(layout, max_length=6)
    (batch,) = prompter.prompt_batches([f"{LONG} which animal"], 3)
    ids = batch.inputs["input_ids"][0].tolist()
    assert len(ids) == 6
    assert prompter.decode([ids])[0].split()[-2:] == ["which", "animal"]
    assert (ids[0] == 1) == (layout == "llama")


def test_an_encoders_prompt_loses_its_end(prompter_of: Callable[..., Prompter]) -> None:
    prompter = prompter_of("t5", max_length=6)
    (batch,) = prompter.prompt_batches([f"which animal {LONG}"], 3)
    ids = batch.inputs["input_ids"][0].tolist()
    assert prompter.decode([ids])[0].split()[:2] == ["which", "animal"]
    assert len(ids) == 6 and ids[-1] == 1, "the token that ends a text stays"


def test_prompts_leave_room_within_the_positions_of_the_model(prompter_of: Callable[..., Prompter]) -> None:
    (batch,) = prompter_of("gpt2", {"n_positions": 12}).prompt_batches([LONG], 4)
    assert batch.inputs["input_ids"].shape == (1, 8)
    (batch,) = prompter_of("gpt2").prompt_batches([LONG], 4)
    assert batch.inputs["input_ids"].shape == (1, POSITIONS - 4)


def test_decoders_are_padded_before_and_encoders_behind(prompter_of: Callable[..., Prompter]) -> None:
    (batch,) = prompter_of("llama").prompt_batches(["the old dog", "cat"], 2)
    mask = batch.inputs["attention_mask"]
    assert bool(mask[:, -1].all()) and not bool(mask.all())
    (batch,) = prompter_of("bart").prompt_batches(["the old dog", "cat"], 2)
    mask = batch.inputs["attention_mask"]
    assert bool(mask[:, 0].all()) and not bool(mask.all())


def test_a_rows_options_share_a_batch_of_bounded_size(prompter_of: Callable[..., Prompter]) -> None:
    options = [" cat", " dog", " red", " green", " blue"]
    batches = prompter_of("gpt2", batch_size=12).option_batches(["cat"] * 7, options)
    assert max(len(batch.rows) for batch in batches) == 2
    assert all(torch.numel(batch.inputs["input_ids"][..., 0]) <= 12 for batch in batches)
    batches = prompter_of("gpt2", batch_size=2).option_batches(["cat"] * 3, options)
    assert [len(batch.rows) for batch in batches] == [1, 1, 1], "a row's options stay together"


def test_no_token_behind_a_text_ends_a_decoders_prompt(tmp_path: Path, prompter_of: Callable[..., Prompter]) -> None:
    speaking_tokenizer("bart").save_pretrained(tmp_path / "gpt2")  # puts <s> before a text and </s> behind it
    speaker_config("gpt2").save_pretrained(tmp_path / "gpt2")
    prompter = prompter_of("gpt2")
    (batch,) = prompter.prompt_batches(["cat"], 2)
    assert batch.inputs["input_ids"].shape == (1, 2)
    assert batch.inputs["input_ids"][0, 0] == 0, "<s> stays"


@pytest.mark.parametrize("layout", ["gpt2", "t5"])
def test_options_that_cannot_be_told_apart_are_refused(layout: str, prompter_of: Callable[..., Prompter]) -> None:
    with pytest.raises(RecipeError, match=r"'quite good' and 'very bad' are the same tokens"):
        prompter_of(layout).option_batches(["cat"], ["cat", "quite good", "very bad"])


def test_an_option_without_tokens_is_refused() -> None:
    tokenizer: Any = speaking_tokenizer("gpt2")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(RecipeError, match=r"'\\u200b' gives no tokens"):
        Prompter(tokenizer, "causal", {}, batch_size=8).option_batches(["cat"], ["cat", "\u200b"])


@pytest.mark.parametrize("layout", ["gpt2", "llama", "t5"])
def test_answers_that_leave_no_room_are_refused(layout: str, prompter_of: Callable[..., Prompter]) -> None:
    with pytest.raises(RecipeError, match=r"An answer of 60 tokens leaves"):
        prompter_of(layout).prompt_batches(["cat"], 60)
    with pytest.raises(RecipeError, match=r"leaves 0 for the prompt|leaves 1 for the prompt"):
        prompter_of(layout, max_length=1 if layout != "gpt2" else 0).prompt_batches(["cat"], 2)


def test_a_prompt_without_tokens_is_refused(prompter_of: Callable[..., Prompter]) -> None:
    with pytest.raises(DatasetError, match=r"Row 1: the prompt '' gives no tokens"):
        prompter_of("gpt2").prompt_batches(["cat", ""], 2)
    assert prompter_of("llama").prompt_batches([""], 2)[0].inputs["input_ids"].tolist() == [[1]]
