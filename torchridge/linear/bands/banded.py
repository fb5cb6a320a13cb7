"""Banded ridge: a strength for each band of features and each target, by cross-validation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.bands.band_features import Bands, bands_of
from torchridge.linear.bands.banded_solution import BandedSolution
from torchridge.linear.ridge.problem import check_given_kernel
from torchridge.linear.ridge.solution.dual_solution import DualForm
from torchridge.linear.types import CV, Groups
from torchridge.solvers.device import sent
from torchridge.solvers.kernels import gram_matrix
from torchridge.solvers.kernels.band_search import Found, search_bands
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.least_squares import target_scores
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments import finite, folds
from torchridge.solvers.moments.rows import Rows, result_dtype


def banded_ridge_cv(
    X: Tensor | Any,
    y: Tensor,
    bands: Any = None,
    cv: CV = 5,
    *,
    groups: Groups = None,
    fit_intercept: bool = True,
    kernel: str | None = None,
    refined_targets: int = 64,
    candidates: int = 40,
    seed: int = 0,
) -> BandedSolution:
    r"""Choose a strength for each band of features and each target by folds, and fit at them.

    Minimizes, for each target, over W_b (d_b,) and b₀

        Σ_i (y_i − Σ_b W_bᵀ x_bi − b₀)² + Σ_b α_b ‖W_b‖²

    at the strengths α_b of least mean squared held-out error, mean over folds. Source: Nunez-Elizalde, Huth & Gallant
    2019, doi:10.1016/j.neuroimage.2019.04.012.

    Of each of up to `candidates` proportions of bands, every overall strength is scored from one eigendecomposition.
    The first are equal bands, each band alone and each left out; what the targets lose at the proportions so far says
    which to try next, and for which targets, by the expected improvement of a Gaussian process. Each target takes its
    best. If there are no more than `refined_targets` targets, equal bands and each band alone are enough: each target
    goes on from its best by Levenberg and Marquardt's steps, with exact derivatives of the loss of the folds. With one
    band it is ``ridge_cv(X, y, "auto", cv, alpha_per_target=True)``.

    Args:
        X: (n, d) rows; or the bands themselves: a list of (n, d_b), or a dict of them by name. With
            kernel="precomputed", their kernels (n, n) in a list or dict.
        y: (n,) or (n, t).
        bands: of a single X, a dict of slices or column numbers by name, a list of them, or a label for each of the d
            columns; every column belongs to one band.
        cv: a number of folds (contiguous runs of rows, or whole groups), fold ids (n,), a splitter, or (train, test)
            row numbers, as in `ridge_cv`.
        groups: (n,) labels; rows of one group are never on both sides of a split.
        fit_intercept: whether b₀ is fitted; if not, it is zero.
        kernel: "precomputed" if kernels are given.
        refined_targets: up to how many targets each get strengths of their own by Newton-like steps.
        candidates: how many proportions of bands are tried.
        seed: of the proportions from which the next to try are picked.

    Returns:
        `BandedSolution` with `alpha` (B, t), minus the loss of the folds in `scores` (t,), predictions and
        scores split by band.

    Raises:
        ValueError: on bands that overlap or leave columns out, wrong shapes, NaN or infinity, and
            folds that cannot be made.
        TypeError: on anything but a tensor.

    Cost: n² d / 2 for the kernels and B n² numbers; 10 n³ and n² r t for each candidate, r about 10; K n³ / 3 for each
    of about 5 steps of a refined target.

    Example:
        >>> import torch
        >>> from torchridge import banded_ridge_cv
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 30, generator=g, dtype=torch.float64)
        >>> y = X[:, :10].sum(1) + torch.randn(60, generator=g, dtype=torch.float64)
        >>> solution = banded_ridge_cv(X, y, {"signal": slice(0, 10), "noise": slice(10, 30)}, cv=5)
        >>> bool(solution.alpha[1, 0] > 100 * solution.alpha[0, 0])
        True
    """
    _check.option(kernel, "kernel", (None, "linear", "precomputed"))
    _check.option(fit_intercept, "fit_intercept", (True, False))
    refined_targets = _check.integer(refined_targets, "refined_targets", minimum=1)
    candidates = _check.integer(candidates, "candidates", minimum=1)
    _check.is_tensor(y, "y")
    given = bands_of(X, bands, kernel == "precomputed")
    rows = [Rows(*_check.rows(x, y)) for x in given.matrices]
    splits = splits_of(cv, len(y), rows[0].y, groups)
    objective = Objective(bool(fit_intercept), precomputed=kernel == "precomputed")
    kernels = [_kernel(r, objective, name) for r, name in zip(rows, given.names, strict=True)]
    if not _check.sum_is_finite(y):
        _check.finite(y, "y")
    gram = torch.stack([k.gram for k in kernels])
    device = y.device
    on_device = [(sent(a, device), sent(b, device)) for a, b in splits]
    generator = torch.Generator().manual_seed(seed)
    found = search_bands(
        gram, rows[0].y, on_device, objective.intercept, refined_targets, candidates, generator
    )  # fmt: skip
    return _solution(given, rows, kernels, objective, found)


def splits_of(cv: Any, n: int, y: Tensor, groups: Any) -> list[folds.Split]:
    """Return the splits that `cv` and `groups` make of n rows, on the host."""
    if isinstance(cv, str) or cv is None:
        raise ValueError(f"`cv` should be folds: a number, ids, a splitter or row numbers, got {cv!r}.")
    cv = folds.as_ids(cv)
    if not isinstance(cv, Tensor) and (not isinstance(cv, int) or isinstance(cv, bool)):
        return folds.splits(cv, n, y, groups)
    ids = folds.fold_ids(cv, n, groups)
    return [((ids != k).nonzero()[:, 0], (ids == k).nonzero()[:, 0]) for k in range(int(ids.max()) + 1)]


def _kernel(rows: Rows, objective: Objective, name: str) -> Kernel:
    if objective.precomputed:
        check_given_kernel(rows.X, rows.y)
    n = len(rows.X)
    share = torch.full((n,), 1 / n, dtype=torch.float64, device=rows.X.device)
    found = gram_matrix.kernel_about(rows, share, objective, torch.float64)
    finite.check_kernel(found.gram, found.target, rows)
    return found


def _solution(
    given: Bands, rows: list[Rows], kernels: list[Kernel], objective: Objective, found: Found
) -> BandedSolution:
    y, dtype = rows[0].y, result_dtype(rows[0].X.dtype)
    forms, bias = {}, found.target_center.clone()
    for name, own, kernel, gamma in zip(given.names, rows, kernels, found.log_gamma.T.exp(), strict=True):
        coef = found.coef * gamma
        kept = None if objective.precomputed else own.X
        nothing = torch.zeros_like(found.target_center)
        forms[name] = DualForm(coef[:, None, :], kept, kernel.center, nothing, None, None, None, dtype)
        if objective.intercept:
            bias -= (kernel.center if kept is None else kernel.toward) @ coef
    return BandedSolution(
        names=given.names,
        alpha=(-found.log_gamma).exp().T.contiguous(),
        scores=-found.loss,
        dual_coef=found.coef,
        bias=bias.to(dtype),
        target_center=found.target_center,
        forms=forms,
        columns=given.columns,
        n_samples=len(y),
        fit_intercept=objective.intercept,
        vector_target=rows[0].vector_target,
        dead_targets=~target_scores.varies(y),
        refined=found.refined,
    )
