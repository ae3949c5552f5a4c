"""The metrics: values worked out by hand, agreement with `evaluate.Metric.compute`, and what must not end a search."""

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_merge.errors import DatasetError, RecipeError
from hf_merge.recipe import METRICS
from hf_merge.searching.metrics import is_regression_metric, load_metric, score


@pytest.fixture(autouse=True)
def _metrics_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every evaluate.Metric makes a folder; evaluate reads HF_HOME only once, on import, so its config is set too."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    load_metric.cache_clear()
    yield
    load_metric.cache_clear()


@pytest.fixture
def module() -> Callable[..., Any]:
    """Makes an evaluation module that ends in a given result, or error."""
    import datasets
    import evaluate

    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def make(outcome: Any) -> Any:
        class Foreign(evaluate.Metric):  # type: ignore[misc, unused-ignore]
            def _info(self) -> Any:
                return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

            def _compute(self, predictions: Any, references: Any) -> Any:
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

        return Foreign(keep_in_memory=True)

    return make


def test_recipe_and_module_know_the_same_metrics() -> None:
    for name in METRICS:
        assert score(name, [0, 1, 0], [0, 1, 1]) != 0.0
    with pytest.raises(RecipeError, match=", ".join(sorted(METRICS))):
        score("nonsense", [0], [0])


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("accuracy", [0, 1, 2, 2], [0, 1, 1, 2], 0.75),
        ("matthews", [1, 0, 1, 1], [1, 0, 0, 1], 1 / np.sqrt(3)),
        ("matthews", [1, 1, 0, 0], [0, 0, 1, 1], -1.0),
        ("f1", [1, 1, 0, 0], [1, 0, 0, 1], 0.5),
        ("f1", [1, 1, 1, 1], [1, 1, 1, 0], 6 / 7),
        ("f1", [0, 1, 2, 2], [0, 1, 1, 2], (1 + 2 / 3 + 2 / 3) / 3),
        ("f1", [0, 0, 0], [1, 1, 0], 0.0),
        ("pearson_spearman", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson_spearman", [1.0, 2.0, 9.0], [3.0, 2.0, 1.0], (-np.sqrt(192 / 228) - 1) / 2),
    ],
)
def test_value_worked_out_by_hand(
    name: str, predictions: list[float], references: list[float], expected: float
) -> None:
    value = score(name, predictions, references)
    assert type(value) is float
    assert value == pytest.approx(expected)


def test_two_label_f1_does_not_change_its_meaning_when_a_third_class_is_predicted() -> None:
    assert score("f1", [1, 1, 0, 0], [1, 0, 0, 1]) == pytest.approx(0.5)
    assert score("f1", [1, 1, 2, 0], [1, 0, 0, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("astray", [-1, 7])
def test_an_answer_outside_of_the_classes_is_wrong_and_no_class_of_its_own(astray: int) -> None:
    references = [0, 1, 2] * 100
    predictions = [astray, *references[1:]]
    assert score("f1", predictions, references) == pytest.approx((2 * 99 / 199 + 1 + 1) / 3)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("predictions", [[0] * 6, [1] * 6, [0, 1, 0, 1, 1, 0]])
@pytest.mark.parametrize("references", [[0] * 6, [1] * 6, [0, 1, 1, 1, 0, 0]])
def test_constants_give_a_finite_number_without_a_warning(
    name: str, predictions: list[int], references: list[int]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = score(name, predictions, references)
    assert -1.0 <= value <= 1.0


@pytest.mark.parametrize("broken", [[0.5] * 3, [np.nan, 1, 2], [np.inf, 1, 2], [7.0, 7.0, 7.0 + 1e-14]])
def test_correlation_with_constant_or_non_finite_predictions_is_zero(broken: list[float]) -> None:
    assert score("pearson_spearman", np.array(broken), np.array([1.0, 2.0, 3.0], dtype=np.float32)) == 0.0
    assert score("pearson_spearman", [4.0], [2.0]) == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40), st.randoms())
def test_order_of_the_rows_does_not_matter(rows: list[tuple[int, int]], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    for name in METRICS:
        assert score(name, *zip(*rows, strict=True)) == pytest.approx(
            score(name, *zip(*shuffled, strict=True)), abs=1e-9
        )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_perfect_predictions_score_one_and_nothing_scores_more(references: list[int]) -> None:
    varied = len(set(references)) > 1
    assert score("accuracy", references, references) == 1.0
    for name in ("matthews", "pearson_spearman"):
        assert score(name, references, references) == pytest.approx(1.0 if varied else 0.0)


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_compute_and_score_agree(name: str) -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 5):
        predictions, references = rng.integers(0, classes, (2, 64))
        metric = load_metric(name)
        assert metric.name == name
        assert metric.compute(predictions=predictions, references=references) == {
            name: score(name, predictions, references)
        }
        metric.add_batch(predictions=predictions[:40], references=references[:40])
        metric.add_batch(predictions=predictions[40:], references=references[40:])
        assert metric.compute()[name] == score(name, predictions, references)
        assert score(metric, predictions, references) == score(name, predictions, references)


def test_metrics_are_genuine_and_combine() -> None:
    import evaluate

    assert isinstance(load_metric("f1"), evaluate.Metric)
    assert load_metric("f1") is load_metric("f1")
    both = evaluate.combine([load_metric("accuracy"), load_metric("f1")])
    assert both.compute(predictions=[1, 1, 0, 0], references=[1, 0, 0, 1]) == {"accuracy": 0.5, "f1": 0.5}


def test_score_takes_under_five_milliseconds_for_512_rows() -> None:
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, (2, 512))
    for name in METRICS:
        score(name, predictions, references)
        times = []
        for _ in range(20):
            start = time.process_time()
            score(name, predictions, references)
            times.append(time.process_time() - start)
        assert min(times) < 5e-3, name


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"total": 7, "ok": True, "value": 0.25, "other": 0.5}, 0.25),
        ({"value": np.float32(0.5)}, 0.5),
        ({"per_class": [0.1, 0.2], "value": np.float64(0.75)}, 0.75),
        ({"value": float("nan")}, 0.0),
    ],
)
def test_first_float_of_a_foreign_result_counts(module: Callable[..., Any], result: Any, expected: float) -> None:
    value = score(module(result), [0, 1], [1, 1])
    assert type(value) is float
    assert value == expected


@pytest.mark.parametrize("result", [{"total": 7}, {}, None, {"flag": True}])
def test_foreign_result_without_a_float_is_refused(module: Callable[..., Any], result: Any) -> None:
    with pytest.raises(RecipeError, match="'foreign' returns no float"):
        score(module(result), [0, 1], [1, 1])


def test_foreign_module_that_refuses_the_rows_is_named(module: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=r"'foreign' refuses these 2 rows: too\s+odd"):
        score(module(ValueError("too\n odd")), [0, 1], [1, 1])


def test_errors_name_what_to_do() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'accuracy'"):
        score("acuracy", [0], [0])
    with pytest.raises(RecipeError, match="Did you mean 'matthews'"):
        load_metric("mathews")
    with pytest.raises(RecipeError, match="Unknown metric 'mse'"):
        is_regression_metric("mse")
    with pytest.raises(DatasetError, match="no rows"):
        score("accuracy", [], [])
    with pytest.raises(DatasetError, match=r"\(2,\) and \(1,\)"):
        score("accuracy", [0, 1], [0])
    with pytest.raises(DatasetError, match=r"'accuracy' compares class indices, but was given 0\.5"):
        score("accuracy", [0, 1], [0, 0.5])
    with pytest.raises(DatasetError, match="was given nan"):
        score("accuracy", [np.nan, 1], [0, 1])


def test_only_the_correlation_is_a_regression_metric() -> None:
    assert [name for name in METRICS if is_regression_metric(name)] == ["pearson_spearman"]
