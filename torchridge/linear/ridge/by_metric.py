"""Cross-validation by a metric of predictions: every training part is fitted, and its held-out rows are predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear import search
from torchridge.linear.arguments import Asked, Options, grid_of
from torchridge.linear.matrices import kind_of
from torchridge.linear.metrics import Held, Metric, first
from torchridge.linear.ridge.prepare import prepare_rows
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.kernels.few_rows import WholeDual
from torchridge.solvers.kernels.left_out import leave_one_out_errors
from torchridge.solvers.least_squares.criteria import CRITERIA
from torchridge.solvers.least_squares.scorers import Whole
from torchridge.solvers.least_squares.target_scores import SCORES, from_moments
from torchridge.solvers.moments import folds
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.rows import Rows

# (strengths) → (K, L, m, t) predictions of held-out rows; K pairs of them with the rows' numbers.
Tables = dict[str, Tensor]
Predict = Callable[[Tensor], "list[tuple[Tensor, Tensor]]"]


class Fits(NamedTuple):
    """The fits of `ridge`, of `ridge_path`, and the choice of `ridge_cv`."""

    one: Callable[..., RidgeSolution]
    path: Callable[..., RidgeSolution]
    choice: Callable[..., RidgeSolution]


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows, and what every fit to them shares."""

    X: Any
    y: Tensor
    weight: Tensor | None
    options: dict[str, Any]

    def of(self, train: Tensor) -> tuple[Any, Tensor, Tensor | None]:
        """Return the rows of a training part; of what cannot be cut, all rows with no weight for the others."""
        train = train.to(self.y.device)
        if kind_of(self.X) == "dense":
            X = self.X[train] if self.options["kernel"] is None else self.X[train][:, train]
            return X, self.y[train], None if self.weight is None else self.weight[train]
        own = torch.ones(len(self.y), device=self.y.device) if self.weight is None else self.weight
        return self.X, self.y, torch.zeros_like(own).index_add_(0, train, own[train])

    def predicted(self, path: RidgeSolution, train: Tensor, test: Tensor) -> Tensor:
        """Return the predictions of some rows by the fit to others, (L, m, t)."""
        train, test = train.to(self.y.device), test.to(self.y.device)
        if kind_of(self.X) == "dense":
            out = path.predict(self.X[test] if self.options["kernel"] is None else self.X[test][:, train])
        else:
            out = path.predict(self.X)[:, test]
        return out if out.ndim == 3 else out[..., None]


def is_metric(scoring: Any) -> bool:
    """Whether a score needs predictions."""
    return not _check.one_of(scoring, *from_moments())


def cross_validate(asked: Asked, fits: Fits) -> RidgeSolution:
    """Choose the strength of the best mean over folds of a metric, and fit at it."""
    X, y, alphas, cv, groups, scoring, per_target, sample_weight, options = asked
    metric, metrics = first(scoring, "scoring", {name: score.sign for name, score in SCORES.items()})
    sign = metric.chosen_by()
    _refuse(X, y, cv)
    shared = {name: value for name, value in options._asdict().items() if name != "max_bytes"}
    data = Data(X, y, sample_weight, shared)
    with torch.no_grad():
        predict = _leave_one_out(data, options, fits) if _check.same(cv, "loo") else _folds(data, cv, groups, fits)
        score = _scorer(data, predict, metrics, per_target)
        grid, join = grid_of(alphas) if not isinstance(alphas, str) else None, None
        if grid is None:
            shared = {"groups": groups, "sample_weight": sample_weight, **data.options}
            found = fits.choice(X, y, alphas, cv, **shared).alphas  # a grid from the eigenvalues
            assert found is not None
            grid, join = found.cpu(), _joined
        given = join is None
        best = search.search(
            score, grid, lambda t: sign * t[metric.name], given=given, per_target=per_target, join=join
        )
    chosen = best.strengths(per_target)
    return fits.one(
        X, y, chosen.alpha if chosen.per_target else chosen.alpha[0], sample_weight=sample_weight, **data.options
    ).with_changes(
        alphas=best.grid.to(best.table.device),
        scores=best.scores,
        fold_scores=best.table,
        best_score=best.score,
        scoring=metric.name,
        metrics=best.scored,
    )


def _joined(coarse: Tables, finer: Tables, order: Tensor) -> Tables:
    return {name: search.joined(coarse[name], finer[name], order) for name in coarse}


def _refuse(X: Any, y: Any, cv: Any) -> None:
    needs = "`scoring`: a metric needs predictions of held-out rows"
    if isinstance(X, Moments):
        raise ValueError(f"{needs}, which `Moments` do not hold. Pass the rows, or scoring='mse' or 'r2'.")
    if cv is None or (isinstance(cv, str) and not (cv in CRITERIA and CRITERIA[cv].holds_out)):
        asked = "leaves `cv` at 'gcv'" if cv is None else f"`cv`={cv!r}"
        raise ValueError(f"{needs}, and {asked} holds none out. Pass folds, e.g. cv=5, or cv='loo'.")
    if y is None:
        raise TypeError("`y` is missing; pass the targets.")
    if kind_of(X) is None:
        _check.is_tensor(X, "X")
    _check.is_tensor(y, "y")
    if len(X.shape) > 2:
        raise ValueError(f"{needs} of one problem, got `X` of shape {tuple(X.shape)}. Call `ridge_cv` for each.")
    _check.same_length(len(y), X.shape[0], "y", "X")


def _parts(data: Data, cv: Any, groups: Any) -> list[folds.Split]:
    cv, n = folds.as_ids(cv), len(data.y)
    if isinstance(cv, Tensor) or (isinstance(cv, int) and not isinstance(cv, bool)):
        ids = folds.fold_ids(cv, n, groups)
        return [((ids != k).nonzero()[:, 0], (ids == k).nonzero()[:, 0]) for k in range(int(ids.max()) + 1)]
    return folds.splits(cv, n, data.y, groups)


def _folds(data: Data, cv: Any, groups: Any, fits: Fits) -> Predict:
    parts = _parts(data, cv, groups)

    def predict(grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        found = []
        for train, test in parts:
            X, y, weight = data.of(train)
            path = fits.path(X, y, grid, sample_weight=weight, **data.options)
            found.append((data.predicted(path, train, test), test))
        return found

    return predict


def _leave_one_out(data: Data, options: Options, fits: Fits) -> Predict:
    """Return the predictions of all rows, each by the fit without it, as those of one fold."""
    n = len(data.y)
    if kind_of(data.X) != "dense" or options.standardize or options.kernel or options.solver == "cg":
        each = _folds(data, torch.arange(n), None, fits)
        return lambda grid: [(torch.cat([p for p, _ in each(grid)], 1), torch.arange(n))]
    rows = Rows(*_check.rows(data.X, data.y, data.weight))
    scorer = prepare_rows(rows, "loo", None, options).scorer
    assert isinstance(scorer, (Whole, WholeDual))

    def predict(grid: Tensor) -> list[tuple[Tensor, Tensor]]:
        errors = leave_one_out_errors(scorer, rows, grid.to(scorer.like))  # (n, L, t)
        return [((rows.y.to(errors)[:, None] - errors).transpose(0, 1), torch.arange(n))]

    return predict


def _scorer(
    data: Data, predict: Predict, metrics: Mapping[str, Metric], per_target: bool
) -> Callable[[Tensor], Tables]:
    """Return what scores strengths (L,) by every metric, (K, L, t or 1)."""

    def score(grid: Tensor) -> Tables:
        held = predict(grid)
        return {n: torch.stack([_table(m, data, *pair, per_target) for pair in held]) for n, m in metrics.items()}

    return score


def _table(metric: Metric, data: Data, predicted: Tensor, test: Tensor, per_target: bool) -> Tensor:
    """Return the scores (L, t or 1) of the held-out rows of one fold."""
    test = test.to(data.y.device)
    truth = data.y[test]
    truth = truth[:, None] if truth.ndim == 1 else truth
    weight = None if data.weight is None else data.weight[test]
    columns = [slice(j, j + 1) for j in range(truth.shape[1])] if per_target else [slice(None)]
    rows = [[_value(metric, truth[:, c], p[:, c], weight) for c in columns] for p in predicted]
    return torch.tensor(rows, dtype=torch.float64, device=data.y.device)


def _value(metric: Metric, truth: Tensor, predicted: Tensor, weight: Tensor | None) -> float:
    if metric.own is not None:
        y, share = truth.double(), None if weight is None else weight.double()
        return float(SCORES[metric.own](y - predicted.double(), y, share).nanmean())
    single = truth.shape[1] == 1
    return metric(Held(truth[:, 0] if single else truth, predicted[:, 0] if single else predicted, weight=weight))
