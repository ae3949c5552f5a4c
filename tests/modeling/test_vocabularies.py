import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_merge.errors import ModelMismatch
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.vocabularies import find_difference, has_tokenizer, require_same_tokenizer, same_files


WORDS = ["<unk>", "<s>", "</s>", "the", "quick", "brown", "fox", "The", "QUICK", "Brown", "caf\u00e9", "cafe"]


def tokenizer_of(words: list[str] = WORDS, **parts: Any) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, part in parts.items():
        setattr(inner, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder


def test_tokenizers_that_do_the_same_agree(tmp_path: Path) -> None:
    first = tokenizer_of()
    first.padding_side, first.model_max_length = "left", 77
    second = tokenizer_of(decoder=decoders.WordPiece())
    second.enable = True
    folders = [saved(item, tmp_path / str(index)) for index, item in enumerate((first, second))]
    assert find_difference(load_tokenizer(folders[0]), load_tokenizer(folders[1])) is None
    require_same_tokenizer(folders[0], load_tokenizer(folders[0]), folders)


def test_a_token_for_padding_alone_does_not_matter() -> None:
    other = tokenizer_of()
    other.add_special_tokens({"pad_token": "<pad>"})
    assert find_difference(tokenizer_of(), other) is None
    assert find_difference(other, tokenizer_of()) is None


CLS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
STRIPPED = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (tokenizer_of([*WORDS[:3], "quick", "the", *WORDS[5:]]), "the token 'quick' is number 4 there and number 3"),
        (tokenizer_of([*WORDS, "new"]), "the token 'new' is not there and number 12 here"),
        (tokenizer_of(normalizer=normalizers.Lowercase()), "'The QUICK Brown' gives the tokens The QUICK Brown there"),
        (tokenizer_of(post_processor=CLS), r"'the quick brown fox' gives the tokens .* and <s> the quick brown fox"),
        (tokenizer_of(normalizer=STRIPPED), "gives the tokens <unk> caf\u00e9 <unk> there and <unk> cafe <unk> here"),
    ],
    ids=["numbers", "more", "case", "special", "accents"],
)
def test_the_first_difference_that_matters_is_told(other: PreTrainedTokenizerFast, difference: str) -> None:
    found = find_difference(tokenizer_of(), other)
    assert found is not None and re.search(difference, found), found


def test_roles_of_tokens_matter() -> None:
    other = tokenizer_of()
    other.eos_token = "<s>"
    assert find_difference(tokenizer_of(), other) == "eos_token is '</s>' there and '<s>' here"


def test_both_folders_are_named(tmp_path: Path) -> None:
    first = saved(tokenizer_of(), tmp_path / "base")
    second = saved(tokenizer_of([*WORDS, "new"]), tmp_path / "tuned")
    with pytest.raises(ModelMismatch, match=r"base \(there\) and .*tuned \(here\) do not agree: the token 'new'"):
        require_same_tokenizer(first, load_tokenizer(first), [first, second])


def test_folders_without_a_tokenizer_pass(tmp_path: Path) -> None:
    first = saved(tokenizer_of(), tmp_path / "base")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "tokenizer_config.json").write_text("{}")
    assert not has_tokenizer(tmp_path / "tuned")
    require_same_tokenizer(first, load_tokenizer(first), [tmp_path / "tuned"])


def test_a_tokenizer_that_cannot_be_opened_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = saved(tokenizer_of(), tmp_path / "base")
    second = saved(tokenizer_of(), tmp_path / "tuned")
    settings = json.loads((second / "tokenizer_config.json").read_text())
    (second / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": "x.Y"}}))
    with caplog.at_level(logging.WARNING):
        require_same_tokenizer(first, load_tokenizer(first), [second])
    assert "tuned is not compared" in caplog.text


def test_equal_files_need_no_comparison(tmp_path: Path) -> None:
    first, second = saved(tokenizer_of(), tmp_path / "a"), saved(tokenizer_of(), tmp_path / "b")
    assert same_files(first, second)
    (second / "tokenizer_config.json").unlink()
    assert not same_files(first, second)
    assert not same_files(first, tmp_path)
