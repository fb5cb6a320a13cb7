"""Folds as scikit-learn's `check_cv` makes them: stratified runs for classes, runs of rows otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import warn
from torchridge.solvers.moments.folds import Split, fold_ids, splits
from torchridge.solvers.moments.stratified import stratified_folds


def make_parts(cv: Any, X: Any, y: Any, n: int, codes: Tensor | None, params: dict[str, Any]) -> list[Split]:
    """Return (train, test) row numbers of every fold.

    Args:
        cv: a number of folds, a splitter, an iterable of (train, test), or fold ids (n,).
        X: as the caller gave it, for a splitter to look at.
        y: as the caller gave it.
        n: rows.
        codes: (n,) class of every row, to stratify by.
        params: what else a splitter's `split` takes, such as groups.
    """
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        return _parts(_stratified(int(cv), codes.cpu()) if codes is not None else fold_ids(int(cv), n))
    if isinstance(cv, Tensor):
        return _parts(fold_ids(cv, n))
    if hasattr(cv, "split"):
        seen = np.zeros((n, 1)) if isinstance(X, Tensor) else X
        cv = cv.split(seen, y.detach().cpu().numpy() if isinstance(y, Tensor) else y, **params)
    return splits(cv, n, torch.zeros(n), None)


def _parts(ids: Tensor) -> list[Split]:
    return [((ids != k).nonzero()[:, 0], (ids == k).nonzero()[:, 0]) for k in range(int(ids.max()) + 1)]


def _stratified(k: int, codes: Tensor) -> Tensor:
    _check.integer(k, "cv", minimum=2)
    counts = torch.bincount(codes)
    counts = counts[counts > 0]
    if k > int(counts.max()):
        raise ValueError(
            f"`cv`={k} folds cannot be greater than the number of members in each class, {counts.tolist()}."
        )
    if k > int(counts.min()):
        warn(
            f"The least populated class in y has only {int(counts.min())} members, which is less than `cv`={k}.",
            UserWarning,
        )
    return stratified_folds(codes, k)
