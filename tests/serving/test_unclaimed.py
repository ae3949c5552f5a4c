"""The merged model that tasks have in common, and inputs that no task claims."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hf_merge.errors import InputError
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.serving.model import MergeModel
from hf_merge.serving.router import UNCLAIMED
from hf_merge.serving.unclaimed import common_experts
from hf_merge.storing import chains
from hf_merge.storing.families import Family
from tests.modeling.test_assembly import opened
from tests.serving.members import MERGED, SEPARATE, rows_of, write
from tests.storing.chain_maps import differing, edited, sample
from tests.tiny_models import TinyFamily
from tests.tiny_runs import TinyRun


STRANGE = ["zz qq zz", "0 1 2 3"]


def plain_features(folder: Path, weights: Mapping[str, Tensor], texts: list[str]) -> Tensor:
    """Returns the mean last hidden states that transformers' own model of these weights gives."""
    backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval()
    backbone.load_state_dict(dict(weights), strict=False)
    inputs = load_tokenizer(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = backbone(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    pooled: Tensor = (states * mask).sum(dim=1) / mask.sum(dim=1)
    return pooled


def backbones(model: MergeModel) -> list[dict[str, Tensor]]:
    """Returns the backbone of every task, as an ordinary model has it."""
    return [dict(model.materialize(task).base_model.state_dict()) for task in model.tasks]


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name].float() for state in states]).mean(dim=0) for name in states[0]}


def probabilities(model: MergeModel, texts: list[str]) -> Tensor:
    """Returns with what probability the router takes texts to be each task's, [texts, tasks], one text at a time."""
    routing = model._parts.routing
    assert routing is not None
    router, eyes = routing
    tokenizer = load_tokenizer(model._member.folder)
    pooled = [eyes.pooled(tokenizer([text], return_tensors="pt")) for text in texts]
    return router.scores(torch.cat(pooled)).softmax(dim=1)


def texts_of(bert: TinyFamily) -> list[str]:
    return [text for task in bert.tasks for text in rows_of(bert, task)[:5]] + STRANGE


def test_one_expert_is_in_common_wherever_one_is_shared() -> None:
    chain_map = sample()
    assert common_experts(chain_map, ("sst2", "trec", "qqp")) == {
        "attention": {"attention-a1": 1}, "mlp": {"mlp-b1": 2, "mlp-b2": 1},
    }  # fmt: skip
    assert common_experts(chain_map, ("qqp", "sst2")) == {"attention": {"attention-a1": 1}, "mlp": {"mlp-b1": 1}}
    assert common_experts(chains.parse(edited(differing)), chain_map.tasks)["mlp"] == {"mlp-s": 1}


def test_of_merged_tasks_the_merged_model_is_in_common(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member", MERGED)
    model = MergeModel.from_pretrained(tmp_path / "member")
    texts = texts_of(bert)
    torch.testing.assert_close(model.features(texts), plain_features(bert.base, backbones(model)[0], texts))


def test_of_tasks_kept_apart_the_mean_is_in_common(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member", SEPARATE, codec="full")
    model, texts = MergeModel.from_pretrained(tmp_path / "member"), texts_of(bert)
    wanted = plain_features(bert.base, mean_of(backbones(model)), texts)
    torch.testing.assert_close(model.features(texts), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, plain_features(bert.base, backbones(model)[0], texts), rtol=1e-2, atol=1e-2)


def test_of_groups_each_counts_by_its_tasks(model: MergeModel, bert: TinyFamily) -> None:
    texts = texts_of(bert)
    wanted = plain_features(bert.base, mean_of(backbones(model)), texts)
    torch.testing.assert_close(model.features(texts), wanted, rtol=1e-4, atol=1e-4)


def test_features_come_in_the_order_of_the_inputs(model: MergeModel, bert: TinyFamily) -> None:
    texts = texts_of(bert)
    mixed: list[str | tuple[str, str]] = [texts[0], (texts[1], texts[2]), texts[3]]
    found = model.features(mixed, batch_size=1)
    torch.testing.assert_close(found[[0, 2]], model.features([texts[0], texts[3]]), rtol=1e-4, atol=1e-5)
    assert (model.features([]).shape, model.features([]).dtype) == ((0, 0), torch.float32)


@pytest.mark.parametrize("layout", ["bert", "vit"])
def test_features_are_given_in_few_bits_too(
    tiny_family: Callable[[str], TinyFamily], tmp_path: Path, layout: str
) -> None:
    tiny = tiny_family(layout)
    with opened(tiny) as family:
        write(tiny, family, tmp_path / "member", MERGED, dtype="bfloat16")
    inputs = rows_of(tiny, next(iter(tiny.tasks)))[:3]
    few = MergeModel.from_pretrained(tmp_path / "member").features(inputs)
    whole = MergeModel.from_pretrained(tmp_path / "member", dtype=torch.float32).features(inputs)
    assert few.dtype == torch.float32
    torch.testing.assert_close(few, whole, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("claim", [1e-6, 0.5, 0.9, 0.99])
def test_a_task_claims_what_the_router_takes_to_be_its_own(model: MergeModel, bert: TinyFamily, claim: float) -> None:
    texts = texts_of(bert)
    sure = probabilities(model, texts).amax(dim=1) >= claim
    assert torch.equal(model.routes(texts, claim=claim), model.routes(texts).where(sure, UNCLAIMED))
    if claim == 1e-6:
        assert sure.all(), "whatever else there is, some task has a third of the probability"
    output, free = model.outputs(texts, claim=claim), model.outputs(texts)
    assert torch.equal(output.task_ids, model.routes(texts, claim=claim))
    assert torch.isinf(output.logits[~sure]).all()
    torch.testing.assert_close(output.logits[sure], free.logits[sure], rtol=1e-4, atol=1e-5)
    for answer, other, claimed in zip(
        model.predict(texts, claim=claim), model.predict(texts), sure.tolist(), strict=True
    ):
        assert (answer.task, answer.label) == ((other.task, other.label) if claimed else (None, None))
        assert answer.score == (pytest.approx(other.score, abs=1e-4) if claimed else 0)


def test_what_nobody_claims_in_a_whole_batch_is_no_error(model: MergeModel) -> None:
    claim = float(probabilities(model, STRANGE).max()) * 1.0001
    if claim > 1:
        pytest.skip("the router is sure of everything")
    assert [answer.task for answer in model.predict(STRANGE, claim=claim)] == [None, None]


def test_a_task_that_was_not_loaded_keeps_others_from_claiming(routed_member: Path, bert: TinyFamily) -> None:
    tasks = list(bert.tasks)
    part, whole = MergeModel.from_pretrained(routed_member, tasks=tasks[:2]), MergeModel.from_pretrained(routed_member)
    texts = rows_of(bert, tasks[2])[:10]
    theirs = whole.routes(texts) == 2
    assert theirs.any()
    assert (part.routes(texts, claim=0.5)[theirs] == UNCLAIMED).all()
    assert (part.routes(texts)[theirs] != UNCLAIMED).all()


@pytest.mark.parametrize("claim", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_claim_that_is_no_probability_is_refused(model: MergeModel, claim: float) -> None:
    for ask in (model.predict, model.routes, model.outputs):
        with pytest.raises(InputError, match="give a probability above 0 and at most 1"):
            ask(["a text"], claim=claim)


def test_without_a_router_nothing_can_be_claimed(bert: TinyFamily, aligned: Family, tmp_path: Path) -> None:
    write(bert, aligned, tmp_path / "member", MERGED)
    with pytest.raises(
        InputError, match="holds no router: name the task of every input with task=, or leave claim out"
    ):
        MergeModel.from_pretrained(tmp_path / "member").predict(["a text"], claim=0.5)


def test_a_named_task_has_nothing_to_claim(model: MergeModel, routed_member: Path) -> None:
    with pytest.raises(InputError, match="claim is for inputs that are routed"):
        model.predict(["a text"], task=model.tasks[0], claim=0.5)
    alone = MergeModel.from_pretrained(routed_member, tasks=[model.tasks[0]])
    with pytest.raises(InputError, match=r"one task is loaded, which takes no router: .*load two tasks or more"):
        alone.predict(["a text"], claim=0.5)


def test_a_language_model_goes_on_from_what_no_task_claims(speaking_run: Callable[[str], TinyRun]) -> None:
    model = MergeModel.from_pretrained(speaking_run("llama").folder)
    texts: list[str | tuple[str, str]] = ["the small old cat", "zz", ("paint bright", "red wall a")]
    claim = float(probabilities(model, ["zz"]).max()) * 1.0001
    claimed = (model.routes(texts, claim=min(claim, 1.0)) != UNCLAIMED).tolist()
    if all(claimed):
        pytest.skip("the router is sure of everything")
    found = model.generate(texts, claim=claim, max_new_tokens=3)
    free = model.generate(texts, max_new_tokens=3)
    common: Any = model._common.language().module
    tokenizer = load_tokenizer(model._member.folder)
    for text, answer, other, own in zip(texts, found, free, claimed, strict=True):
        if own:
            assert answer == other
            continue
        prompt = "\n".join(text) if isinstance(text, tuple) else text
        inputs = tokenizer(prompt, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            written = common.generate(**inputs, max_new_tokens=3, do_sample=False)
        said = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert (answer.task, answer.text) == (None, said)
    with pytest.raises(InputError, match="has no features; ask it with generate"):
        model.features(texts)
