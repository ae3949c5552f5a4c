"""The files of a tokenizer or processor: what sends transformers elsewhere is refused before it reads anything."""

import json
from pathlib import Path

import pytest

from hf_merge.errors import CheckpointDamaged, UntrustedContentError
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.reader_files import check_folder


@pytest.mark.parametrize("named", [["../elsewhere/tokenizer.4.0.json", "tokenizer.json"], "tokenizer.4.0.json", 4])
def test_a_tokenizer_that_names_its_own_files_is_refused(tmp_path: Path, named: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"fast_tokenizer_files": named}))
    with pytest.raises(UntrustedContentError, match=r"tokenizer_config\.json names the files .*fast_tokenizer_files"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("named", [[], ["tokenizer.json"], None])
def test_a_tokenizer_that_names_what_is_read_anyhow_is_taken(tmp_path: Path, named: object) -> None:
    content = {} if named is None else {"fast_tokenizer_files": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    check_folder(tmp_path, "tokenizer", ("tokenizer_config.json",))


@pytest.mark.parametrize(("content", "said"), [("[", "is no readable JSON"), ("[]", "holds list where a mapping")])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(CheckpointDamaged, match=rf"processor_config\.json {said}.*Fetch the file anew"):
        check_folder(tmp_path, "image processor", ("processor_config.json",))
