"""Metrics: how well one task's predictions match its references.

Each metric is one plain function over scikit-learn or SciPy, and nothing is fetched: `evaluate.load` would import a
script from the Hub. `load_metric` wraps the function in a genuine `evaluate.Metric` (for `evaluate.combine`, or to
compare with other modules); `score` calls the function itself, since `evaluate.Metric.compute` writes an Arrow table
first: 5 ms more than the 0.4 to 2 ms at 512 rows, thousands of times in a search. A test holds that both agree.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_merge.errors import DatasetError, RecipeError, nearest


if TYPE_CHECKING:
    import evaluate

_Values = Sequence[float] | NDArray[Any]
_Formula = Callable[[NDArray[Any], NDArray[Any]], float]


def score(metric: "str | evaluate.EvaluationModule", predictions: _Values, references: _Values) -> float:
    """Returns how well `predictions` match `references`, higher is better, always a finite number.

    A result that is no number (a correlation with constants, say) counts as 0.0: the configuration predicts nothing.

    Args:
        metric: One of `accuracy`, `matthews`, `f1`, `pearson_spearman`, or any evaluation module, of whose result the
            first float counts.
        predictions: [rows] class indices, or numbers for a regression metric.
        references: [rows] what they should be.

    Raises:
        RecipeError: The metric is unknown, refuses these rows, or returns no float.
        DatasetError: There are no rows, or the two lengths differ.
    """
    guessed, wanted = np.asarray(predictions), np.asarray(references)
    if guessed.shape != wanted.shape or wanted.ndim != 1:
        raise DatasetError(
            f"A metric needs one prediction per reference: shapes {guessed.shape} and {wanted.shape} differ."
        )
    if wanted.size == 0:
        raise DatasetError("A metric of no rows is undefined: give at least one prediction and its reference.")
    if not isinstance(metric, str):
        value = _foreign_score(metric, guessed, wanted)
    elif is_regression_metric(metric):
        value = _formula(metric)(guessed.astype(np.float64), wanted.astype(np.float64))
    else:
        value = _formula(metric)(_classes(metric, guessed), _classes(metric, wanted))
    return value if np.isfinite(value) else 0.0


def is_regression_metric(name: str) -> bool:
    """Returns whether the metric compares numbers instead of classes.

    Raises:
        RecipeError: The metric is unknown.
    """
    return _formula(name) is _pearson_spearman


@cache
def load_metric(name: str) -> "evaluate.Metric":
    """Returns the metric as an `evaluate.Metric`, built on first use and kept; its result has one key, the name.

    Raises:
        RecipeError: The metric is unknown.
    """
    formula = _formula(name)
    # Here and not above: evaluate drags in transformers' pipelines, ten seconds the first time.
    import datasets
    import evaluate

    kind = datasets.Value("float64" if is_regression_metric(name) else "int64")
    info = evaluate.MetricInfo(
        description=(formula.__doc__ or "").strip(),
        citation="",
        inputs_description="predictions [rows], references [rows]",
        features=datasets.Features({"predictions": kind, "references": kind}),
    )

    def compute(_: object, predictions: _Values, references: _Values) -> dict[str, float]:
        return {name: score(name, predictions, references)}

    # evaluate derives a module's name from its class: PearsonSpearman becomes pearson_spearman.
    title = "".join(part.capitalize() for part in name.split("_"))
    return type(title, (evaluate.Metric,), {"_info": lambda _: info, "_compute": compute})(keep_in_memory=True)


def _accuracy(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """The share of rows predicted exactly."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def _matthews(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """The Matthews correlation coefficient, -1 to 1, for any number of classes; 0.0 where a side has only one."""
    from sklearn.metrics import matthews_corrcoef

    if _is_constant(predictions) or _is_constant(references):
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def _f1(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """F1 of class 1 for two labels; the unweighted mean of F1 over all classes (macro) for more.

    There are two labels when every reference is 0 or 1. Only the references decide which classes there are, so that
    all configurations scored on the same rows are scored alike, and a row that was answered outside of them (by
    another task's head, say) is wrong and no class of its own.
    """
    from sklearn.metrics import f1_score

    classes = [1] if np.isin(references, (0, 1)).all() else np.unique(references)
    return float(f1_score(references, predictions, labels=classes, average="macro", zero_division=0.0))


def _exact_match(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """The share of rows whose written text was the target: predicted 1 where it was, which every reference is."""
    return _accuracy(predictions, references)


def _pearson_spearman(predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """The mean of the Pearson and the Spearman correlation; 0.0 where either side is constant or not finite."""
    from scipy.stats import pearsonr, spearmanr

    for values in (predictions, references):
        if not np.isfinite(values).all() or _is_constant(values):
            return 0.0
    return float((pearsonr(predictions, references).statistic + spearmanr(predictions, references).statistic) / 2)


_FORMULAS: Mapping[str, _Formula] = {
    "accuracy": _accuracy,
    "matthews": _matthews,
    "f1": _f1,
    "pearson_spearman": _pearson_spearman,
    "exact_match": _exact_match,
}


def _formula(name: str) -> _Formula:
    """Returns the function behind a metric's name."""
    if name not in _FORMULAS:
        raise RecipeError(f"Unknown metric '{name}'.{nearest(name, _FORMULAS)}")
    return _FORMULAS[name]


def _foreign_score(module: "evaluate.EvaluationModule", predictions: NDArray[Any], references: NDArray[Any]) -> float:
    """Returns the first float in the result of any evaluation module."""
    try:
        result = module.compute(predictions=predictions, references=references)
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"The metric '{module.name}' refuses these {len(references)} rows: {' '.join(str(error).split())[:300]} "
            "Give a metric for this kind of prediction."
        ) from error
    for value in (result or {}).values():
        if isinstance(value, float | np.floating):
            return float(value)
    found = ", ".join(f"{key}: {type(value).__name__}" for key, value in (result or {}).items()) or "nothing"
    raise RecipeError(f"The metric '{module.name}' returns no float ({found}). Give a metric whose result holds one.")


def _classes(metric: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Returns class indices as int64, also those that came as whole floats."""
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    if not np.array_equal(whole, values):
        raise DatasetError(
            f"The metric '{metric}' compares class indices, but was given {values[whole != values][0]}. "
            "For numbers choose pearson_spearman."
        )
    return whole


def _is_constant(values: NDArray[Any]) -> bool:
    """Returns whether all values are the same, up to rounding (where SciPy would warn that a correlation is moot)."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())
