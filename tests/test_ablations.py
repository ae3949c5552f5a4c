"""The ablations benchmark: variants differ in what they say and in nothing else, and hypervolumes are areas."""

import importlib.util
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_merge.recipe import Recipe, differences
from hf_merge.searching.pareto import Reference
from tests.tiny_models import TinyFamily
from tests.tiny_runs import SEARCH, evaluated


SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "ablations.py"
pytestmark = pytest.mark.slow  # every test is a whole command or two
SEEDS, EVALUATIONS = (0, 1), 7


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablations", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe(tiny_family: Callable[[str], TinyFamily]) -> Recipe:
    return Recipe.parse(tiny_family("bert").recipe(search=SEARCH | {"preset": "fast"}), "test")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(ablations: ModuleType, recipe: Recipe, cache: Path) -> dict[str, Any]:
    result: dict[str, Any] = ablations.ablate(
        recipe, seeds=SEEDS, evaluations=EVALUATIONS, only=["initial", "surrogate"], cache=cache
    )
    return result


def area(points: list[tuple[float, float]], cost: float, performance: float) -> float:
    """Returns the share of the box that points dominate, column by column between their costs."""
    corners = sorted({point[0] for point in points if point[0] < cost} | {cost})
    covered = 0.0
    for left, right in pairwise(corners):
        best = max((p for c, p in points if c <= left), default=performance)
        covered += (right - left) * max(0.0, best - performance)
    return covered / (cost * (1 - performance))


def points_of(folder: Path) -> list[tuple[float, float]]:
    return [(entry.cost, entry.performance) for entry in evaluated(folder)]


def test_a_variant_differs_from_preset_paper_in_what_it_says_alone(ablations: ModuleType, recipe: Recipe) -> None:
    plain = ablations.varied(recipe, {}, 0, EVALUATIONS, None)
    assert (plain.search.preset, plain.search.surrogate, plain.search.imagined_generations) == (
        "paper", "random_forest", 0
    )  # fmt: skip
    assert (plain.search.population, plain.search.validation_rows) == (4, 24)
    expected = {
        "model": ["merge.granularity: type and model"],
        "none": ["search.surrogate: random_forest and none"],
        "random": ["search.initial: kmeans and random"],
        "kmeans only": [f"search.population: 4 and {EVALUATIONS}"],
        "kmeans": [],
        "type": [],
        "random_forest": [],
    }
    variants = {name: changes for group in ablations.ABLATIONS.values() for name, changes in group.items()}
    for name, changed in expected.items():
        assert differences(plain, ablations.varied(recipe, variants[name], 0, EVALUATIONS, None)) == changed


def test_hypervolumes_are_areas_in_one_box_for_all(found: dict[str, Any], cache: Path) -> None:
    box = found["box"]["cost"], found["box"]["performance"]
    expected = set()
    for folder in cache.iterdir():
        points = points_of(folder)
        expected.add(tuple(round(area(points[: count + 1], *box), 9) for count in range(EVALUATIONS)))
    curves = {
        tuple(round(value, 9) for value in curve)
        for variants in found["hypervolumes"].values()
        for seeds in variants.values()
        for curve in seeds
    }
    assert curves == expected
    assert all(list(curve) == sorted(curve) for curve in curves)


def test_equal_settings_are_searched_once(found: dict[str, Any], cache: Path) -> None:
    assert found["hypervolumes"]["initial"]["kmeans"] == found["hypervolumes"]["surrogate"]["random_forest"]
    assert len(list(cache.iterdir())) == 4 * len(SEEDS)  # of five variants two are the same


def test_a_finished_run_is_not_searched_again(
    ablations: ModuleType, recipe: Recipe, found: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was searched again")

    monkeypatch.setattr(ablations, "search", refuse)
    again = ablations.ablate(recipe, seeds=SEEDS, evaluations=EVALUATIONS, only=["initial", "surrogate"], cache=cache)
    assert again == found


def test_of_a_space_that_is_smaller_the_last_hypervolume_stands(ablations: ModuleType) -> None:
    found = ablations.curve([(0.5, 0.5), (0.25, 0.75)], Reference(1.0, 0.0), 4)
    assert found == pytest.approx([0.25, 0.5625, 0.5625, 0.5625])


def test_the_table_tells_every_variant_and_the_plot_is_one(ablations: ModuleType, found: dict[str, Any]) -> None:
    lines = ablations.as_markdown(found).splitlines()
    assert [line.split(" | ")[1].strip() for line in lines[2:7]] == [
        "kmeans", "random", "kmeans only", "random_forest", "none"
    ]  # fmt: skip
    last = [curve[-1] for curve in found["hypervolumes"]["initial"]["random"]]
    assert f"{sum(last) / 2:.4f} ± {abs(last[0] - last[1]) / 2**0.5:.4f} |" in lines[3]
    assert ablations.plot(found["hypervolumes"]).startswith(b"\x89PNG")
