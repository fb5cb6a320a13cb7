"""The choice of C by folds: all folds and strengths fitted together, then scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge.estimators import _metrics
from torchridge.estimators._judges import of_rows
from torchridge.estimators._logistic_model import LogisticModel, Rows
from torchridge.estimators._scorers import Scorer
from torchridge.estimators._search import first_best
from torchridge.linear.logistic.cross_validation import fit_folds, training_weight
from torchridge.linear.logistic.problem import check_data, check_settings, check_strengths, warn_unless_converged
from torchridge.solvers.moments.folds import Split

_MAX_ELEMENTS = 2**24


class Paths(NamedTuple):
    """The fits of all folds at all strengths."""

    Cs: Any  # (L,) an array
    weight: Tensor  # (K, L, c, d)
    bias: Tensor  # (K, L, c)
    n_iter: Any  # (K, L) an array
    names: list[Any]  # (k,) the classes

    def flat(self, intercept: bool) -> Any:
        """Return an array (K, L, c, d), the bias as one column more where one was fitted."""
        both = torch.cat([self.weight, self.bias[..., None].to(self.weight)], -1) if intercept else self.weight
        return both.cpu().numpy()


def fold_paths(rows: Rows, parts: list[Split], Cs: Any, options: dict[str, Any]) -> Paths:
    """Fit every fold at every strength; a fold is a set of row weights."""
    data = check_data(rows.table.X, rows.codes, rows.weight)
    settings = check_settings(rows.table.X, max_elements=_MAX_ELEMENTS, dtype=None, **options)
    grid = np.logspace(-4, 4, Cs) if isinstance(Cs, int) else np.asarray(Cs, dtype=np.float64)
    strengths = check_strengths(grid, None, data).reshape(-1)
    found = fit_folds(data, training_weight(data, parts), strengths, settings)
    warn_unless_converged(found.converged, found.gap, settings)
    names = [c.item() if hasattr(c, "item") else c for c in rows.labels.classes]
    n_iter = found.n_iter.cpu().numpy().astype(np.int32)
    return Paths(grid.reshape(-1), found.weight, found.bias, n_iter, names)


def fold_scores(paths: Paths, rows: Rows, parts: list[Split], scorer: Scorer | None, params: Mapping[str, Any]) -> Any:
    """Return the score (K, L) of the held-out rows of every fold at every strength; without a scorer, accuracy."""
    scores = np.empty((len(parts), len(paths.Cs)))
    names = rows.labels.classes
    names = names.cpu().numpy() if isinstance(names, Tensor) else names
    for k, (_, test) in enumerate(parts):
        index = test.to(rows.codes.device)
        X = rows.table.X[test.numpy()] if rows.table.sparse else rows.table.X[index]
        codes = rows.codes[index]
        weight = None if rows.own is None else rows.own[index]
        cut = of_rows(params, test.numpy(), len(rows.codes))
        for i in range(len(paths.Cs)):
            if scorer is None:
                scores[k, i] = _accuracy(X, codes, weight, paths.weight[k, i], paths.bias[k, i])
            else:
                model = _member(paths, k, i, names)
                scores[k, i] = scorer(
                    model, X.cpu().numpy() if isinstance(X, Tensor) else X, names[codes.cpu().numpy()], **cut
                )
    return scores


def _accuracy(X: Any, codes: Tensor, sample_weight: Tensor | None, weight: Tensor, bias: Tensor) -> float:
    if isinstance(X, Tensor):
        logits = X.to(weight.dtype) @ weight.T + bias.to(weight.dtype)
    else:
        logits = torch.as_tensor(X @ weight.T.numpy()) + bias
    predicted = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
    return _metrics.accuracy(predicted == codes, sample_weight)


def _member(paths: Paths, k: int, i: int, names: Any) -> LogisticModel:
    model = LogisticModel()
    model.fit_intercept, model.device = True, None
    model.n_features_in_ = paths.weight.shape[-1]
    model.classes_, model.multilabel_ = names, False
    model.coef_ = paths.weight[k, i].cpu().double().numpy()
    model.intercept_ = paths.bias[k, i].cpu().double().numpy()
    return model


def best_of(scores: Any) -> int:
    """Return the index of the best of scores (L,); of equal ones the first, NaN last."""
    return int(first_best(scores))


def mean_of_best(paths: Paths, scores: Any) -> tuple[float, Tensor, Tensor]:
    """Return the means over folds of C, weights and biases, each fold at its own best."""
    best = first_best(scores.T)
    folds = torch.arange(len(best))
    index = torch.from_numpy(best)
    return float(paths.Cs[best].mean()), paths.weight[folds, index].mean(0), paths.bias[folds, index].mean(0)
