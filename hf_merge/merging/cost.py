"""Storage cost C (Eq. 8): from shapes alone, in units of one full-precision base model.

A quantised unit of d_u elements at b bits counts b * d_u / 32 parameters plus two for its scale and zero point;
everything else counts whole. The sum over the distinct experts, plus the heads trained per task, is divided by d, the
parameters of the base backbone as saved. Router and chain map are overhead and reported apart, as in the paper.

Source: MERGE, arXiv 2602.06552, Eq. 8.
"""

import re
from collections.abc import Collection, Mapping
from math import inf, isfinite
from numbers import Real

from hf_merge.errors import BudgetError
from hf_merge.merging import codecs
from hf_merge.merging.codecs import CodecSpec
from hf_merge.merging.components import Shape


FULL_BITS = 32
_MOST = 1000.0  # whole models: nobody's limit, but what bytes look like without their unit
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(B|[KMG]i?B)?\s*", re.IGNORECASE)
_BUDGET_HELP = "Give a number (1.0 is one full-precision base model, 0.5 half of it) or bytes such as '250MB'."


def stored_parameters(shapes: Mapping[str, Shape], codec: CodecSpec, refused: Collection[str] = ()) -> float:
    """Returns what one expert takes, in full-precision parameters.

    Args:
        shapes: The expert's tensors.
        codec: How the expert is stored.
        refused: Tensors that the codec could store but did not, because they failed the range criterion (Eq. 6).
    """
    implementation = codecs.get(codec.name)
    settings = codec.mapping
    return sum(
        implementation.cost(shape, implementation.quantises(name, shape, settings) and name not in refused, settings)
        for name, shape in shapes.items()
    )


def normalised(stored: float, parameters: int) -> float:
    """Returns stored full-precision parameters in units of a base of `parameters` parameters."""
    return stored / parameters


def bytes_of(cost: float, parameters: int) -> int:
    """Returns the bytes that a cost stands for."""
    return round(cost * parameters * FULL_BITS / 8)


def parse_budget(budget: object, parameters: int) -> float | None:
    """Returns a budget in the unit of C, or None where there is no limit.

    Args:
        budget: None, a number in the unit of C (1.0 is one full-precision base), or a text: a number, or bytes as
            `"250MB"`.
        parameters: d, the parameters of the base backbone.

    Raises:
        BudgetError: The budget is no storage size, not above 0, or a number that can only be meant as bytes.
    """
    if budget is None:
        return None
    value = _read_budget(budget, parameters)
    if not isfinite(value) or value <= 0:
        raise BudgetError(f"The budget {budget!r:.80} is no finite number above 0. {_BUDGET_HELP}")
    return value


def _read_budget(budget: object, parameters: int) -> float:
    if isinstance(budget, Real) and not isinstance(budget, bool):
        try:
            return _as_cost(float(budget))
        except OverflowError:
            return inf
    match = _SIZE.fullmatch(budget) if isinstance(budget, str) else None
    if match is None:
        raise BudgetError(f"The budget {budget!r:.80} is no storage size. {_BUDGET_HELP}")
    number, unit = float(match[1]), (match[2] or "").upper()
    return number * _BYTES[unit] * 8 / FULL_BITS / parameters if unit else _as_cost(number)


def _as_cost(number: float) -> float:
    """Returns a number without a unit as it is, unless so many whole models cannot be meant."""
    if _MOST <= number < inf:
        megabytes = number if number < 1e6 else round(number / 1e6)
        raise BudgetError(
            f"The budget {number:.12g} would be as many whole models. Did you mean bytes: '{megabytes:.12g}MB'? "
            f"{_BUDGET_HELP}"
        )
    return number
