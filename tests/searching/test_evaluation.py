import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_merge.errors import NonFiniteWeights
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.experts import ExpertKey, build_expert, decode_expert
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.inputs import Batch, image_batches, load_image_processor, load_tokenizer, restore, text_batches
from hf_merge.searching.building import Chain, ExpertBuilder, reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluation, Evaluator, predictions
from hf_merge.searching.metrics import score
from hf_merge.searching.running import TaskRun
from hf_merge.searching.space import SearchSpace
from hf_merge.storing.families import Family, FineTuned
from tests.modeling.test_assembly import head_of, opened, skeleton
from tests.tiny_models import TinyFamily, pictures


ROWS = 40
MERGED, SEPARATE = Configuration(((0, 0, 0),) * 4), Configuration(((0, 1, 2),) * 4)
MIXED = Configuration(((0, 0, 1), (0, 1, 0), (0, 1, 2), (0, 0, 0)))
# So large a step widens some tensors, which the criterion then refuses to quantise.
REFUSING: dict[str, Any] = {"method": {"scale": 1.5}, "codec": {"policy": "criterion"}}


def batches_of(tiny: TinyFamily, task: str) -> tuple[list[Batch], NDArray[Any]]:
    file = tiny.tasks[task].files["validation"]
    table = pyarrow.parquet.read_table(file).slice(0, ROWS).to_pydict()
    if tiny.kind == "image":
        images = pictures(table["image"])
        return image_batches(load_image_processor(tiny.base), images, batch_size=16), np.array(table["label"])
    return text_batches(load_tokenizer(tiny.base), table["text"], None, batch_size=16), np.array(table["label"])


def evaluator_of(
    tiny: TinyFamily,
    family: Family,
    *,
    limit_bytes: int = 10**9,
    method: dict[str, Any] | None = None,
    codec: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Evaluator:
    runs = {}
    for name, task in tiny.tasks.items():
        model = skeleton(tiny, family, name)
        model.set_head(head_of(family, name))
        runs[name] = TaskRun(name, model, *batches_of(tiny, name), task.metric)
    builder = ExpertBuilder(
        family,
        decompose(family.shapes, "type"),
        [MethodSpec.resolve("task_arithmetic", method or {})],
        [CodecSpec.resolve("int8", codec or {})],
        limit_bytes=limit_bytes,
    )
    return Evaluator(builder, runs, dtype)


def random_configurations(count: int, seed: int = 0) -> list[Configuration]:
    space = SearchSpace(("attention", "embedding", "mlp", "norm"), ("a", "b", "c"))
    rng = np.random.default_rng(seed)
    return [space.random(rng) for _ in range(count)]


def naive_scores(
    tiny: TinyFamily, family: Family, evaluator: Evaluator, grouping: Configuration, out: Path
) -> dict[str, float]:
    """Saves every task's merged model as a checkpoint of its own, loads it with transformers, and scores it."""
    loader = AutoModelForImageClassification if tiny.kind == "image" else AutoModelForSequenceClassification
    scores = {}
    for name, task in tiny.tasks.items():
        tuned = family.tasks[name]
        assert isinstance(tuned, FineTuned)
        merged = {own: tuned.read_head(own) for own in tuned.head}
        for key in evaluator.builder.chain(grouping, name):
            component = next(part for part in evaluator.builder.components if part.name == key.component)
            expert = build_expert(key, component, family.shapes, family.base, family.tasks)
            weights = decode_expert(key.codec, component.tensors, expert.tensors)
            merged |= {tuned.names[base_name]: tensor for base_name, tensor in weights.items()}
        folder = out / name
        folder.mkdir(parents=True)
        shutil.copy(task.folder / "config.json", folder)
        save_file(merged, folder / "model.safetensors", {"format": "pt"})
        model = loader.from_pretrained(folder).eval()
        batches, labels = batches_of(tiny, name)
        with torch.inference_mode():
            logits = restore(batches, [model(**batch.inputs).logits for batch in batches])
        scores[name] = score(task.metric, predictions(logits), labels)
    return scores


@pytest.mark.parametrize("grouping", [MERGED, SEPARATE, MIXED])
@pytest.mark.parametrize("layout", ["bert", "gpt2", "vit"])
def test_scores_are_those_of_models_made_one_by_one(
    tiny_family: Callable[[str], TinyFamily], layout: str, grouping: Configuration, tmp_path: Path
) -> None:
    tiny = tiny_family(layout)
    with opened(tiny) as family:
        evaluator = evaluator_of(tiny, family)
        evaluator.evaluate(random_configurations(1)[0])  # leaves something in the caches
        found = evaluator.evaluate(grouping)
        expected = naive_scores(tiny, family, evaluator, grouping, tmp_path)
    assert list(found.scores) == list(tiny.tasks)
    assert found.scores == pytest.approx(expected, abs=1e-6)
    assert found.performance == pytest.approx(sum(expected.values()) / 3, abs=1e-6)


def test_scores_differ_between_configurations(evaluator: Evaluator) -> None:
    assert len({evaluator.evaluate(grouping).performance for grouping in (MERGED, SEPARATE, MIXED)}) == 3


def test_caches_change_no_score(bert: TinyFamily, family: Family) -> None:
    """Whatever is remembered, and in whatever order configurations come."""
    large, none = evaluator_of(bert, family), evaluator_of(bert, family, limit_bytes=0)
    chosen = random_configurations(8)
    expected = {grouping: large.evaluate(grouping) for grouping in chosen}
    for grouping in reversed(chosen):
        assert none.evaluate(grouping) == expected[grouping]
        fresh = evaluator_of(bert, family, limit_bytes=20_000)
        assert fresh.evaluate(grouping) == expected[grouping]
    assert none.builder.built > large.builder.built


def test_one_assembled_model_at_a_time(bert: TinyFamily, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before an expert is decoded, nothing of its component's last one is left."""
    evaluator = evaluator_of(bert, family, limit_bytes=0)
    held: dict[str, list[weakref.ref[Tensor]]] = {}
    decoded = evaluator.builder.decoded

    def watched(key: ExpertKey) -> dict[str, Tensor]:
        assert not [ref for ref in held.get(key.component, []) if ref() is not None]
        weights = decoded(key)
        held[key.component] = [weakref.ref(tensor) for tensor in weights.values()]
        return weights

    monkeypatch.setattr(evaluator.builder, "decoded", watched)
    for grouping in random_configurations(5):
        evaluator.evaluate(grouping)
    assert all(tensor.numel() == 0 for run in evaluator.runs.values() for tensor in backbone(run))


def backbone(run: TaskRun) -> list[Tensor]:
    return [tensor for name, tensor in run.model.tensors().items() if name.startswith("bert.")]


def test_only_chains_not_met_before_are_run(evaluator: Evaluator) -> None:
    first = evaluator.evaluate(Configuration(((0, 0, 1),) * 4))
    assert (evaluator.forwards, evaluator.builder.built) == (3, 8)
    second = evaluator.evaluate(Configuration(((0, 1, 2),) * 4))  # the third task's chain is the same
    assert (evaluator.forwards, evaluator.builder.built) == (5, 16)
    third = evaluator.evaluate(Configuration(((0, 0, 1),) * 4))
    assert (evaluator.forwards, evaluator.builder.built) == (5, 16)
    assert [found.reuse.pairs_run for found in (first, second, third)] == [3, 2, 0]
    assert [found.reuse.pairs_asked for found in (first, second, third)] == [3, 3, 3]
    assert first == third  # what it took is no part of what was found


def test_components_that_tasks_share_are_decoded_once(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[ExpertKey] = []
    decoded = evaluator.builder.decoded

    def noted(key: ExpertKey) -> dict[str, Tensor]:
        keys.append(key)
        return decoded(key)

    monkeypatch.setattr(evaluator.builder, "decoded", noted)
    evaluator.evaluate(MERGED)
    assert len(keys) == 4


def parameters_of(tensors: dict[str, Tensor]) -> float:
    """What encoded tensors take: 8 bits count a quarter, and scale and zero point one each."""
    return sum(tensor.numel() * (0.25 if tensor.dtype == torch.uint8 else 1.0) for tensor in tensors.values())


def test_a_repeated_run_needs_no_forward(bert: TinyFamily, family: Family) -> None:
    first = evaluator_of(bert, family, **REFUSING)
    chosen = random_configurations(6)
    seen = [
        (
            first.cost(grouping),
            first.evaluate(grouping),
            first.cost(MIXED),
        )
        for grouping in chosen
    ]
    records = [
        (grouping, found.scores, first.builder.measured(grouping))
        for grouping, (_, found, _) in zip(chosen, seen, strict=True)
    ]
    second = evaluator_of(bert, family, **REFUSING)
    for grouping, scores, measured in records:
        for task, value in scores.items():
            second.remember(task, second.builder.chain(grouping, task), value)
        second.builder.remember(measured)
    # Costs before an evaluation steer the search, so they too must be what they were the first time.
    assert [(second.cost(one), second.evaluate(one), second.cost(MIXED)) for one in chosen] == seen
    assert [second.builder.measured(grouping) for grouping in chosen] == [measured for _, _, measured in records]
    assert (second.forwards, second.builder.built) == (0, 0)
    assert second.evaluate(MERGED) == first.evaluate(MERGED)


def test_fine_tunes_and_base_are_chains_at_full_precision(
    bert: TinyFamily, evaluator: Evaluator, family: Family
) -> None:
    for task in bert.tasks:
        run = evaluator.runs[task]
        own = evaluator.logits(task, reference_chain(evaluator.builder.components, (task,)))
        model = AutoModelForSequenceClassification.from_pretrained(bert.tasks[task].folder).eval()
        with torch.inference_mode():
            expected = restore(run.batches, [model(**batch.inputs).logits for batch in run.batches])
        assert torch.allclose(own, expected, atol=1e-5)
        base = evaluator.score(task, reference_chain(evaluator.builder.components, ()))
        assert base < evaluator.score(task, reference_chain(evaluator.builder.components, (task,)))


def test_bfloat16_is_close(bert: TinyFamily, family: Family) -> None:
    full, half = evaluator_of(bert, family), evaluator_of(bert, family, dtype=torch.bfloat16)
    for task, run in half.runs.items():
        run.model.set_head({name: tensor.bfloat16() for name, tensor in head_of(family, task).items()})
    chain: Chain = full.builder.chain(SEPARATE, "colours")
    logits = half.logits("colours", chain)
    assert logits.dtype == torch.float32
    assert (logits.argmax(1) == full.logits("colours", chain).argmax(1)).float().mean() > 0.8


def test_a_failed_run_lets_go_of_its_model(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = evaluator.builder.decoded

    def failing(key: ExpertKey) -> dict[str, Tensor]:
        if key.component == "norm":
            raise NonFiniteWeights("broken")
        return decoded(key)

    monkeypatch.setattr(evaluator.builder, "decoded", failing)
    with pytest.raises(NonFiniteWeights):
        evaluator.evaluate(MERGED)
    assert evaluator.forwards == 0
    assert all(tensor.numel() == 0 for run in evaluator.runs.values() for tensor in backbone(run))
    monkeypatch.undo()
    assert evaluator.evaluate(MERGED) == evaluator.evaluate(MERGED)


def test_predictions_are_labels_or_values() -> None:
    assert predictions(torch.tensor([[0.1, 0.9], [2.0, -1.0]])).tolist() == [1, 0]
    assert predictions(torch.tensor([[0.5], [-2.0]])).tolist() == [0.5, -2.0]


def test_what_is_not_a_number_predicts_no_label() -> None:
    assert predictions(torch.tensor([[0.1, float("nan")], [float("nan")] * 2, [2.0, -1.0]])).tolist() == [-1, -1, 0]


def test_performance_is_the_plain_mean() -> None:
    assert Evaluation({"a": 0.5, "b": 1.0}, 0.3).performance == 0.75
