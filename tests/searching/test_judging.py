from collections.abc import Callable
from typing import Any

import torch

from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.prompts import Prompter
from hf_merge.searching.judging import Judge, judged
from tests.modeling.test_language import opened_speakers, speaker_model
from tests.tiny_speakers import SpeakingFamily


def test_case_and_white_space_do_not_count() -> None:
    found = judged(["The  Sun\n", "sun", "the sun."], ["the sun", "the sun", "the sun"])
    assert found.tolist() == [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    assert found.argmax(dim=1).tolist() == [1, 0, 0]


def test_a_judge_compares_each_row_with_its_own_target(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    tiny = tiny_speakers("gpt2")
    with opened_speakers(tiny) as family:
        model = speaker_model(tiny, family)
        model.set_backbone({name: family.tasks["weather"].read(name) for name in family.shapes}, family.base.trunk)
    kind: Any = tiny.kind
    prompter = Prompter(load_tokenizer(tiny.base), kind, {}, batch_size=8)
    prompts = ["snow today sky cold weather", "rain near weather"]
    (batch,) = prompter.prompt_batches(prompts, 4)
    assert batch.rows.tolist() == [1, 0], "shortest first"
    judge = Judge(prompter.decode, ["snow near", "rain"], 4)
    assert judge(model, batch).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    wrong = Judge(prompter.decode, ["rain", "snow near"], 4)
    assert torch.equal(wrong(model, batch), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
