"""Merged weights being fitted: their gradients beside torch's own, and the weights beside what the method makes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForSequenceClassification

from hf_merge.merging import methods
from hf_merge.merging.methods import Gathered, Member, MethodSpec
from hf_merge.modeling.mixture import CLAMPED, SIGMOID, Link, Mixture
from hf_merge.recipe import Recipe
from hf_merge.workflow.fitting import _pupils
from hf_merge.workflow.project import Project, open_project
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]
QUERY, WIDE = "encoder.layer.0.attention.self.query.weight", (32, 32)


@contextmanager
def _project(family: TinyFamily) -> Iterator[Project]:
    with open_project(Recipe.parse(family.recipe(), "test")) as project:
        yield project


def _mixture(
    project: Project,
    groups: list[tuple[str, ...]],
    link: Link = SIGMOID,
    chunks: int = 1,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> Mixture:
    family = project.family
    shared = dict.fromkeys(family.shapes, groups)
    return Mixture(shared, family.origin, family.tasks, family.shapes, 0.4, link, lambda name, group: chunks, factors)


@pytest.mark.parametrize("link", [SIGMOID, CLAMPED])
@pytest.mark.parametrize("chunks", [1, 3])
def test_gradients_are_those_of_torch_through_the_merged_weights(
    tiny_family: Families, link: Link, chunks: int
) -> None:
    family = tiny_family("distilbert")
    tasks = tuple(family.tasks)
    with _project(family) as project:
        pupil = _pupils(project, tasks, MethodSpec.resolve("adamerging", {"rows": 5, "batch": 2}))[1]
        mixture = _mixture(project, [tasks], link, chunks)
        inputs = next(batch.inputs for batch in pupil.batches if len(batch.rows) == 2)
        pupil.gradients(mixture, inputs, (), lambda seen: seen.logits.square().sum())
        mixture.pull_back(0.7)
        found = {name: number.grad for (name, _), number in mixture.numbers.items()}
        expected = _by_torch(family, project, mixture, pupil, inputs, link)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, expected[name], rtol=2e-3, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.01


def _by_torch(
    family: TinyFamily, project: Project, mixture: Mixture, pupil: Any, inputs: Any, link: Link
) -> dict[str, Tensor]:
    """Returns the gradients by name, computed by torch alone on a plain model of transformers."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(family.tasks[pupil.task].folder).eval()
    tuned, tasks = project.family.tasks, tuple(project.family.tasks)
    numbers = {name: number.detach().clone().requires_grad_() for (name, _), number in mixture.numbers.items()}
    merged, coefficients = {}, []
    for name, number in numbers.items():
        base, shape = project.family.origin.read(name), project.family.shapes[name]
        total, values = base.reshape(-1), link.forward(number)
        for task, row in zip(tasks, values, strict=True):
            vector = tuned[task].read(name).reshape(-1) - base.reshape(-1)
            size = -(-vector.numel() // len(row))
            total = total + row.repeat_interleave(size)[: vector.numel()] * vector
        merged[pupil.names[name]] = total.view(shape)
        coefficients.append(values.reshape(-1))
    loss = functional_call(model, merged, kwargs=dict(inputs)).logits.square().sum()
    loss = loss + 0.7 * (torch.cat(coefficients) - 0.4).abs().mean()
    gradients = torch.autograd.grad(loss, list(numbers.values()))
    return dict(zip(numbers, gradients, strict=True))


@pytest.mark.parametrize("chunks", [1, 4])
def test_weights_are_what_the_method_makes_of_the_coefficients(tiny_family: Families, chunks: int) -> None:
    family = tiny_family("bert")
    tasks = tuple(family.tasks)
    with _project(family) as project:
        mixture = _mixture(project, [tasks], chunks=chunks)
        with torch.no_grad():
            for index, number in enumerate(mixture.numbers.values()):
                number.add_(torch.linspace(-1, 1 + index % 3, number.numel()).view(number.shape))
        mixture.settle()
        base = project.family.origin.read(QUERY).view(WIDE)
        members = [
            Member(task, project.family.tasks[task].read(QUERY).view(WIDE), 0, Gathered(found))
            for task in tasks
            if (found := mixture.coefficients(task)[QUERY]) is not None
        ]
        spec = MethodSpec.resolve("expert_merging")
        merged = methods.get("expert_merging").merge(base, members, spec.mapping)
        assert torch.equal(merged, mixture.weights(tasks[0])[QUERY])
        assert not torch.equal(merged, base)


def test_a_group_of_one_is_its_tasks_own_weights_and_has_nothing_to_fit(tiny_family: Families) -> None:
    family = tiny_family("bert")
    first, *others = family.tasks
    with _project(family) as project:
        mixture = _mixture(project, [(first,), tuple(others)])
        own = project.family.tasks[first].read(QUERY)
        assert torch.equal(mixture.weights(first)[QUERY].reshape(-1), own.reshape(-1))
        assert mixture.fitted(first) == [] and QUERY in mixture.fitted(others[0])
        assert mixture.coefficients(first) == {} and len(mixture.coefficients(others[0])[QUERY]) == 1


def test_coefficients_start_at_the_scale_and_stay_in_their_range(tiny_family: Families) -> None:
    family = tiny_family("bert")
    tasks = tuple(family.tasks)
    with _project(family) as project:
        for link in (SIGMOID, CLAMPED):
            mixture = _mixture(project, [tasks], link)
            started = mixture.coefficients(tasks[0])[QUERY]
            torch.testing.assert_close(started, torch.tensor([0.4]))
            with torch.no_grad():
                mixture.numbers[QUERY, tasks].sub_(9.0)
            mixture.settle()
            assert 0.0 <= float(mixture.coefficients(tasks[0])[QUERY]) < 1e-3


def test_importance_is_the_weight_that_is_moved(tiny_family: Families) -> None:
    family = tiny_family("bert")
    tasks = tuple(family.tasks)
    with _project(family) as project:
        mixture = _mixture(project, [tasks])
        base = project.family.origin.read(QUERY)
        moved = sum(float((project.family.tasks[task].read(QUERY) - base).abs().sum()) for task in tasks)
        assert mixture.importance()[QUERY, tasks] == pytest.approx(0.4 * moved, rel=1e-5)


def test_a_factor_counts_in_weights_gradients_and_importance(tiny_family: Families) -> None:
    family = tiny_family("bert")
    tasks = tuple(family.tasks)
    with _project(family) as project:
        found = []
        for factors in ({}, {QUERY: 0.25}):
            mixture = _mixture(project, [tasks], factors=factors)
            mixture.add_gradients(tasks[0], {QUERY: torch.ones(WIDE)})
            mixture.pull_back(0.0)
            change = mixture.weights(tasks[0])[QUERY] - project.family.origin.read(QUERY).view(WIDE)
            gradient = mixture.numbers[QUERY, tasks].grad
            assert gradient is not None
            found.append((change, gradient, torch.tensor(mixture.importance()[QUERY, tasks])))
        for plain, scaled in zip(*found, strict=True):
            torch.testing.assert_close(scaled, 0.25 * plain, rtol=1e-4, atol=1e-6)
            assert plain.any()


def test_gradients_count_once(tiny_family: Families) -> None:
    family = tiny_family("bert")
    tasks = tuple(family.tasks)
    with _project(family) as project:
        mixture = _mixture(project, [tasks])
        mixture.add_gradients(tasks[0], {QUERY: torch.ones(WIDE)})
        mixture.pull_back(0.0)
        number = mixture.numbers[QUERY, tasks]
        assert number.grad is not None and float(number.grad.abs().sum()) > 0
        number.grad = None
        mixture.pull_back(0.0)
        assert number.grad is None or not number.grad.any()
