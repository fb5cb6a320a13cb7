"""The choice of C by folds: all folds and strengths fitted together, then scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge.estimators._input import Container
from torchridge.estimators._judges import of_rows
from torchridge.estimators._logistic_model import LogisticModel, Rows
from torchridge.estimators._scorers import Scorer, accuracy, told
from torchridge.estimators._search import best_places
from torchridge.exceptions import UndefinedScoreWarning, warn
from torchridge.linear.logistic.cross_validation import Folds, fit_folds, training_weight, warn_of_missing
from torchridge.linear.logistic.problem import (
    Settings,
    check_data,
    check_strengths,
    class_counts,
    warn_unless_converged,
)
from torchridge.linear.search import CS, warn_of_edge
from torchridge.solvers.moments.folds import Split

# The logit of a class that training rows hold alone, −log(eps): the objective has its infimum at infinity.
_SURE = 36.04365338911715


class Paths(NamedTuple):
    """The fits of all folds at all strengths."""

    Cs: Any  # (L,) an array
    weight: Tensor  # (K, L, c, d)
    bias: Tensor  # (K, L, c)
    n_iter: Any  # (K, L) an array
    names: list[Any]  # (k,) the classes

    def flat(self, intercept: bool) -> Any:
        """Return an array (K, L, c, d), the bias as one column more if one was fitted."""
        both = torch.cat([self.weight, self.bias[..., None].to(self.weight)], -1) if intercept else self.weight
        return both.cpu().numpy()


def fold_paths(rows: Rows, parts: list[Split], Cs: Any, settings: Settings) -> Paths:
    """Fit every fold at every strength; a fold is a set of row weights."""
    data = check_data(rows.table.X, rows.codes, rows.weight)
    grid = np.logspace(-4, 4, Cs) if isinstance(Cs, int) else np.asarray(Cs, dtype=np.float64)
    strengths = check_strengths(grid, None, data).reshape(-1)
    weight = training_weight(data, parts)
    seen = class_counts(data, weight)[0]  # (K, k)
    warn_of_missing(seen, len(data.classes))
    alone = (seen > 0).sum(1) < 2
    alone = alone & (settings.intercept or len(data.classes) > 2)
    found = fit_folds(data, torch.where(alone[:, None], data.weight, weight), strengths, settings)
    _certain(found, seen, alone)
    warn_unless_converged(found.converged, found.gap, settings)
    names = [c.item() if hasattr(c, "item") else c for c in rows.labels.classes]
    n_iter = found.n_iter.cpu().numpy().astype(np.int32)
    return Paths(grid.reshape(-1), found.weight, found.bias, n_iter, names)


def _certain(found: Folds, seen: Tensor, alone: Tensor) -> None:
    """Have the folds that were trained on one class predict it, with a probability of one to rounding."""
    found.weight[alone] = 0
    open_ = seen[alone] > 0  # (a, k), which is one class each
    if found.bias.shape[-1] == 1:
        bias = (2 * open_[:, 1:].to(found.bias) - 1) * _SURE
    else:
        bias = torch.where(open_, 0.0, -torch.inf)
    found.bias[alone] = bias[:, None].to(found.bias)


def fold_scores(paths: Paths, rows: Rows, parts: list[Split], scorer: Scorer | None, params: Mapping[str, Any]) -> Any:
    """Return the score (K, L) of the held-out rows of every fold at every strength; without a scorer, accuracy."""
    scores = np.empty((len(parts), len(paths.Cs)))
    names = rows.labels.classes
    names = names.cpu().numpy() if isinstance(names, Tensor) else names
    scorer = None if scorer is None else told(scorer, names)
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
    return accuracy(predicted == codes, sample_weight)


def _member(paths: Paths, k: int, i: int, names: Any) -> LogisticModel:
    model = LogisticModel()
    model.fit_intercept, model.device = True, None
    model.n_features_in_ = paths.weight.shape[-1]
    model.classes_, model.multilabel_ = names, False
    model.coef_ = paths.weight[k, i].cpu().double().numpy()
    model.intercept_ = paths.bias[k, i].cpu().double().numpy()
    return model


def best_of(Cs: Any, scores: Any) -> int:
    """Return the index of the best of scores (K, L), summed over folds; of equal ones the first, and NaN last.

    Folds whose score is NaN at every strength compare none, and are left out. Warns at the edge of the strengths.
    """
    undefined = np.isnan(scores)
    if undefined.any():
        warn(
            f"the score is NaN in the folds {undefined.any(1).nonzero()[0].tolist()}, which counts as the worst; a "
            f"fold that is NaN at every strength is left out. Use fewer folds, or another `scoring`.",
            UndefinedScoreWarning,
        )
    compared = scores[~undefined.all(1)]
    best = int(best_places(compared.sum(0) if len(compared) else scores.sum(0)))
    warn_of_edge(torch.as_tensor(Cs), torch.tensor([best]), CS)
    return best


def mean_of_best(paths: Paths, scores: Any) -> tuple[float, Tensor, Tensor]:
    """Return the means over folds of C, weights and biases, each fold at its own best."""
    best = best_places(scores.T)
    folds = torch.arange(len(best))
    index = torch.from_numpy(best)
    return float(paths.Cs[best].mean()), paths.weight[folds, index].mean(0), paths.bias[folds, index].mean(0)


def keep_paths(model: Any, paths: Paths, scores: Any, C: float, container: Container) -> None:
    """Give a model the paths of all folds, in the shapes that `use_legacy_attributes` asks for."""
    kind, given = container.kind, model.l1_ratios is not None and not isinstance(model.l1_ratios, str)
    m = len(model.l1_ratios) if given else 1
    flat = np.repeat(paths.flat(model.fit_intercept)[:, None], m, 1)  # (K, m, L, c, d + 1)
    scores, n_iter = np.repeat(scores[:, None], m, 1), np.repeat(paths.n_iter[:, None], m, 1)  # (K, m, L)
    model.Cs_, model.l1_ratios_ = kind(paths.Cs), kind(np.zeros(m))
    if not model.use_legacy_attributes:
        model.C_, model.l1_ratio_ = C, 0.0
        model.scores_, model.n_iter_, model.coefs_paths_ = kind(scores), kind(n_iter), kind(flat)
        return
    classes = paths.names[1:] if flat.shape[3] == 1 else paths.names
    model.C_, model.l1_ratio_ = kind(np.full(flat.shape[3], C)), kind(np.zeros(flat.shape[3]))
    scores, n_iter, flat = scores.swapaxes(1, 2), n_iter.swapaxes(1, 2), flat.swapaxes(1, 2)
    if not given:
        scores, n_iter, flat = scores[:, :, 0], n_iter[:, :, 0], flat[:, :, 0]
    model.scores_ = {c: kind(scores.copy()) for c in classes}
    model.coefs_paths_ = {c: kind(flat[..., i, :]) for i, c in enumerate(classes)}
    model.n_iter_ = kind(n_iter[None])
