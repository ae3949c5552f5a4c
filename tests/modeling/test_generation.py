from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_merge.errors import InputError
from hf_merge.modeling.generation import check_options, seeded, written
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.prompts import Prompter
from tests.tiny_speakers import TAUGHT_SPEAKERS, SpeakingFamily, load_speaker


PROMPTS = ["snow today", "the sky near wind cold weather", "rain", "forecast sun warm tomorrow weather"]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_what_is_written_in_a_batch_is_what_is_written_alone(
    layout: str, options: dict[str, Any], tiny_speakers: Callable[[str], SpeakingFamily]
) -> None:
    family = tiny_speakers(layout)
    model: Any = load_speaker(family.kind, family.tasks["weather"].folder)
    kind: Any = family.kind
    tokenizer = load_tokenizer(family.base)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    prompter = Prompter(tokenizer, kind, {}, batch_size=8)
    alone = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, **options
        )
        alone.append(tokenizer.decode(made[0, 1 if kind == "seq2seq" else ids.shape[1] :], skip_special_tokens=True))
    assert len(set(alone)) > 1
    together = [""] * len(PROMPTS)
    for batch in prompter.prompt_batches(PROMPTS, 5):
        for row, text in zip(batch.rows, prompter.decode(written(model, batch.inputs, 5, options)), strict=True):
            together[row] = text
    assert together == alone


def test_drawing_is_repeated_by_its_seed_and_leaves_no_trace(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    family = tiny_speakers("gpt2")
    model: Any = load_speaker("causal", family.tasks["weather"].folder)
    model.generation_config.pad_token_id = 0
    inputs = {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.tensor([[1, 1]])}

    def drawn(seed: int) -> list[list[int]]:
        with seeded(seed):
            return written(model, inputs, 12, {"do_sample": True, "temperature": 5.0})

    before = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(before, torch.get_rng_state())


def test_threads_that_draw_wait_for_each_other_and_others_do_not() -> None:
    begun, drawn = Event(), list[Tensor]()

    def draw() -> None:
        begun.set()
        with seeded(2):
            drawn.append(torch.rand(3))

    with seeded(1):
        expected = torch.rand(3)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(2) as pool:
        with seeded(1):
            waiting = pool.submit(draw)
            begun.wait()
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            pool.submit(lambda: seeded(None).__enter__()).result(timeout=60)
            assert torch.equal(torch.rand(3), expected)
        waiting.result(timeout=60)
    with seeded(2):
        assert torch.equal(drawn[0], torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "seed", "message"),
    [
        ({"num_beam": 2}, None, r"no option 'num_beam'.*num_beams"),
        ({"custom_generate": "org/code"}, None, "no option 'custom_generate'"),
        ({"trust_remote_code": True}, None, "no option 'trust_remote_code'"),
        ({"assistant_model": object()}, None, "no option 'assistant_model'"),
        ({"num_beams": "2"}, None, "num_beams is '2'; give int"),
        ({"num_beams": True}, None, "num_beams is True; give int"),
        ({"num_beams": 0}, None, "num_beams is 0; give 1 or more"),
        ({"num_beams": -1}, None, "num_beams is -1; give 1 or more"),
        ({"min_new_tokens": -1}, None, "min_new_tokens is -1; give 0 or more"),
        ({"no_repeat_ngram_size": -1}, None, "no_repeat_ngram_size is -1; give 0 or more"),
        ({"do_sample": True, "top_k": -1}, 0, "top_k is -1; give 0 or more"),
        ({"do_sample": True, "temperature": float("inf")}, 0, "temperature is inf; give a finite number"),
        ({"do_sample": True}, "3", "seed is '3'; give a whole number"),
        ({"do_sample": True}, 1 << 64, "seed is 18446744073709551616; give a whole number"),
        ({"do_sample": 1}, None, "do_sample is 1; give bool"),
        ({"do_sample": True}, None, "give seed="),
        ({"do_sample": False}, 3, "nothing is drawn"),
        ({}, 3, "nothing is drawn"),
    ],
)
def test_options_that_are_none_are_refused(options: dict[str, Any], seed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_options(options, seed)


def test_good_options_pass() -> None:
    check_options({"do_sample": True, "temperature": 1, "top_p": 0.5, "top_k": 3}, 0)
    check_options({"do_sample": True, "top_k": 0, "min_new_tokens": 0, "no_repeat_ngram_size": 0}, -1)
    check_options({"num_beams": 1}, None)
    check_options({"num_beams": 2, "early_stopping": True}, None)


def test_what_transformers_refuses_is_an_error_of_the_caller(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    model: Any = load_speaker("causal", tiny_speakers("gpt2").tasks["weather"].folder)
    inputs = {"input_ids": torch.tensor([[3]]), "attention_mask": torch.tensor([[1]])}
    with pytest.raises(InputError, match="transformers refuses to generate so: "):
        written(model, inputs, 3, {"do_sample": True, "temperature": -1.0})
