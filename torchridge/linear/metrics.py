"""Metrics as their users hold them: a name, a callable, a metric object, a collection, a scorer of scikit-learn.

One place turns each into a number for held-out rows, so that a name means the same in every cross-validation here.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge.linear.outputs import Outputs, plain

# torchmetrics leaves open which way is better, as −1 says as much as 1; of a prediction it does not.
_CORRELATIONS = ("PearsonCorrCoef", "SpearmanCorrCoef", "ConcordanceCorrCoef", "KendallRankCorrCoef")


class Held(NamedTuple):
    """Held-out rows: what is true of them, and what a model that has not seen them says.

    Attributes:
        truth: (m,) or (m, t) numbers; the places of classes (m,); or indicators (m, k) of several labels a row.
        scores: predictions, shaped as `truth`; the scores of classes, (m,) of the second of two, or (m, k).
        classes: (k,) the labels in order, a tensor or an array; None for numbers.
        proba: (m, k), for a model that has probabilities.
        shows_proba: whether a callable is given probabilities, (m,) of the second of two classes, in place of scores.
        weight: (m,), which scorers of scikit-learn that take weights are given.
        several: whether a row has several labels.
    """

    truth: Tensor
    scores: Tensor
    classes: Any = None
    proba: Tensor | None = None
    shows_proba: bool = False
    weight: Tensor | None = None
    several: bool = False

    @property
    def labels(self) -> Any:
        """What `y` holds: numbers or indicators as they are, otherwise the label of each row."""
        if self.classes is None or self.several:
            return self.truth
        if isinstance(self.classes, Tensor):
            return self.classes[self.truth.to(self.classes.device)]
        return self.classes[self.truth.cpu().numpy()]

    @property
    def shown(self) -> Tensor:
        """What a callable of (y_true, y_score) is given as the second."""
        if not self.shows_proba or self.proba is None:
            return self.scores
        return self.proba[:, 1] if self.proba.shape[1] == 2 and not self.several else self.proba

    @property
    def likely(self) -> Tensor:
        """(m, k) probabilities; of a model without them the softmax of its scores, in the same order in a row."""
        if self.proba is not None:
            return self.proba
        if self.several:
            return self.scores.sigmoid()
        if self.scores.ndim == 1:
            return torch.stack([(-self.scores).sigmoid(), self.scores.sigmoid()], 1)
        return self.scores.softmax(1)


@dataclass(frozen=True)
class Metric:
    """A metric under a name.

    Attributes:
        name: what its value is reported under.
        argument: of the call that was given it, for errors.
        given: what was given; a string stands for a score that the caller computes itself.
        value: from held-out rows to the score.
        sign: 1 if larger is better, −1 if smaller is, 0 if the metric does not say.
    """

    name: str
    argument: str
    given: Any
    value: Callable[[Held], float]
    sign: int = 1

    @property
    def own(self) -> str | None:
        """The name of a score that the caller computes itself; None if predictions are needed."""
        return self.given if isinstance(self.given, str) else None

    def __call__(self, held: Held) -> float:
        """Return the score of held-out rows."""
        return self.value(held)

    def chosen_by(self) -> int:
        """Return the sign, or raise if the metric does not say which way is better."""
        if not self.sign:
            raise ValueError(
                f"`{self.argument}`: {self.name!r} does not say whether larger is better (`higher_is_better` is None), "
                f"so that it cannot choose a strength. Pass a callable of (y_true, y_score) for which larger is better."
            )
        return self.sign


def named(given: Any, argument: str, own: Mapping[str, int]) -> dict[str, Metric]:
    """Return metrics by name.

    Args:
        given: one metric, several, or several by name. A metric is a string (one of `own`, or the name of a scorer of
            scikit-learn), a callable of (y_true, y_score), an object with `update(predictions, y_true)` and `compute()`
            as torchmetrics has them, a collection of those, or a scorer of (estimator, X, y).
        argument: the argument's name, for errors.
        own: the names of scores that the caller computes itself: 1 if larger is better, −1 if smaller is.

    Raises:
        ValueError: on an unknown name, and on two metrics of one name.
        TypeError: on what is not a metric.
    """
    found: dict[str, Metric] = {}
    for name, metric in _listed(given, argument):
        if name in found:
            raise ValueError(f"`{argument}` has two metrics of the name {name!r}. Pass a mapping of names to metrics.")
        found[name] = _metric(name, metric, argument, own)
    return found


def first(given: Any, argument: str, own: Mapping[str, int]) -> tuple[Metric, dict[str, Metric]]:
    """Return the metric that chooses, the first of several, and all of them by name."""
    found = named(given, argument, own)
    if not found:
        raise ValueError(f"`{argument}` is empty; expected a metric.")
    return next(iter(found.values())), found


def is_object(metric: Any) -> bool:
    """Whether a metric has `update` and `compute`, as those of torchmetrics and torcheval have."""
    return callable(getattr(metric, "update", None)) and callable(getattr(metric, "compute", None))


def is_scorer(metric: Any) -> bool:
    """Whether a callable scores (estimator, X, y): scikit-learn's own do, and what asks for three arguments."""
    if type(metric).__module__.partition(".")[0] == "sklearn":
        return True
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) >= 3


def accepts_weight(scorer: Any) -> bool:
    """Whether a scorer takes `sample_weight`."""
    if hasattr(scorer, "_accept_sample_weight"):
        return bool(scorer._accept_sample_weight())
    parameters = inspect.signature(scorer).parameters.values()
    return any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)


def _listed(given: Any, argument: str) -> Iterable[tuple[str, Any]]:
    if isinstance(given, Mapping):
        for name, metric in given.items():
            members = list(_members(metric)) or [("", metric)]
            yield from ((str(name) if len(members) == 1 else f"{name}/{n}", m) for n, m in members)
        return
    if isinstance(given, str) or callable(given) or is_object(given):
        given = (given,)
    if not isinstance(given, Iterable):
        raise TypeError(_expected(argument, given))
    for metric in given:
        yield from list(_members(metric)) or [(name_of(metric), metric)]


def _members(metric: Any) -> Iterable[tuple[str, Any]]:
    """Return the metrics of a collection by name."""
    return metric.items() if is_object(metric) and callable(getattr(metric, "items", None)) else ()


def name_of(metric: Any) -> str:
    """Return what a metric is called."""
    if isinstance(metric, str):
        return metric
    inner = getattr(metric, "_score_func", None) or getattr(metric, "func", None) or metric
    return str(getattr(inner, "__name__", type(inner).__name__))


def _metric(name: str, given: Any, argument: str, own: Mapping[str, int]) -> Metric:
    if isinstance(given, str):
        if given in own:
            return Metric(name, argument, given, _computed_elsewhere, own[given])
        scorer = _sklearn_scorer(given, argument, own)
        return Metric(name, argument, scorer, lambda held: _of_scorer(scorer, held))
    if is_object(given):
        better = True if type(given).__name__ in _CORRELATIONS else getattr(given, "higher_is_better", True)
        sign = 0 if better is None else 1 if better else -1
        return Metric(name, argument, given, lambda held: _of_object(given, held, name, argument), sign)
    if not callable(given):
        raise TypeError(_expected(argument, given))
    if is_scorer(given):
        return Metric(name, argument, given, lambda held: _of_scorer(given, held))
    return Metric(name, argument, given, lambda held: _number(given(held.labels, held.shown), name, argument))


def _computed_elsewhere(held: Held) -> float:
    raise AssertionError(f"a score of its caller, not of {held}")


def _expected(argument: str, given: Any) -> str:
    return (
        f"`{argument}` should be a name, a callable of (y_true, y_score), an object with `update` and `compute`, a "
        f"collection of those or a scorer of scikit-learn, or several of them, got {type(given).__name__}."
    )


def _sklearn_scorer(given: str, argument: str, own: Mapping[str, int]) -> Any:
    try:
        from sklearn.metrics import get_scorer, get_scorer_names
    except ImportError:
        known = f"one of {', '.join(map(repr, own))}"
        raise ValueError(
            f"`{argument}` should be {known}, or a metric, got {given!r}. The names of scikit-learn's scorers are "
            f"known if scikit-learn is installed."
        ) from None
    if given not in get_scorer_names():
        known = f"one of {', '.join(map(repr, own))}"
        raise ValueError(f"`{argument}` should be {known}, or the name of a scorer of scikit-learn, got {given!r}.")
    return get_scorer(given)


def _of_object(metric: Any, held: Held, name: str, argument: str) -> float:
    """Return what a fresh copy of a metric object says, which takes predictions first."""
    fresh: Any = copy.deepcopy(metric)
    if callable(getattr(fresh, "to", None)):
        fresh = fresh.to(held.scores.device)
    if callable(getattr(fresh, "reset", None)):
        fresh.reset()
    predicted, truth = _predictions(fresh, held)
    try:
        fresh.update(predicted, truth)
        value = fresh.compute()
    except Exception as error:
        raise ValueError(
            f"`{argument}`: {name!r} ({type(metric).__name__}) refuses predictions of shape {tuple(predicted.shape)} "
            f"for targets of shape {tuple(truth.shape)}: {error}"
        ) from error
    return _number(value, name, argument)


def _predictions(metric: Any, held: Held) -> tuple[Tensor, Tensor]:
    """Return predictions and targets as a metric object takes them: of classes, probabilities and places."""
    if held.classes is None:
        return held.scores, held.truth.to(held.scores)
    proba, truth = held.likely, held.truth.to(held.scores.device).long()
    columns = getattr(metric, "num_classes", None)
    if held.several:
        return proba, truth
    if columns is None:
        return (proba[:, 1] if proba.shape[1] == 2 else proba), truth
    return _widened(proba, truth, held.classes, columns)


def _widened(proba: Tensor, truth: Tensor, classes: Any, columns: int) -> tuple[Tensor, Tensor]:
    """Return a column for every class that a metric knows, if the labels are their numbers."""
    labels = torch.as_tensor(classes) if isinstance(classes, Tensor) or classes.dtype.kind in "iu" else None
    known = labels is not None and not labels.is_floating_point() and columns > len(labels)
    if labels is None or not known or not bool((labels.min() >= 0) & (labels.max() < columns)):
        return proba, truth
    place = labels.long().to(proba.device)
    wide = proba.new_zeros(len(proba), columns)
    wide[:, place] = proba
    return wide, place[truth]


def _of_scorer(scorer: Any, held: Held) -> float:
    """Return what a scorer of (estimator, X, y) says of an estimator that has predicted already."""
    rows = torch.arange(len(held.scores))[:, None].numpy()
    weighted = held.weight is not None and accepts_weight(scorer)
    options = {"sample_weight": plain(held.weight)} if weighted else {}
    model = Outputs(held.scores, held.classes, held.proba, held.several)
    return float(scorer(model, rows, plain(held.labels), **options))


def _number(value: Any, name: str, argument: str) -> float:
    shape = tuple(getattr(value, "shape", ()))
    if not hasattr(value, "__float__") or math.prod(shape) != 1:
        got = f"values of shape {shape}" if shape else type(value).__name__
        raise ValueError(
            f"`{argument}`: {name!r} gave {got}, expected one number. Ask it for an average, e.g. average='macro'."
        )
    return float(value.item() if shape else value)
