"""Strength conventions: one regularization strength, as each tool would write it.

The pivot is λ in (1/n) Σ (y − Wx − b)² + λ Σ W², summed over outputs. A convention states its own number as
(c · λ · nᵃ · …)^±1; a conversion is the quotient of two of them, so that what cancels is not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, overload


class _Row(NamedTuple):
    """The number of one convention: (scale · λ · Π fact^exponent)^power."""

    scale: float = 1.0
    weight: int = 0  # exponent of Σ s, which is n if no sample weights are given
    rows: int = 0  # of n, whatever the weights
    targets: int = 0  # of k
    target_std: int = 0
    feature_std: int = 0
    power: int = 1


_TABLE = {
    "lambda": _Row(),
    "keras": _Row(targets=-1),
    "torch": _Row(2.0, targets=-1),
    "mse_loss": _Row(targets=-1),
    "sklearn": _Row(weight=1),
    "lecture": _Row(weight=1),
    "elastic_net": _Row(),
    "sgd_regressor": _Row(weight=1, rows=-1),
    "logistic_C": _Row(2.0, weight=1, power=-1),
    "glmnet": _Row(target_std=1, feature_std=-2),
    "spark_linear": _Row(target_std=1, feature_std=-2),
    "spark_logistic": _Row(2.0, feature_std=-2),
}

CONVENTIONS = tuple(_TABLE)

_WHY = {
    "n_samples": "one of the two conventions sums over rows and the other takes their mean; pass the number of rows, "
    "or `sample_weight_sum` if rows are weighted",
    "n_targets": "the loss is a mean over outputs, too; pass their number",
    "target_std": "the strength is in units of the standard deviation of y; pass it (ddof 0 for glmnet)",
}


@overload
def convert_strength(
    value: float,
    source: str,
    target: str,
    *,
    n_samples: float | None = ...,
    n_targets: int | None = ...,
    sample_weight_sum: float | None = ...,
    target_std: float | None = ...,
    feature_std: float | None = ...,
) -> float: ...


@overload
def convert_strength(
    value: float,
    source: str,
    target: str,
    *,
    n_samples: float | None = ...,
    n_targets: int | None = ...,
    sample_weight_sum: float | None = ...,
    target_std: float | None = ...,
    feature_std: Sequence[float],
) -> list[float]: ...


def convert_strength(
    value: float,
    source: str,
    target: str,
    *,
    n_samples: float | None = None,
    n_targets: int | None = None,
    sample_weight_sum: float | None = None,
    target_std: float | None = None,
    feature_std: float | Sequence[float] | None = None,
) -> float | list[float]:
    """Return the strength that makes `target` solve the problem that `source` solves at `value`.

    All conventions are for one problem, with n rows, s their weights (1 if there are none), k outputs:

    =================  ==================================================  ============================
    convention         objective                                           value equal to λ
    =================  ==================================================  ============================
    "lambda"           Σ s e² / Σ s + λ‖w‖², summed over outputs           λ
    "keras"            mean loss + λ‖w‖² (``l2(λ)``)                       λ (λ/k, mean over k outputs)
    "torch"            mean loss + ½ weight_decay ‖w‖² (SGD, Adam)         2λ (2λ/k, as above)
    "mse_loss"         ``nn.MSELoss()`` over n·k numbers + λ‖w‖²           λ/k
    "sklearn"          Σ s e² + α‖w‖² (``Ridge``)                          λ Σ s
    "lecture"          (Σ s e² + Λ‖w‖²) / 2m                               λ Σ s
    "elastic_net"      Σ s e² / 2Σs + ½ α‖w‖² (``l1_ratio=0``)             λ
    "sgd_regressor"    Σ s e² / 2n + ½ α‖w‖²                               λ Σ s / n
    "logistic_C"       C Σ s cross-entropy + ½‖w‖²                         1 / (2 λ Σ s)
    "glmnet"           Σ s e² / 2Σs + ½ Λ Σ sd(x)² w², y over its sd       λ sd(y) / sd(x)²
    "spark_linear"     the same (``regParam``)                             λ sd(y) / sd(x)²
    "spark_logistic"   Σ s cross-entropy / Σs + ½ regParam Σ sd(x)² w²     2λ / sd(x)²
    =================  ==================================================  ============================

    The intercept is never penalized. Between a squared and a cross-entropy loss λ keeps its meaning, the weight of the
    penalty against the mean loss. AdamW and other decoupled decays solve no such problem and are not offered.

    Args:
        value: the strength in the convention `source`; ≥ 0, for "logistic_C" > 0.
        source: the convention of `value`, one of `CONVENTIONS`.
        target: the convention to return.
        n_samples: n, the number of rows.
        n_targets: k, the number of outputs that the loss is averaged over; "keras" and "torch" take 1 if it is not
            given ("lambda", "sklearn" and the others sum over outputs, or treat each by itself).
        sample_weight_sum: Σ s; n_samples if it is not given. If a library divides the *weighted* sum by n (Keras'
            default reduction does), leave it out: n_samples alone is right then.
        target_std: sd of y, ddof 0 for glmnet. Spark has ddof 0 for its normal equations, 1 for L-BFGS.
        feature_std: sd of a feature, or of each, if glmnet or Spark standardizes (the default): it then weights
            w² of each feature by sd(x)², so one number becomes one per feature. Leave it out for ``standardize=FALSE``
            or features of sd 1. ddof 0 for glmnet, as for y for Spark.

    Returns:
        The strength; if `feature_std` is a sequence, a list with that of each feature.

    Raises:
        ValueError: on an unknown convention, a missing or impossible number.
        TypeError: on what is not a number.

    Example:
        >>> from torchridge.strength import convert_strength
        >>> convert_strength(0.01, "keras", "sklearn", n_samples=1000)
        10.0
        >>> convert_strength(0.01, "keras", "torch")
        0.02
        >>> convert_strength(1.0, "logistic_C", "keras", n_samples=500)
        0.001
    """
    here, there = _row(source, "source"), _row(target, "target")
    start = _positive(value, "value", zero=here.power > 0, infinite=here.power < 0)
    targets = 1 if n_targets is None and "mse_loss" not in (source, target) else n_targets
    facts = {"weight": sample_weight_sum, "rows": n_samples, "targets": targets, "target_std": target_std}
    many = isinstance(feature_std, Sequence)
    spreads: Any = feature_std if many else [feature_std]
    results = [_convert(start, here, there, {**facts, "feature_std": 1 if s is None else s}) for s in spreads]
    return results if many else results[0]


def _row(name: Any, argument: str) -> _Row:
    if not isinstance(name, str) or name not in _TABLE:
        raise ValueError(f"`{argument}` should be one of {', '.join(map(repr, CONVENTIONS))}, got {name!r}.")
    return _TABLE[name]


def _convert(value: float, here: _Row, there: _Row, facts: dict[str, Any]) -> float:
    exponents = {name: getattr(there, name) - getattr(here, name) for name in facts}
    if facts["weight"] is None:  # Σ s is n then
        exponents["rows"] += exponents.pop("weight")
    numerator, denominator = there.scale, here.scale
    for name, exponent in exponents.items():
        if exponent:
            fact = _fact(facts[name], name) ** abs(exponent)
            numerator, denominator = (
                (numerator * fact, denominator) if exponent > 0 else (numerator, denominator * fact)
            )
    if here.power < 0:
        value = 1 / value if value > 0 else math.inf
    result = value * numerator / denominator
    if there.power < 0:
        return 1 / result if result > 0 else math.inf
    return result


def _fact(value: Any, name: str) -> float:
    argument = {"weight": "sample_weight_sum", "rows": "n_samples", "targets": "n_targets"}.get(name, name)
    if value is None:
        raise ValueError(f"`{argument}` is missing: {_WHY[argument]}.")
    return _positive(value, argument)


def _positive(value: Any, name: str, *, zero: bool = False, infinite: bool = False) -> float:
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__} {value!r}.")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__}.") from None
    if math.isnan(number) or number < 0 or (number == 0 and not zero) or (math.isinf(number) and not infinite):
        bound = "a finite number of at least 0" if zero else "positive" if infinite else "positive and finite"
        raise ValueError(f"`{name}` should be {bound}, got {value!r}.")
    return number
