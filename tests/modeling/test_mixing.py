"""Rows mixed in one batch answer as models with each row's own weights do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_merge.errors import UnsupportedArchitecture
from hf_merge.merging.methods import MethodSpec
from hf_merge.merging.peers.twin import Exclusives, Twin, twin_merge
from hf_merge.modeling.mixing import mixed
from hf_merge.recipe import Recipe
from hf_merge.searching.running import TaskRun
from hf_merge.workflow.project import Project, Reader, open_project, task_runs
from hf_merge.workflow.rows import load_rows
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]
SHARED = MethodSpec.resolve("task_arithmetic")
ROWS = 9


def _ready(project: Project, twin: Twin) -> tuple[TaskRun, dict[str, Exclusives]]:
    """Returns the first task with a few rows and the shared weights, and the exclusive parts by its own names."""
    rows = {name: data.test.first(ROWS) for name, data in load_rows(project.recipe, project.heads).items()}
    run = next(iter(task_runs(project, rows, Reader(project)).values()))
    trunk = project.family.base.trunk
    run.model.set_backbone(twin.shared, trunk)
    return run, {run.model.own_name(name, trunk): part for name, part in twin.exclusives.items()}


def _one_by_one(project: Project, run: TaskRun, twin: Twin, inputs: dict[str, Tensor], shares: Tensor) -> Tensor:
    """Returns the logits of rows each of which has a model made for it, [batch, labels]."""
    found = []
    for row, own in enumerate(shares.tolist()):
        run.model.set_backbone(twin.weights(own), project.family.base.trunk)
        found.append(run.model.logits({name: value[row : row + 1] for name, value in inputs.items()}))
    run.model.set_backbone(twin.shared, project.family.base.trunk)
    return torch.cat(found)


@pytest.mark.parametrize("layout", ["bert", "roberta", "distilbert", "gpt2", "vit", "clip_vision", "dinov2"])
def test_a_batch_answers_as_models_made_for_each_row(tiny_family: Families, layout: str) -> None:
    with open_project(Recipe.parse(tiny_family(layout).recipe(), "test")) as project:
        family = project.family
        twin = twin_merge(family.shapes, family.origin, family.tasks, SHARED, 0.2)
        run, parts = _ready(project, twin)
        batch = run.batches[0]
        shares = torch.softmax(4 * torch.randn(len(batch.rows), 3, generator=torch.Generator().manual_seed(0)), dim=1)
        expected = _one_by_one(project, run, twin, batch.inputs, shares)
        with mixed(run.model, parts, shares):
            found = run.model.logits(batch.inputs)
        plain = run.model.logits(batch.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.01  # the parts say something, and are gone afterwards


def test_a_matrix_that_no_layer_runs_is_refused(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("bert").recipe(), "test")) as project:
        family = project.family
        twin = twin_merge(family.shapes, family.origin, family.tasks, SHARED, 0.2)
        run, parts = _ready(project, twin)
        norm = "bert.encoder.layer.0.output.LayerNorm.weight"
        with (
            pytest.raises(UnsupportedArchitecture, match=f"runs '{norm}' in LayerNorm, where rows cannot be mixed"),
            mixed(run.model, {norm: next(iter(parts.values()))}, torch.ones(1, 3)),
        ):
            pass


def test_a_layer_that_is_given_something_else_than_rows_is_refused(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("bert").recipe(), "test")) as project:
        family = project.family
        twin = twin_merge(family.shapes, family.origin, family.tasks, SHARED, 0.2)
        run, parts = _ready(project, twin)
        with (
            pytest.raises(UnsupportedArchitecture, match="for 2 rows, so that rows cannot be mixed"),
            mixed(run.model, parts, torch.ones(2, 3)),
        ):
            run.model.logits(run.batches[0].inputs)
