"""Chains run from kept hidden states give the bits of chains run whole."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pyarrow.parquet
import pytest
import torch

from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import decompose
from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.assembly import CPU
from hf_merge.modeling.inputs import load_tokenizer
from hf_merge.modeling.prompts import Prompter
from hf_merge.recipe import Recipe
from hf_merge.searching.building import ExpertBuilder, reference_chain
from hf_merge.searching.configuration import Configuration
from hf_merge.searching.evaluation import Evaluator
from hf_merge.searching.rows import Rows
from hf_merge.searching.running import Reuse, TaskRun
from hf_merge.searching.space import SearchSpace
from hf_merge.searching.states import StateCache
from hf_merge.storing.families import Family
from hf_merge.workflow.speaking import asked_run
from tests.modeling.test_assembly import head_of, opened, skeleton
from tests.modeling.test_language import opened_speakers, speaker_model
from tests.searching.test_evaluation import batches_of
from tests.tiny_models import TinyFamily
from tests.tiny_speakers import TAUGHT_SPEAKERS, WRITING, SpeakingFamily


def evaluator_of(
    tiny: TinyFamily,
    family: Family,
    limit_bytes: int,
    granularity: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Evaluator:
    runs = {}
    for name, task in tiny.tasks.items():
        model = skeleton(tiny, family, name)
        model.move_buffers(device)
        model.set_head({key: tensor.to(device, dtype) for key, tensor in head_of(family, name).items()})
        runs[name] = TaskRun(name, model, *batches_of(tiny, name), task.metric)
    components = decompose(family.shapes, granularity, stages=3)
    method, codec = MethodSpec.resolve("task_arithmetic", {}), CodecSpec.resolve("int8", {})
    builder = ExpertBuilder(family, components, [method], [codec], limit_bytes=10**9)
    return Evaluator(builder, runs, dtype, StateCache(limit_bytes))


def neighbours(evaluator: Evaluator, count: int) -> list[Configuration]:
    """Returns configurations each of which is a step from the one before, as a search meets them."""
    space = SearchSpace(tuple(part.name for part in evaluator.builder.components), tuple(evaluator.runs))
    rng = np.random.default_rng(0)
    walk = [space.random(rng)]
    while len(walk) < count:
        walk.append(space.mutate(walk[-1], rng))
    return walk


@pytest.mark.parametrize(
    ("dtype", "limit_bytes"),
    [
        (torch.float32, 10**9),
        (torch.bfloat16, 50_000),
        pytest.param(torch.bfloat16, 10**9, marks=pytest.mark.slow),
        pytest.param(torch.float32, 50_000, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("granularity", ["type-stage", "layer", "type-layer"])
@pytest.mark.parametrize("layout", ["bert", "gpt2", "vit"])
def test_kept_states_change_no_bit_of_the_logits(
    tiny_family: Callable[[str], TinyFamily], layout: str, granularity: str, dtype: torch.dtype, limit_bytes: int
) -> None:
    tiny = tiny_family(layout)
    with opened(tiny) as family:
        plain = evaluator_of(tiny, family, 0, granularity, dtype)
        kept = evaluator_of(tiny, family, limit_bytes, granularity, dtype)
        for grouping in neighbours(plain, 12):
            assert kept.evaluate(grouping) == plain.evaluate(grouping)
            for task in plain.runs:
                chain = plain.builder.chain(grouping, task)
                assert torch.equal(kept.logits(task, chain), plain.logits(task, chain))
        assert plain.reuse.blocks_run == 0, "without states nobody counts blocks"
        assert kept.states.held_bytes <= limit_bytes
        if limit_bytes == 10**9:
            assert kept.reuse.blocks_run < kept.reuse.blocks_asked


def test_a_chain_that_differs_in_its_last_stage_runs_that_stage_alone(
    tiny_family: Callable[[str], TinyFamily],
) -> None:
    tiny = tiny_family("bert")  # three blocks, three stages
    with opened(tiny) as family:
        evaluator = evaluator_of(tiny, family, 10**9, "type-stage")
        names = [component.name for component in evaluator.builder.components]
        first = tuple((0, 0, 0) for _ in names)
        second = tuple((0, 1, 1) if name == "mlp.2" else (0, 0, 0) for name in names)
        task = next(iter(evaluator.runs))
        batches = len(evaluator.runs[task].batches)
        evaluator.logits(task, evaluator.builder.chain(Configuration(first), task))
        before = evaluator.reuse
        evaluator.logits(task, evaluator.builder.chain(Configuration(second), task))
        assert evaluator.reuse - before == Reuse(blocks_asked=3 * batches, blocks_run=batches)


def test_without_depth_nothing_is_kept(tiny_family: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family("bert")
    with opened(tiny) as family:
        evaluator = evaluator_of(tiny, family, 10**9, "type")
        evaluator.evaluate(neighbours(evaluator, 1)[0])
        assert evaluator.states.held_bytes == 0


@pytest.mark.parametrize("layout", ["vit", "dinov2"])  # masks of texts are looked into, which the meta device refuses
def test_everything_computes_on_the_device_of_the_models(
    tiny_family: Callable[[str], TinyFamily], layout: str
) -> None:
    """On the meta device, which every machine has: a tensor left behind on the processor would stop the pass."""
    tiny, meta = tiny_family(layout), torch.device("meta")
    with opened(tiny) as family:
        evaluator = evaluator_of(tiny, family, 0, "type", device=meta)
        task, run = next(iter(evaluator.runs.items()))
        seen: list[torch.device] = []
        run.model.module.register_forward_hook(lambda _, __, output: seen.append(output.logits.device))
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the answer's way back
            evaluator.logits(task, evaluator.builder.chain(neighbours(evaluator, 1)[0], task))
        assert seen == [meta]


def test_models_on_several_devices_are_a_bug(tiny_family: Callable[[str], TinyFamily]) -> None:
    tiny = tiny_family("bert")
    with opened(tiny) as family:
        evaluator = evaluator_of(tiny, family, 0, "type")
        next(iter(evaluator.runs.values())).model.move_buffers(torch.device("meta"))
        with pytest.raises(ValueError, match="several devices: \\['cpu', 'meta'\\]"):
            Evaluator(evaluator.builder, evaluator.runs)


# Language models


def speaking_evaluator(
    tiny: SpeakingFamily, family: Family, limit_bytes: int, granularity: str, tasks: tuple[str, ...]
) -> Evaluator:
    runs, kind = {}, cast(Any, tiny.kind)
    prompter = Prompter(load_tokenizer(tiny.base), kind, {}, batch_size=16)
    for spec in Recipe.parse(tiny.recipe(), "a test").tasks:
        if spec.name not in tasks:
            continue
        table = pyarrow.parquet.read_table(tiny.tasks[spec.name].files["validation"]).slice(0, 30).to_pydict()
        labels = np.ones(30, dtype=np.int64) if spec.data.target else np.array(table["label"])
        rows = Rows(tuple(table["text"]), None, None, labels, tuple(table["target"]))
        runs[spec.name] = asked_run(spec, speaker_model(tiny, family), rows, prompter)
    components = decompose(family.shapes, granularity, stages=3)
    method, codec = MethodSpec.resolve("task_arithmetic", {}), CodecSpec.resolve("int8", {})
    builder = ExpertBuilder(family, components, [method], [codec], limit_bytes=10**9)
    return Evaluator(builder, runs, torch.float32, StateCache(limit_bytes))


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["type-stage", "layer"])
@pytest.mark.parametrize("layout", TAUGHT_SPEAKERS)
def test_kept_states_change_no_bit_of_the_scores_of_options(
    tiny_speakers: Callable[[str], SpeakingFamily], layout: str, granularity: str
) -> None:
    tiny, tasks = tiny_speakers(layout), ("animals", "colours")
    with opened_speakers(tiny) as family:
        plain = speaking_evaluator(tiny, family, 0, granularity, tasks)
        kept = speaking_evaluator(tiny, family, 10**9, granularity, tasks)
        for grouping in neighbours(speaking_evaluator(tiny, family, 0, granularity, tuple(tiny.tasks)), 8):
            for task in tasks:
                chain = plain.builder.chain(grouping, task)
                found = kept.logits(task, chain)
                assert torch.equal(found, plain.logits(task, chain))
                assert not torch.isnan(found).any()
        assert 0 < kept.reuse.blocks_run < kept.reuse.blocks_asked


@pytest.mark.parametrize("layout", ["gpt2", "t5"])
def test_no_state_is_kept_of_what_is_written(tiny_speakers: Callable[[str], SpeakingFamily], layout: str) -> None:
    tiny = tiny_speakers(layout)
    with opened_speakers(tiny) as family:
        plain = speaking_evaluator(tiny, family, 0, "layer", (WRITING,))
        kept = speaking_evaluator(tiny, family, 10**9, "layer", (WRITING,))
        walk = neighbours(speaking_evaluator(tiny, family, 0, "layer", tuple(tiny.tasks)), 4)
        found = [kept.logits(WRITING, plain.builder.chain(grouping, WRITING)) for grouping in walk]
        for logits, grouping in zip(found, walk, strict=True):
            assert torch.equal(logits, plain.logits(WRITING, plain.builder.chain(grouping, WRITING)))
            assert set(logits.sum(dim=1).tolist()) == {1.0}
        assert kept.states.held_bytes == 0
        own = reference_chain(plain.builder.components, (WRITING,))
        assert kept.logits(WRITING, own).argmax(dim=1).float().mean() > 0.9
