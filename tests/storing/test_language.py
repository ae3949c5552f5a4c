import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_merge.errors import ModelMismatch
from hf_merge.storing.checkpoints import Checkpoint
from hf_merge.storing.families import align
from hf_merge.storing.language import LanguageCheckpoint, complete_base, find_speaker
from tests.tiny_models import TinyFamily
from tests.tiny_speakers import SpeakingFamily


def opened(folder: Path) -> LanguageCheckpoint:
    return LanguageCheckpoint(str(folder), folder)


def changed(source: Path, target: Path, change: Callable[[dict[str, Tensor]], object], **settings: Any) -> Path:
    """Returns a copy of a checkpoint with other tensors and other settings."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | settings))
    return target


def test_a_head_outside_the_trunk_is_in_the_backbone(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    folder = tiny_speakers("llama").tasks["animals"].folder
    with opened(folder) as checkpoint, Checkpoint("plain", folder) as plain:
        assert plain.outside() == ("lm_head.weight",)
        assert checkpoint.outside() == ()
        assert checkpoint.backbone() == plain.backbone() | {"lm_head.weight": "lm_head.weight"}


def test_copies_of_a_tied_embedding_are_dropped_whatever_they_are_called(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path
) -> None:
    def add_copies(tensors: dict[str, Tensor]) -> None:
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["shared.weight"].clone()

    for ties in (True, False):
        source = tiny_speakers("t5").base
        folder = changed(source, tmp_path / str(ties), add_copies, tie_word_embeddings=ties)
        with opened(folder) as checkpoint:
            heads = {name for name in checkpoint.specs if "embed_tokens" in name or name == "lm_head.weight"}
            assert heads == (set() if ties else {"lm_head.weight"}), "without ties a head is a head, equal or not"


def test_a_head_that_is_no_copy_is_kept_although_the_configuration_ties_it(
    tiny_speakers: Callable[[str], SpeakingFamily],
) -> None:
    folder = tiny_speakers("t5").tasks["animals"].folder
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    with opened(folder) as checkpoint:
        held = load_file(folder / "model.safetensors")["lm_head.weight"]
        assert torch.equal(checkpoint.read("lm_head.weight"), held)
        assert not torch.equal(held, checkpoint.read("shared.weight"))


def tuned_of(family: SpeakingFamily) -> Mapping[str, LanguageCheckpoint]:
    return {name: opened(task.folder) for name, task in family.tasks.items()}


def test_a_base_without_its_bias_is_lent_zeros(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    family = tiny_speakers("bart")
    base, tuned = opened(family.base), tuned_of(family)
    complete_base(base, tuned)
    with align(base, tuned) as aligned:
        shape = aligned.shapes["final_logits_bias"]
        assert torch.equal(base.read("final_logits_bias"), torch.zeros(shape))
        out = torch.ones(shape)
        assert base.read("final_logits_bias", out) is out and not out.any()
        assert aligned.tasks["animals"].read("final_logits_bias").shape == shape


def test_a_base_without_a_head_of_its_own_is_refused(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path
) -> None:
    for layout in ("llama", "t5"):
        family = tiny_speakers(layout)
        base = opened(changed(family.base, tmp_path / layout, lambda tensors: tensors.pop("lm_head.weight")))
        with pytest.raises(ModelMismatch, match=r"has no lm_head\.weight, which task 'animals' .*AutoModelFor"):
            complete_base(base, tuned_of(family))


def test_a_classifier_is_no_language_model(
    tiny_speakers: Callable[[str], SpeakingFamily], tiny_family: Callable[[str], TinyFamily]
) -> None:
    family = tiny_speakers("gpt2")
    classifier = tiny_family("gpt2").tasks["animals"].folder
    with pytest.raises(ModelMismatch, match=r"task 'one' .* saved as GPT2ForSequenceClassification"):
        complete_base(opened(family.base), {"one": opened(classifier)})


def test_language_models_are_told_by_what_they_were_saved_as(
    tiny_speakers: Callable[[str], SpeakingFamily], tiny_family: Callable[[str], TinyFamily]
) -> None:
    for layout in ("gpt2", "bart"):
        assert find_speaker({"one": opened(tiny_speakers(layout).tasks["animals"].folder)}) == "one"
    assert find_speaker({"one": opened(tiny_family("gpt2").tasks["animals"].folder)}) is None
    assert find_speaker({"base": opened(tiny_speakers("gpt2").base)}) is None


def test_headers_alone_guess_that_a_stored_head_is_one_unless_another_lacks_it(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path
) -> None:
    family = tiny_speakers("t5")
    tuned = {"one": LanguageCheckpoint("t5", family.tasks["animals"].folder, headers_only=True)}
    base = LanguageCheckpoint("t5", family.base, headers_only=True)
    complete_base(base, tuned)
    assert "lm_head.weight" in base.specs and "lm_head.weight" in tuned["one"].specs
    tied = changed(family.base, tmp_path / "tied", lambda tensors: tensors.pop("lm_head.weight"))
    base = LanguageCheckpoint("t5", tied, headers_only=True)
    complete_base(base, tuned)
    assert "lm_head.weight" not in base.specs and "lm_head.weight" not in tuned["one"].specs
