"""Language models from recipe to answers, compared with plain transformers; and what is refused on the way."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from hf_merge.errors import CheckpointDamaged, DatasetError, InputError, ModelMismatch, RecipeError
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.prompts import Prompter
from hf_merge.recipe import Recipe
from hf_merge.recipe.kinds import require_one_kind
from hf_merge.searching.rows import Rows
from hf_merge.serving.model import MergeModel
from hf_merge.storing.card_head import recorded_scores
from hf_merge.storing.families import FineTuned
from hf_merge.storing.library import Member
from hf_merge.workflow.evaluate import evaluate
from hf_merge.workflow.plan import plan
from hf_merge.workflow.project import Reader, open_project, task_runs
from hf_merge.workflow.report import report
from hf_merge.workflow.rows import load_rows
from hf_merge.workflow.speaking import asked_run
from tests.modeling.test_language import opened_speakers, speaker_model
from tests.tiny_models import TinyFamily
from tests.tiny_runs import TinyRun
from tests.tiny_speakers import (
    COUSINS,
    NEW_TOKENS,
    TAUGHT_SPEAKERS,
    TEMPLATES,
    WRITING,
    SpeakingFamily,
    answers_of,
    load_speaker,
    speaking_tokenizer,
)


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def by_hand(run: TinyRun, member: Path, task: str) -> Any:
    """Returns a task's model of a member: the fine-tune as transformers loads it, with the chain's weights."""
    assert isinstance(run.family, SpeakingFamily)
    model: Any = load_speaker(run.family.kind, run.family.tasks[task].folder)
    opened = Member(member)
    state: dict[str, Tensor] = model.state_dict()
    with opened_speakers(run.family) as family:
        tuned = family.tasks[task]
    assert isinstance(tuned, FineTuned)
    names = tuned.names
    replaced = set()
    for entry in opened.experts:
        if entry.id in opened.chain_map.chains[task]:
            for name, tensor in opened.expert(entry).items():
                assert state[names[name]].shape == tensor.shape
                state[names[name]].copy_(tensor)
                replaced.add(state[names[name]].data_ptr())
    assert all(parameter.data_ptr() in replaced for parameter in model.parameters()), (
        "nothing of the fine-tune is left"
    )
    return model


def rows_of(run: TinyRun, task: str, split: str, count: int) -> dict[str, list[Any]]:
    table = pyarrow.parquet.read_table(run.family.tasks[task].files[split]).slice(0, count)
    rows: dict[str, list[Any]] = table.to_pydict()
    return rows


@torch.inference_mode()
def score_by_hand(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    asked = tokenizer(prompt)["input_ids"]
    if model.config.is_encoder_decoder:
        read, labels = asked, tokenizer(answer)["input_ids"]
    else:
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        read, labels = asked + said, [-100] * len(asked) + said
    return -float(model(input_ids=torch.tensor([read]), labels=torch.tensor([labels])).loss)


def write_by_hand(model: Any, tokenizer: Any, prompt: str, ends: int | None) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    mask, pad = torch.ones_like(ids), tokenizer.pad_token_id
    made = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad,
        eos_token_id=ends,
    )  # fmt: skip
    return str(
        tokenizer.decode(made[0, 1 if model.config.is_encoder_decoder else ids.shape[1] :], skip_special_tokens=True)
    )


@pytest.mark.parametrize(
    "layout", [*TAUGHT_SPEAKERS, *(pytest.param(layout, marks=pytest.mark.slow) for layout in COUSINS)]
)
def test_what_is_searched_and_built_answers_as_transformers_does(
    layout: str, speaking_run: Callable[[str], TinyRun]
) -> None:
    run = speaking_run(layout)
    assert len(run.front.individual) == 3 and min(run.front.individual.values()) > 0.5
    for member in run.members:
        model = MergeModel.from_pretrained(member)
        tokenizer = load_tokenizer(member)
        for task in run.family.tasks:
            rows, hand = rows_of(run, task, "test", 6), by_hand(run, member, task)
            prompts = [TEMPLATES[task].replace("{text}", text) for text in rows["text"]]
            if task == WRITING:
                found = [answer.text for answer in model.generate(rows["text"], task=task)]
                assert found == [write_by_hand(hand, tokenizer, prompt, tokenizer.eos_token_id) for prompt in prompts]
                continue
            wanted = [
                [score_by_hand(hand, tokenizer, prompt, answer) for answer in answers_of(task)] for prompt in prompts
            ]
            logits = model.outputs(rows["text"], task=task).logits[:, : len(answers_of(task))]
            torch.testing.assert_close(logits, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["llama", pytest.param("bart", marks=pytest.mark.slow)])
def test_a_member_scores_what_its_map_says(
    layout: str, speaking_run: Callable[[str], TinyRun], tmp_path: Path
) -> None:
    run = speaking_run(layout)
    document = run.recipe.model_dump(mode="json")
    for task in document["tasks"]:  # the validation rows in the place of the test rows
        files = task["data"]["data_files"]
        files["test"], files["validation"] = files["validation"], files["test"]
    with open_project(run.recipe) as project:
        data = load_rows(project.recipe, project.heads)
    for member in run.members:
        model = MergeModel.from_pretrained(member)
        for task, parts in data.items():
            texts = list(parts.search.texts or ())
            if parts.search.targets is not None:
                answers = [answer.text for answer in model.generate(texts, task=task)]
                right = [one.strip() == other for one, other in zip(answers, parts.search.targets, strict=True)]
            else:
                best = model.outputs(texts, task=task).logits.argmax(dim=1).tolist()
                right = [one == other for one, other in zip(best, parts.search.labels.tolist(), strict=True)]
            assert sum(right) / len(right) == pytest.approx(model.chain_map.performance[task])


def test_the_whole_way_is_measured_and_told(speaking_run: Callable[[str], TinyRun], tmp_path: Path) -> None:
    run = speaking_run("qwen2")
    shutil.copytree(run.folder, tmp_path / "run")
    found = report(tmp_path / "run", progress=False)
    best = found.scores("individual")
    assert best is not None and best.oracle > 0.9 and best.routed is not None and best.routed > 0.8
    measured = evaluate(tmp_path / "run", progress=False)
    row = found.scores(measured.scores.id)
    assert row is not None
    assert measured.scores.oracle_scores == pytest.approx(row.oracle_scores)
    assert measured.scores.routed_scores == pytest.approx(row.routed_scores)
    card = (run.members[0] / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "model.generate(" in card and "at most 4 tokens" in card
    assert recorded_scores(card) == {}


@pytest.mark.parametrize("layout", ["gpt2", "llama", "t5", pytest.param("bart", marks=pytest.mark.slow)])
def test_a_plan_reads_headers_alone(layout: str, speaking_run: Callable[[str], TinyRun]) -> None:
    run = speaking_run(layout)
    found = plan(run.recipe)
    assert sum(found.tasks.values()) == 0, "no task has a head of its own"
    assert found.unplaced == ()
    assert tuple(component.name for component in found.components) == run.front.components
    assert found.parameters == run.front.parameters


def test_evaluating_needs_the_words_of_the_member(speaking_run: Callable[[str], TinyRun], tmp_path: Path) -> None:
    run = speaking_run("llama")
    document = json.loads(run.recipe.model_dump_json())
    document["tasks"][0]["data"]["template"] = "{text}?"
    (tmp_path / "other.yaml").write_text(json.dumps(document))
    with pytest.raises(InputError, match="words task 'animals' otherwise"):
        evaluate(run.folder, recipe=tmp_path / "other.yaml", progress=False)


def test_the_example_runs(
    speaking_run: Callable[[str], TinyRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = speaking_run("gpt2")
    shutil.copytree(run.folder, tmp_path / "run")  # where the search has ended, the example goes on
    main = runpy.run_path(str(EXAMPLES / "language_models.py"))["main"]
    main(run.recipe_file, tmp_path / "run", ["cold snow sky near today"])
    told = capsys.readouterr().out
    assert run.front.points[-1].id in told
    assert "animals\t" in told and "weather\tsnow near\tcold snow sky near today" in told


def test_the_examples_recipe_is_one() -> None:
    recipe = Recipe.load(EXAMPLES / "language" / "recipe.yaml")
    assert require_one_kind(recipe) == "language"
    assert [task.metric for task in recipe.tasks] == ["accuracy", "exact_match"]


def test_pairs_are_asked_as_the_template_says(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    family = tiny_speakers("llama")
    asked = []
    for pairs, template in ((None, "colour of {text}"), (("wall", "shade"), "colour of {text} {text_pair}")):
        document = family.recipe()
        document["tasks"][1]["data"] |= {"template": template} | ({} if pairs is None else {"text_pair": "text"})
        spec = Recipe.parse(document, "a test").tasks[1]
        texts = ("bright red", "pale blue") if pairs else ("bright red wall", "pale blue shade")
        rows = Rows(texts, pairs, None, np.array([0, 2]))
        kind: Any = family.kind
        prompter = Prompter(load_tokenizer(family.base), kind, {}, batch_size=64)
        with opened_speakers(family) as aligned:
            run = asked_run(spec, speaker_model(family, aligned), rows, prompter)
        asked.append(run.batches[0].inputs["input_ids"])
    assert torch.equal(*asked)


# What is refused


def opened(document: dict[str, Any]) -> None:
    with open_project(Recipe.parse(document, "a test")) as project:
        rows = {task: data.search for task, data in load_rows(project.recipe, project.heads).items()}
        task_runs(project, rows, Reader(project))


def changed(family: TinyFamily, task: int, **data: Any) -> dict[str, Any]:
    document = family.recipe(search={"validation_rows": 8}, router={"rows_per_task": 8})
    document["tasks"][task]["data"] |= data
    return document


def test_a_classifier_is_not_asked(
    tiny_speakers: Callable[[str], SpeakingFamily], tiny_family: Callable[[str], TinyFamily]
) -> None:
    document = tiny_speakers("gpt2").recipe()
    document["tasks"][1]["model"] = str(tiny_family("gpt2").tasks["colours"].folder)
    with pytest.raises(ModelMismatch, match=r"task 'colours' .*saved as GPT2ForSequenceClassification.*take both"):
        opened(document)


def test_a_language_model_does_not_classify(tiny_speakers: Callable[[str], SpeakingFamily]) -> None:
    family = tiny_speakers("gpt2")
    document = TinyFamily("gpt2", "text", family.base, family.tasks).recipe()
    for task in document["tasks"]:
        task["metric"] = "accuracy"
    with pytest.raises(ModelMismatch, match=r"'animals' .*saved as GPT2LMHeadModel.*data\.answers"):
        opened(document)


def test_an_encoder_decoder_that_cannot_begin_is_refused(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path
) -> None:
    family = tiny_speakers("t5")
    shutil.copytree(family.base, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    del config["decoder_start_token_id"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointDamaged, match="names no decoder_start_token_id"):
        opened(family.recipe() | {"base": {"model": str(tmp_path / "base")}})


def test_a_fine_tune_with_another_tokenizer_is_refused(
    tiny_speakers: Callable[[str], SpeakingFamily], tmp_path: Path
) -> None:
    family = tiny_speakers("llama")
    shutil.copytree(family.tasks["colours"].folder, tmp_path / "colours")
    document = family.recipe()
    document["tasks"][1]["model"] = str(tmp_path / "colours")
    speaking_tokenizer("llama").save_pretrained(tmp_path / "colours")
    opened(document)
    other = speaking_tokenizer("llama")
    other.add_tokens(["zebra"])
    other.save_pretrained(tmp_path / "colours")
    with pytest.raises(ModelMismatch, match=r"base \(there\) and .*colours \(here\) do not agree: the token 'zebra'"):
        opened(document)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"text": "words"}, DatasetError, "there is no column 'words'"),
        ({"answers": [" red", " green"]}, DatasetError, r"label 2 .*data\.answers names 2, red, green"),
        ({"answers": [" rouge", " vert", " bleu"]}, RecipeError, "' rouge' and ' vert' are the same tokens"),
        ({"answers": [" red", " green " * 40, " blue"]}, RecipeError, "An answer of 40 tokens leaves 0"),
        ({"label": "nothing"}, DatasetError, "there is no column 'nothing'"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(
    tiny_speakers: Callable[[str], SpeakingFamily], data: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(changed(tiny_speakers("gpt2"), 1, **data))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"target": "nothing"}, DatasetError, r"there is no column 'nothing'.*target"),
        ({"target": "label"}, DatasetError, "column 'label' holds int64, not texts"),
        ({"max_new_tokens": 40}, RecipeError, "An answer of 40 tokens leaves 0 for the prompt"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    tiny_speakers: Callable[[str], SpeakingFamily], data: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        opened(changed(tiny_speakers("gpt2"), 2, **data))
