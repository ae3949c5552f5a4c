"""Language models served: routed on the raw text, asked in their task's words, written in batches."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from hf_merge.errors import InputError
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.serving.model import Generation, MergeModel
from tests.tiny_models import LABELS
from tests.tiny_runs import TinyRun
from tests.tiny_speakers import NEW_TOKENS, TAUGHT_SPEAKERS, TEMPLATES


MIXED = [
    "the small old cat", "paint bright red wall a", "today tomorrow cold snow sky", "friendly hungry dog runs the",
    "shade dark blue pale", "forecast warm wind near sky today",
]  # fmt: skip
TASKS = ["animals", "colours", "weather", "animals", "colours", "weather"]


@pytest.fixture(scope="module")
def model(speaking_run: Callable[[str], TinyRun]) -> MergeModel:
    return MergeModel.from_pretrained(speaking_run("llama").folder)


def rows_of(run: TinyRun, task: str) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = pyarrow.parquet.read_table(run.family.tasks[task].files["test"]).to_pydict()
    return table


def test_inputs_are_routed_as_they_come(model: MergeModel) -> None:
    assert [model.tasks[index] for index in model.routes(MIXED).tolist()] == TASKS
    output = model.outputs(MIXED)
    assert torch.equal(output.task_ids, model.routes(MIXED))
    tokenizer = load_tokenizer(model._member.folder)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        assert torch.equal(model.route(**tokenizer(MIXED, padding=True, return_tensors="pt")), output.task_ids)


def test_options_are_the_labels(model: MergeModel) -> None:
    answers = model.predict([MIXED[0], MIXED[1]])
    assert [(answer.task, answer.label) for answer in answers] == [("animals", "cat"), ("colours", "red")]
    assert all(0.5 < answer.score <= 1 for answer in answers)
    assert model.heads["animals"].labels == ("cat", "dog near")


def test_scores_are_those_of_each_tasks_own_options(model: MergeModel) -> None:
    logits = model.outputs(MIXED, task=TASKS).logits
    assert logits.shape == (6, 3)
    widths = torch.isfinite(logits).sum(dim=1).tolist()
    assert widths == [2, 3, 0, 2, 3, 0], "whoever writes has no options"
    assert (logits[torch.isfinite(logits)] < 0).all(), "they are logarithms of probabilities"
    alone = torch.cat([model.outputs([text], task=task).logits for text, task in zip(MIXED, TASKS, strict=True)])
    torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.outputs(MIXED, task=TASKS, batch_size=2).logits, logits, rtol=1e-4, atol=1e-4)


def test_answers_are_right_most_of_the_time(speaking_run: Callable[[str], TinyRun]) -> None:
    for layout in ("gpt2", "t5"):
        run = speaking_run(layout)
        model = MergeModel.from_pretrained(run.folder)
        rows = rows_of(run, "colours")
        found = [answer.label for answer in model.predict(rows["text"], task="colours")]
        wanted = [(model.heads["colours"].labels or ())[label] for label in rows["label"]]
        assert np.mean([one == other for one, other in zip(found, wanted, strict=True)]) > 1.5 / len(LABELS["colours"])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_what_is_written_is_what_the_materialised_model_writes_alone(
    layout: str, options: dict[str, Any], speaking_run: Callable[[str], TinyRun]
) -> None:
    run = speaking_run(layout)
    model = MergeModel.from_pretrained(run.folder)
    tokenizer = load_tokenizer(model._member.folder)
    texts = rows_of(run, "weather")["text"][:9] + MIXED
    tasks = ["weather"] * 9 + TASKS
    found = model.generate(texts, task=tasks, max_new_tokens=NEW_TOKENS, **options)
    for text, task, answer in zip(texts, tasks, found, strict=True):
        single: Any = model.materialize(task)
        ids = tokenizer(TEMPLATES[task].replace("{text}", text), return_tensors="pt")["input_ids"]
        made = single.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, **options
        )
        own = made[0, 1 if single.config.is_encoder_decoder else ids.shape[1] :]
        assert answer == Generation(task, str(tokenizer.decode(own, skip_special_tokens=True)))


def test_what_is_written_does_not_depend_on_the_batches(model: MergeModel) -> None:
    texts = MIXED * 3
    wanted = model.generate(texts, max_new_tokens=NEW_TOKENS)
    assert [answer.task for answer in wanted] == TASKS * 3
    for batch_size in (1, 4):
        assert model.generate(texts, max_new_tokens=NEW_TOKENS, batch_size=batch_size) == wanted
    with ThreadPoolExecutor(4) as pool:
        parts = [
            pool.submit(model.generate, texts[start : start + 6], max_new_tokens=NEW_TOKENS) for start in (0, 6, 12)
        ]
        assert [answer for part in parts for answer in part.result()] == wanted


def test_a_task_says_how_much_it_writes(model: MergeModel) -> None:
    (short,) = model.generate([MIXED[2]], task="weather", max_new_tokens=1)
    (whole,) = model.generate([MIXED[2]], task="weather")
    assert len(short.text.split()) == 1 and whole.text == "snow near"


def test_drawing_needs_a_seed_and_is_repeated_by_it(model: MergeModel) -> None:
    def drawn(seed: int) -> list[Generation]:
        return model.generate(
            MIXED,
            max_new_tokens=8,
            seed=seed,
            do_sample=True,
            temperature=3.0,
            batch_size=2,
        )

    assert drawn(1) == drawn(1) != drawn(2)
    with pytest.raises(InputError, match="give seed="):
        model.generate(MIXED, max_new_tokens=4, do_sample=True)


def test_pairs_and_single_texts_may_be_mixed(model: MergeModel) -> None:
    mixed_inputs: list[Any] = [("the small", "cat"), MIXED[1]]
    joined = model.outputs(["the small\ncat"], task="animals").logits
    mixed = model.outputs(mixed_inputs, task=["animals", "colours"]).logits
    torch.testing.assert_close(mixed[0], joined[0], rtol=1e-4, atol=1e-4)


def test_columns_and_generators_are_answered_as_lists_are(model: MergeModel) -> None:
    texts, tasks = MIXED[:3], ["animals", "colours", "weather"]
    calls: list[Callable[[Any], Any]] = [
        lambda inputs: model.generate(inputs, task=tasks, max_new_tokens=4),
        lambda inputs: model.predict(inputs, task=["animals", "colours", "animals"]),
        lambda inputs: model.routes(inputs).tolist(),
    ]
    for call in calls:
        expected = call(texts)
        assert call(pd.Series(texts, index=[2, 0, 1])) == expected
        assert call(text for text in texts) == expected


def test_some_tasks_alone_answer_as_among_all(speaking_run: Callable[[str], TinyRun], model: MergeModel) -> None:
    part = MergeModel.from_pretrained(speaking_run("llama").folder, tasks=["weather", "animals"])
    assert part.tasks == ("animals", "weather")
    texts = [MIXED[0], MIXED[2]]
    assert part.generate(texts, max_new_tokens=4) == model.generate(texts, max_new_tokens=4)
    assert torch.equal(part.outputs(texts[:1]).logits[0, :2], model.outputs(texts[:1]).logits[0, :2])


def test_merged_tasks_share_their_weights_and_their_batches(speaking_run: Callable[[str], TinyRun]) -> None:
    merged = MergeModel.from_pretrained(speaking_run("llama").folder, budget=0.3)
    assert len({merged.chain(task) for task in merged.tasks}) == 1
    models = [merged._recombiner.models[index] for index in range(3)]
    places = [{name: held.data_ptr() for name, held in one.tensors().items()} for one in models]
    assert places[0] == places[1] == places[2]
    calls: list[int] = []
    models[0].module.register_forward_pre_hook(lambda module, args, kwargs: calls.append(1), with_kwargs=True)
    merged.generate(["cat", "red", "snow"], task=list(merged.tasks), max_new_tokens=1)
    assert len(calls) == 1, "prompts of tasks with one chain go through one model together"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(input_ids=torch.tensor([[1, 2]])), "give texts to predict or generate"),
        (lambda model: model.predict([MIXED[2]], task="weather"), "weather answers in words of its own"),
        (lambda model: model.predict(MIXED), "weather answers in words of its own"),
        (lambda model: model.generate("one text"), "Give a list of inputs"),
        (lambda model: model.generate([3]), "Input 0 is int"),
        (lambda model: model.generate(MIXED, task="wether"), r"Unknown task 'wether'.*weather"),
        (lambda model: model.generate(MIXED, custom_generate="org/code"), "no option 'custom_generate'"),
        (lambda model: model.generate(MIXED, max_new_tokens=0), "max_new_tokens is 0"),
        (lambda model: model.generate(MIXED, max_new_tokens="4"), "max_new_tokens is '4'; give a whole number"),
        (lambda model: model.generate(MIXED, max_new_tokens=4, num_beams=0), "num_beams is 0; give 1 or more"),
        (lambda model: model.generate(MIXED, max_new_tokens=10**6), "max_new_tokens is 1000000"),
        (lambda model: model.generate(MIXED, max_new_tokens=4, batch_size=0), "batch_size is 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(model: MergeModel, call: Callable[[MergeModel], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


def test_a_classifier_writes_nothing(tiny_run: TinyRun) -> None:
    model = MergeModel.from_pretrained(tiny_run.folder)
    with pytest.raises(InputError, match="classifies and writes nothing"):
        model.generate(["the cat"])


def test_nothing_gives_nothing(model: MergeModel) -> None:
    assert model.generate([]) == [] == model.predict([])


def test_a_materialised_model_is_an_ordinary_one(model: MergeModel, tmp_path: Any) -> None:
    from transformers import LlamaForCausalLM

    single = model.materialize("colours")
    assert isinstance(single, LlamaForCausalLM)
    single.save_pretrained(tmp_path / "single")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "single")
    ids = torch.tensor([[1, 9, 4]])
    assert torch.equal(again(input_ids=ids).logits, single(input_ids=ids).logits)


def test_a_saved_model_is_the_same_model(model: MergeModel, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path / "copy")
    again = MergeModel.from_pretrained(tmp_path / "copy")
    assert again.chain_map == model.chain_map
    assert torch.equal(again.outputs(MIXED).logits, model.outputs(MIXED).logits)
