"""Scores of options are minus the losses that transformers itself computes, one row and option at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_merge.modeling.inputs import Batch, load_tokenizer, restore
from hf_merge.modeling.options import IGNORED, option_scores
from hf_merge.modeling.prompts import Prompter
from tests.tiny_speakers import TAUGHT_SPEAKERS, SpeakingFamily, answers_of, load_speaker


PROMPTS = ["the small cat sleeps", "dog", "the friendly old dog runs the small which animal", "hungry cat runs", "cat"]


def batches_of(family: SpeakingFamily, batch_size: int, prompts: list[str] = PROMPTS) -> list[Batch]:
    kind: Any = family.kind
    prompter = Prompter(load_tokenizer(family.base), kind, {}, batch_size=batch_size)
    return prompter.option_batches(prompts, answers_of("colours"))


def scores_of(family: SpeakingFamily, batch_size: int, model: Any = None) -> Tensor:
    model = model or load_speaker(family.kind, family.tasks["colours"].folder)
    batches = batches_of(family, batch_size)
    with torch.inference_mode():
        return restore(batches, [option_scores(model, batch.inputs) for batch in batches])


def reference(family: SpeakingFamily) -> Tensor:
    """Returns minus the loss of each option, computed by plain transformers without any padding."""
    model: Any = load_speaker(family.kind, family.tasks["colours"].folder)
    tokenizer = load_tokenizer(family.base)
    rows = []
    for prompt in PROMPTS:
        row = []
        for answer in answers_of("colours"):
            asked = tokenizer(prompt)["input_ids"]
            if family.kind == "seq2seq":
                read, labels = asked, tokenizer(text_target=answer)["input_ids"]
            else:
                said = tokenizer(answer, add_special_tokens=False)["input_ids"]
                read, labels = asked + said, [IGNORED] * len(asked) + said
            with torch.inference_mode():
                loss = model(input_ids=torch.tensor([read]), labels=torch.tensor([labels])).loss
            row.append(-float(loss))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_scores_are_minus_the_losses_of_transformers(
    layout: str, tiny_speakers: Callable[[str], SpeakingFamily]
) -> None:
    family = tiny_speakers(layout)
    wanted = reference(family)
    assert wanted.std() > 0.1, "scores that are all alike would show nothing"
    for batch_size in (1, 6, 100):
        torch.testing.assert_close(scores_of(family, batch_size), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["llama", "t5"])
def test_scores_do_not_depend_on_the_other_rows_but_for_rounding(
    layout: str, tiny_speakers: Callable[[str], SpeakingFamily]
) -> None:
    family = tiny_speakers(layout)
    model: Any = load_speaker(family.kind, family.tasks["colours"].folder)
    model.to(torch.bfloat16)
    alone, together = scores_of(family, 1, model), scores_of(family, 100, model)
    assert (alone - together).abs().max() < 0.15, "of scores that differ by units"
    assert alone.dtype == together.dtype == torch.float32


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_a_model_that_cannot_be_spared_the_prompts_logits_scores_the_same(
    layout: str, tiny_speakers: Callable[[str], SpeakingFamily]
) -> None:
    family = tiny_speakers(layout)
    model: Any = load_speaker(family.kind, family.tasks["colours"].folder)
    spared = scores_of(family, 6, model)
    model.get_output_embeddings = lambda: None
    torch.testing.assert_close(scores_of(family, 6, model), spared)


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
def test_logits_are_computed_of_no_token_but_the_options(
    layout: str, tiny_speakers: Callable[[str], SpeakingFamily]
) -> None:
    family = tiny_speakers(layout)
    model: Any = load_speaker(family.kind, family.tasks["colours"].folder)
    states: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, out: states.append(out[..., 0].numel()))
    scores_of(family, 6, model)
    counted = sum(int((batch.inputs["labels"] != IGNORED).sum()) for batch in batches_of(family, 6))
    assert sum(states) == counted


def test_each_prompt_is_encoded_once(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    family = tiny_speakers("bart")
    model: Any = load_speaker(family.kind, family.tasks["colours"].folder)
    rows: list[int] = []
    model.get_encoder().register_forward_hook(lambda _, given, out: rows.append(len(out[0])))
    scores_of(family, 6, model)
    assert sum(rows) == len(PROMPTS)
