"""Losses beside their formulas, and fits that bring the merged model closer to what they are fitted to."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_merge.merging.methods import MethodSpec
from hf_merge.modeling.fitting import (
    Fit,
    Pupil,
    Seen,
    allocate,
    chunk_key,
    entropy,
    fit_alignment,
    fit_confidence,
    misalignment,
)
from hf_merge.modeling.mixture import CLAMPED, SIGMOID, Group, Link, Mixture
from hf_merge.recipe import Recipe
from hf_merge.workflow.fitting import _pupils
from hf_merge.workflow.project import Project, open_project
from tests.tiny_models import TinyFamily


Families = Callable[[str], TinyFamily]
PLAIN = {"hidden": 1.0, "logits": 1.0, "temperature": 1.0}


def test_entropy_is_that_of_the_answers() -> None:
    even, sure = torch.zeros(1, 4), torch.tensor([[100.0, 0.0, 0.0, 0.0]])
    assert float(entropy(even)) == pytest.approx(np.log(4))
    assert float(entropy(torch.cat([even, sure]))) == pytest.approx(np.log(4) / 2, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_answers_are_compared_by_cross_entropy_at_a_temperature(temperature: float) -> None:
    random = np.random.default_rng(0)
    seen, wanted = random.normal(size=(5, 3)), random.normal(size=(5, 3))

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    expected = temperature**2 * -(softmax(wanted) * np.log(softmax(seen))).sum(axis=1).mean()
    settings = {**PLAIN, "temperature": temperature}
    found = misalignment(Seen(torch.tensor(seen)), Seen(torch.tensor(wanted)), None, settings)
    assert float(found) == pytest.approx(expected)


def test_single_numbers_are_compared_by_half_the_squared_difference() -> None:
    seen, wanted = Seen(torch.tensor([[1.0], [2.0]])), Seen(torch.tensor([[1.0], [5.0]]))
    assert float(misalignment(seen, wanted, None, PLAIN)) == pytest.approx(0.5 * 9 / 2)


def test_states_are_compared_relative_to_their_size_and_without_padding() -> None:
    logits = torch.zeros(1, 2)
    wanted, seen = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    seen[:, :2] += 0.5
    seen[:, 2] = 100.0  # padding, which no mask lets through
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    without = misalignment(Seen(logits), Seen(logits), mask, PLAIN)
    for size in (1.0, 1000.0):
        pair = Seen(logits, (size * seen,)), Seen(logits, (size * wanted,))
        assert float(misalignment(*pair, mask, PLAIN) - without) == pytest.approx(0.25)
        weighed = misalignment(*pair, mask, {**PLAIN, "hidden": 3.0})
        assert float(weighed - without) == pytest.approx(0.75)


def test_chunks_are_shared_out_by_importance_and_rounded_down() -> None:
    group: Group = ("x", "y")
    importance = {("a", group): 3.0, ("b", group): 1.0, ("c", group): 0.5}
    whole = sum(importance.values())
    expected = {chunk_key(key): int(2.0 * 3 * value / whole) for key, value in importance.items()}
    assert allocate(importance, 2.0, 1.0) == expected
    assert sum(expected.values()) <= 6 and expected["c|x|y"] == 0
    assert set(allocate(importance, 2.0, 0.0).values()) == {2}
    assert allocate({("a", group): 0.0}, 1.0, 1.0) == {"a|x|y": 1}


def _set_up(project: Project, method: str, link: Link) -> tuple[Mixture, list[Pupil]]:
    family, tasks = project.family, tuple(project.family.tasks)
    pupils = _pupils(project, tasks, MethodSpec.resolve(method, {"rows": 12}))
    shared = {name: [tasks] for name in family.shapes}
    return Mixture(shared, family.origin, family.tasks, family.shapes, 0.3, link, lambda name, group: 1), pupils


def _own(project: Project, task: str) -> dict[str, Tensor]:
    family = project.family
    return {name: family.tasks[task].read(name).view(shape) for name, shape in family.shapes.items()}


def _answers(pupil: Pupil, weights: dict[str, Tensor]) -> Tensor:
    pupil.model.set_backbone(weights, pupil.trunk)
    return torch.cat([pupil.model.logits(batch.inputs) for batch in pupil.batches])


@pytest.mark.parametrize("layout", ["distilbert", "vit", "gpt2"])
def test_aligned_coefficients_bring_answers_closer_to_the_fine_tunes(tiny_family: Families, layout: str) -> None:
    with open_project(Recipe.parse(tiny_family(layout).recipe(), "test")) as project:
        mixture, pupils = _set_up(project, "expert_merging", SIGMOID)
        wanted = [_answers(pupil, _own(project, pupil.task)) for pupil in pupils]

        def distance() -> float:
            found = [_answers(pupil, mixture.weights(pupil.task)) for pupil in pupils]
            pairs = zip(found, wanted, strict=True)
            return sum(float((one.log_softmax(1) - other.log_softmax(1)).square().mean()) for one, other in pairs)

        before = distance()
        told: list[int] = []
        settings = MethodSpec.resolve("expert_merging", {"epochs": 3, "pull": 0.0, "accumulate": 6}).mapping
        fit_alignment(mixture, Fit(pupils, settings, told.append), lambda task: _own(project, task))
        assert distance() < 0.8 * before
        assert sum(told) == 3 * 3 * 12


def test_confident_coefficients_lower_the_entropy_of_answers(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("distilbert").recipe(), "test")) as project:
        mixture, pupils = _set_up(project, "adamerging", CLAMPED)

        def mean_entropy() -> float:
            return sum(float(entropy(_answers(pupil, mixture.weights(pupil.task)))) for pupil in pupils)

        before = mean_entropy()
        fit_confidence(mixture, Fit(pupils, {"rate": 0.02, "steps": 15.0}))
        assert mean_entropy() < 0.9 * before
        assert all(0 <= float(value) <= 1 for value in mixture.coefficients("animals").values())


def test_a_task_without_labels_gives_no_entropy(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("bert").recipe(), "test")) as project:
        mixture, pupils = _set_up(project, "adamerging", CLAMPED)
        alone = [pupil for pupil in pupils if pupil.task == "sizes"]
        before = {name: number.detach().clone() for (name, _), number in mixture.numbers.items()}
        fit_confidence(mixture, Fit(alone, {"rate": 0.02, "steps": 3.0}))
        assert all(torch.equal(before[name], number) for (name, _), number in mixture.numbers.items())


def test_a_strong_pull_keeps_coefficients_where_they_began(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("distilbert").recipe(), "test")) as project:
        moved = []
        for pull in (0.0, 1e5):
            mixture, pupils = _set_up(project, "expert_merging", SIGMOID)
            # A gradient is clipped to length one: with small steps, a pull that is all of it turns back at once.
            settings = MethodSpec.resolve("expert_merging", {"epochs": 3, "pull": pull, "rate": 0.02}).mapping
            fit_alignment(mixture, Fit(pupils, settings), lambda task: _own(project, task))
            moved.append(max(abs(float(value) - 0.3) for value in mixture.coefficients("animals").values()))
        assert moved[1] < 0.5 * moved[0]


def test_the_same_rows_and_settings_give_the_same_coefficients(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("distilbert").recipe(), "test")) as project:
        found = []
        for _ in range(2):
            mixture, pupils = _set_up(project, "expert_merging", SIGMOID)
            fit_alignment(
                mixture,
                Fit(pupils, MethodSpec.resolve("expert_merging").mapping),
                lambda task: _own(project, task),
            )
            found.append(torch.cat(list(mixture.coefficients("colours").values())))
        assert torch.equal(*found)


def test_a_task_of_more_weight_is_met_better(tiny_family: Families) -> None:
    with open_project(Recipe.parse(tiny_family("distilbert").recipe(), "test")) as project:
        gaps = []
        for weight in (1.0, 100.0):
            mixture, pupils = _set_up(project, "expert_merging", SIGMOID)
            pupils = [replace(pupil, weight=weight if pupil.task == "colours" else 1.0) for pupil in pupils]
            settings = MethodSpec.resolve("expert_merging", {"epochs": 4, "pull": 0.0, "accumulate": 6}).mapping
            fit_alignment(mixture, Fit(pupils, settings), lambda task: _own(project, task))
            (pupil,) = (pupil for pupil in pupils if pupil.task == "colours")
            found, wanted = _answers(pupil, mixture.weights("colours")), _answers(pupil, _own(project, "colours"))
            gaps.append(float((found.log_softmax(1) - wanted.log_softmax(1)).square().mean()))
        assert gaps[1] < 0.8 * gaps[0]
