from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_merge.errors import InputError
from hf_merge.modeling.assembly import TaskModel
from hf_merge.serving.recombine import Recombiner
from hf_merge.storing.families import Family
from tests.modeling.test_assembly import backbone_of, batch_of, head_of, opened, skeleton
from tests.tiny_models import LAYOUTS, TinyFamily


MIXED = torch.tensor([2, 0, 1, 1, 0, 2])


def recombiner(family: TinyFamily, chains: str) -> Recombiner:
    """Returns the recombiner of three tasks; tasks of one letter share the backbone of the first of them."""
    with opened(family) as aligned:
        tasks = list(family.tasks)
        weights = {letter: backbone_of(aligned, tasks[chains.index(letter)]) for letter in dict.fromkeys(chains)}
        models = [_model(family, aligned, task, weights[letter]) for task, letter in zip(tasks, chains, strict=True)]
    return Recombiner(models, [(letter, "shared") for letter in chains], max(model.num_labels for model in models))


def _model(family: TinyFamily, aligned: Family, task: str, backbone: dict[str, Tensor]) -> TaskModel:
    model = skeleton(family, aligned, task)
    model.set_head(head_of(aligned, task))
    model.set_backbone(backbone, aligned.base.trunk)
    model.require_complete()
    return model


def one_by_one(recombined: Recombiner, batch: dict[str, Tensor], tasks: Tensor) -> Tensor:
    """What each row's own model gives for that row alone."""
    width = max(model.num_labels for model in recombined.models)
    answers = torch.full((len(tasks), width), -torch.inf)
    for row, task in enumerate(tasks.tolist()):
        model = recombined.models[task]
        answers[row, : model.num_labels] = model.logits({name: value[row : row + 1] for name, value in batch.items()})
    return answers


@pytest.mark.parametrize("chains", ["aaa", "aab", "abc"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_a_mixed_batch_are_answered_in_order(
    tiny_family: Callable[[str], TinyFamily], layout: str, chains: str
) -> None:
    recombined = recombiner(tiny_family(layout), chains)
    batch = batch_of(layout)
    assert torch.allclose(recombined.logits(batch, MIXED), one_by_one(recombined, batch, MIXED), atol=1e-5)


@pytest.mark.parametrize(("chains", "runs"), [("aaa", 1), ("aab", 2), ("aba", 2), ("abc", 3)])
def test_tasks_of_one_chain_share_the_backbones_run(
    tiny_family: Callable[[str], TinyFamily], chains: str, runs: int
) -> None:
    recombined = recombiner(tiny_family("bert"), chains)
    batch = batch_of("bert")
    passes = count_passes(recombined)
    recombined.logits(batch, MIXED)
    assert recombined.runs == len(passes) == runs
    recombined.logits(batch, torch.zeros(6, dtype=torch.int64))
    assert recombined.runs == runs + 1


def count_passes(recombined: Recombiner) -> list[int]:
    """Notes every pass through a first block."""
    passes: list[int] = []

    def note(module: nn.Module, given: Any) -> None:
        passes.append(len(given[0]))

    for model in recombined.models:
        model.module.get_submodule("bert.encoder.layer.0").register_forward_pre_hook(note)
    return passes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_of_one_task_is_exact(tiny_family: Callable[[str], TinyFamily], layout: str) -> None:
    recombined = recombiner(tiny_family(layout), "aab")
    batch = batch_of(layout)
    for task, model in enumerate(recombined.models):
        logits = recombined.logits(batch, torch.full((6,), task))
        assert torch.equal(logits[:, : model.num_labels], model.logits(batch))
        assert torch.isneginf(logits[:, model.num_labels :]).all()


def test_heads_inside_the_backbone_run_by_themselves(tiny_family: Callable[[str], TinyFamily]) -> None:
    family = tiny_family("bert")
    with opened(family) as aligned:
        shared = backbone_of(aligned, "animals")
        poolers = {name: shared.pop(name) for name in list(shared) if name.startswith("pooler.")}
        models = []
        for task in family.tasks:
            model = skeleton(family, aligned, task)
            model.set_head(head_of(aligned, task) | {f"bert.{name}": value for name, value in poolers.items()})
            model.set_backbone(shared, aligned.base.trunk)
            models.append(model)
    recombined = Recombiner(models, [("a",)] * 3, max(model.num_labels for model in models))
    batch = batch_of("bert")
    assert torch.allclose(recombined.logits(batch, MIXED), one_by_one(recombined, batch, MIXED), atol=1e-5)
    assert recombined.runs == 3


def test_clips_tasks_run_by_themselves(tiny_family: Callable[[str], TinyFamily]) -> None:
    recombined = recombiner(tiny_family("clip_vision"), "aaa")
    recombined.logits(batch_of("clip_vision"), MIXED)
    assert recombined.runs == 3


@pytest.mark.parametrize("inputs", [{}, {"input_ids": torch.zeros(0, 4, dtype=torch.int64)}])
def test_empty_batches_are_refused(tiny_family: Callable[[str], TinyFamily], inputs: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="batch is empty"):
        recombiner(tiny_family("bert"), "abc").logits(inputs, torch.zeros(0, dtype=torch.int64))


def test_a_failed_run_leaves_the_models_as_they_were(tiny_family: Callable[[str], TinyFamily]) -> None:
    recombined = recombiner(tiny_family("bert"), "aaa")
    batch = batch_of("bert")
    before = recombined.logits(batch, MIXED)
    head = recombined.models[1].module.get_submodule("classifier")
    handle = head.register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        recombined.logits(batch, MIXED)
    handle.remove()
    assert torch.equal(recombined.logits(batch, MIXED), before)
    assert torch.equal(recombined.models[1].logits(batch), recombined.logits(batch, torch.ones(6, dtype=torch.int64)))


def _fail(module: nn.Module, given: Any) -> None:
    raise ZeroDivisionError


def test_threads_do_not_mix_their_batches(tiny_family: Callable[[str], TinyFamily]) -> None:
    recombined = recombiner(tiny_family("bert"), "aab")
    batches = [batch_of("bert", seed) for seed in range(12)]
    tasks = [torch.randint(0, 3, (6,), generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
    expected = [recombined.logits(batch, chosen) for batch, chosen in zip(batches, tasks, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(recombined.logits, batches, tasks))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
