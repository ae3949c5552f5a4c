"""What is gathered of a fine-tune, beside the same by plain transformers, one row and one label at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from hf_merge.merging.methods import Need
from hf_merge.modeling.gathering import gather
from hf_merge.modeling.inputs import Batch, load_tokenizer, text_batches
from hf_merge.recipe import Recipe
from hf_merge.searching.running import TaskRun
from hf_merge.workflow.project import Project, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]
ROWS = 7


def _ready(project: Project, task: str) -> tuple[TaskRun, dict[str, str]]:
    """Returns a task's fine-tune with all its weights and a few rows, and its tensors' names to the base's."""
    rows = {name: data.router.first(ROWS) for name, data in load_rows(project.recipe, project.heads).items()}
    run = task_runs(project, rows, Reader(project))[task]
    family, trunk = project.family, project.family.base.trunk
    tuned = family.tasks[task]
    run.model.set_backbone({name: tuned.read(name).view(shape) for name, shape in family.shapes.items()}, trunk)
    return run, {run.model.own_name(name, trunk): name for name in family.shapes}


def _plain(family: TinyFamily, task: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(family.tasks[task].folder).eval()


def _rows(batches: Any) -> list[dict[str, Tensor]]:
    return [
        {name: value[row : row + 1] for name, value in batch.inputs.items()}
        for batch in batches
        for row in range(len(batch.rows))
    ]


@pytest.mark.parametrize(("layout", "task"), [("bert", "colours"), ("bert", "sizes"), ("gpt2", "animals")])
def test_squared_gradients_are_the_fisher_information(tiny_family: Families, layout: str, task: str) -> None:
    family = tiny_family(layout)
    with open_project(Recipe.parse(family.recipe(), "test")) as project:
        run, names = _ready(project, task)
        found = gather(Need.SQUARED_GRADIENTS, run.model, names, run.batches)
    model = _plain(family, task)
    model.config.pad_token_id = run.model.module.config.pad_token_id
    parameters = dict(model.named_parameters())
    sums = {own: torch.zeros_like(parameters[own]) for own in names if own in parameters}
    for row in _rows(run.batches):
        count = model(**row).logits.shape[1]
        for label in range(count):
            model.zero_grad()
            logits = model(**row).logits[0]
            value = logits[0] if count == 1 else logits.log_softmax(0)[label]
            value.backward()
            chance = 1.0 if count == 1 else float(logits.detach().softmax(0)[label])
            for own, total in sums.items():
                gradient = parameters[own].grad
                if gradient is not None:
                    total += chance * gradient.square()
    length = float(sum(float(total.double().square().sum()) for total in sums.values())) ** 0.5
    assert {names[own] for own in sums} == set(found)
    for own, total in sums.items():
        expected = total / length
        assert (found[names[own]].values - expected).abs().max() <= 2e-3 * expected.abs().max() + 1e-9
    assert not any(parameter.requires_grad for parameter in run.model.module.parameters())


@pytest.mark.parametrize(("layout", "axes"), [("bert", {1}), ("gpt2", {0})])
def test_products_are_of_the_inputs_that_are_no_padding(tiny_family: Families, layout: str, axes: set[int]) -> None:
    family = tiny_family(layout)
    with open_project(Recipe.parse(family.recipe(), "test")) as project:
        run, names = _ready(project, "animals")
        found = gather(Need.INPUT_PRODUCTS, run.model, names, run.batches)
    assert {part.axis for part in found.values()} == axes
    model = _plain(family, "animals")
    model.config.pad_token_id = run.model.module.config.pad_token_id
    own_names = {base: own for own, base in names.items()}
    for base, part in found.items():
        module = model.get_submodule(own_names[base].removesuffix(".weight"))
        seen: list[Tensor] = []
        hook = module.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.inference_mode():
            for row in _rows(run.batches):
                length = int(row["attention_mask"].sum())
                model(**{name: value[:, :length] for name, value in row.items()})  # no padding at all
        hook.remove()
        inputs = torch.cat([each.reshape(-1, each.shape[-1]) for each in seen])
        expected = inputs.T @ inputs / len(inputs)
        torch.testing.assert_close(part.values, expected, rtol=1e-4, atol=1e-5)


def test_embeddings_and_norms_have_no_products(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("bert").recipe(), "test")) as project:
        run, names = _ready(project, "animals")
        found = gather(Need.INPUT_PRODUCTS, run.model, names, run.batches)
    assert found
    assert all(name.endswith("weight") and "embed" not in name and "Norm" not in name for name in found)


def test_how_rows_are_batched_changes_nothing(tiny_family: Families) -> None:
    family = tiny_family("bert")
    with open_project(Recipe.parse(family.recipe(), "test")) as project:
        run, names = _ready(project, "colours")
        rows = load_rows(project.recipe, project.heads)["colours"].router.first(ROWS)
        single: list[Batch] = text_batches(load_tokenizer(family.base), rows.texts or (), None, batch_size=1)
        for need in Need:
            whole = gather(need, run.model, names, run.batches)
            apart = gather(need, run.model, names, single)
            for name, part in whole.items():
                torch.testing.assert_close(part.values, apart[name].values, rtol=1e-3, atol=1e-5)
