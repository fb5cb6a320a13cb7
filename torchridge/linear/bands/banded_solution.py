"""The frozen result of banded ridge: predictions and scores, whole and split by band."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchridge import _check
from torchridge.linear.bands import partition
from torchridge.linear.bands.partition import Partition
from torchridge.linear.ridge.solution.dual_solution import DualForm
from torchridge.solvers.least_squares import target_scores


@dataclass(frozen=True, eq=False)
class BandedSolution:
    """Banded ridge in its dual form: weights of bands are made when `weight` is called.

    Attributes:
        names: of the B bands.
        alpha: (B, t) the strength of each band for each target.
        scores: (t,) minus the mean squared error over folds at these strengths: larger is better.
        dual_coef: (n, t) a = (I + Σ K_b / α_b)⁻¹ (y − ȳ): W_b = aᵀ (X_b − x̄_b) / α_b.
        bias: (t,), zero without an intercept.
        target_center: (t,) ȳ, zero without an intercept.
        forms: the dual form of each band, by name.
        columns: which columns of X each band is; None if they came by themselves.
        n_samples: rows that were fitted.
        fit_intercept: whether a bias was fitted.
        vector_target: whether y came as (n,), so that predictions are (n,) too.
        dead_targets: (t,) whether a target is constant over all rows.
        refined: (t,) whether strengths were found for the target by itself, not among shared candidates.

    Example:
        >>> import torch
        >>> from torchridge import banded_ridge_cv
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 30, generator=g, dtype=torch.float64)
        >>> y = X[:, :10].sum(1) + torch.randn(60, generator=g, dtype=torch.float64)
        >>> solution = banded_ridge_cv(X, y, {"signal": slice(0, 10), "noise": slice(10, 30)}, cv=5)
        >>> solution.names, tuple(solution.predict(X, split=True).shape)
        (['signal', 'noise'], (2, 60))
        >>> parts = solution.score(X, y, split=True)  # of R², by band
        >>> bool(parts[0] > 0.7), bool(parts[1].abs() < 0.1)
        (True, True)
    """

    names: list[str]
    alpha: Tensor
    scores: Tensor
    dual_coef: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    target_center: Tensor = field(repr=False)
    forms: dict[str, DualForm] = field(repr=False)
    columns: list[slice | Tensor] | None = field(repr=False)
    n_samples: int
    fit_intercept: bool
    vector_target: bool
    dead_targets: Tensor = field(repr=False)
    refined: Tensor = field(repr=False)

    def weight(self, band: str | None = None) -> Tensor:
        """Return the weights of one band, (t, d_b), or of all in the order of the columns of X, (t, d).

        Raises:
            ValueError: on an unknown band, and for given kernels, which have no features.
        """
        if band is not None:
            _check.option(band, "band", self.names)
            return self.forms[band].weight()[0]
        parts = [self.forms[name].weight()[0] for name in self.names]
        whole = torch.cat(parts, 1)
        if self.columns is None:
            return whole
        order = torch.arange(whole.shape[1], device=whole.device)
        order = torch.cat([order[c] for c in self.columns])
        return torch.empty_like(whole).index_copy_(1, order, whole)

    def to_linear(self) -> nn.Linear:
        """Return an `nn.Linear` that computes `predict` of all columns, with a bias if an intercept was fitted."""
        weight = self.weight()
        t, d = weight.shape
        layer = nn.Linear(d, t, bias=self.fit_intercept, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if self.fit_intercept:
                layer.bias.copy_(self.bias)
        return layer

    def predict(self, X: Any, *, split: bool = False, max_bytes: int | None = None) -> Tensor:
        """Return predictions (m, t), or (m,) if y came as (n,); split by band with a leading dimension B.

        Split predictions are those of each band about the mean of its features: they sum to ŷ − ȳ.

        Args:
            X: (m, d), or the bands as they came to the fit; for given kernels those of new rows, (m, n).
            split: whether to give the part of each band.
            max_bytes: what the call may take above its answer, by default 256 MiB.

        Raises:
            ValueError: on shapes that do not fit, or another device.
            TypeError: on anything but a tensor.
        """
        matrices = self._matrices(X)
        dtype = self.bias.dtype
        parts = torch.zeros(
            len(self.names) if split else 1, len(matrices[0]), len(self.bias), dtype=dtype, device=self.bias.device
        )
        for b, (matrix, form) in enumerate(zip(matrices, self.forms.values(), strict=True)):
            for rows, part, predicted in form.predictions(matrix, max_bytes):
                parts[b if split else 0, rows, part] += predicted[0].to(dtype)
        out = parts if split else parts[0] + self.target_center.to(dtype)
        return out[..., 0] if self.vector_target else out

    def score(self, X: Any, y: Tensor, *, scoring: str = "r2", split: bool = False) -> Tensor:
        """Return how well X predicts y, for each target: (t,), () for a y of (n,); split by band (B, t), (B,).

        Split R² is the product measure Σ (y − ȳ) ŷ_b · 2 − ŷ_b ŷ over Σ (y − ȳ)², and split correlation
        cov(y, ŷ_b) / (sd(y) sd(ŷ)): the parts sum to the whole. Sources: Pratt 1987; Dupré la Tour, Eickenberg,
        Nunez-Elizalde & Gallant 2022, doi:10.1016/j.neuroimage.2022.119728.

        Args:
            X: as in `predict`.
            y: (m, t), or (m,) if the fit had (n,).
            scoring: "r2", "correlation", or "mse", which has no split.
            split: whether to give the part of each band.

        Raises:
            ValueError: as `predict`; on a split "mse".
        """
        _check.option(scoring, "scoring", target_scores.KINDS)
        if split and scoring == "mse":
            raise ValueError("`scoring`='mse' has no parts that sum to the whole. Use 'r2' or 'correlation'.")
        predicted = self.predict(X, split=split)
        _check.is_tensor(y, "y")
        _check.shape(y, [tuple(predicted.shape[1:] if split else predicted.shape)], "y")
        _check.finite(y, "y")
        target = (y[:, None] if self.vector_target else y).double()
        predicted = (predicted[..., None] if self.vector_target else predicted).double()
        if not split:
            found = target_scores.measured(scoring, target - predicted, target, None)
        else:
            found = _parts(scoring, predicted, target, self.target_center)
        found = found.to(self.bias.dtype)
        return found[..., 0] if self.vector_target else found

    def partition(self, X: Any, y: Tensor) -> Partition:
        """Return how the bands share the R² with which X predicts y: `plots.plot_bands` draws it.

        ``unique`` is R² minus that of a fit without the band, at the strengths chosen for the other bands: what no
        other band can explain. ``parts`` is the split of R² by the product measure, as `score` gives it with
        ``split=True``; what is left of a part, ``shared``, is explained together with other bands. All of ``unique``
        and ``shared`` sum to R². Source: Lescroart & Gallant 2019,
        doi:10.1016/j.neuron.2018.10.004.

        Args:
            X: as in `predict`.
            y: (m, t), or (m,) if the fit had (n,).

        Raises:
            ValueError: as `predict`; for given kernels, which are not kept.
            TypeError: on anything but a tensor.

        Cost: 10 n³ for each band and each set of proportions that targets share (at most the refined targets and the
        candidates), and n² t for each band.
        """
        parts = self.score(X, y, split=True)
        target = (y[:, None] if self.vector_target else y).double()
        without = partition.scores_without(self, self._matrices(X), target).to(parts.dtype)
        unique = self.score(X, y) - (without[..., 0] if self.vector_target else without)
        return Partition(self.names, parts, unique)

    def _matrices(self, X: Any) -> list[Tensor]:
        if self.columns is not None:
            _check.is_tensor(X, "X")
            d = sum(form.features for form in self.forms.values())
            if X.ndim != 2 or X.shape[1] != d:
                raise ValueError(f"`X` has shape {tuple(X.shape)}, expected (m, {d}) as it was fitted on.")
            return [X[:, part] for part in self.columns]
        if isinstance(X, dict):
            if sorted(map(str, X)) != sorted(self.names):
                raise ValueError(f"`X` should hold the bands {self.names}, got {list(X)}.")
            named = {str(name): value for name, value in X.items()}
            listed = [named[name] for name in self.names]
        else:
            listed = list(X)
        if len(listed) != len(self.names):
            raise ValueError(f"`X` should hold {len(self.names)} bands, got {len(listed)}.")
        for name, matrix in zip(self.names, listed, strict=True):
            _check.is_tensor(matrix, f"X[{name!r}]")
            expected = self.forms[name].features
            if matrix.ndim != 2 or matrix.shape != (len(listed[0]), expected):
                raise ValueError(
                    f"`X[{name!r}]` has shape {tuple(matrix.shape)}, expected ({len(listed[0])}, {expected})."
                )
        return listed


def _parts(scoring: str, predicted: Tensor, y: Tensor, center: Tensor) -> Tensor:
    """Return the parts (B, t) of a score, from predictions (B, m, t) that sum to ŷ − ȳ of the fit."""
    mean = y.mean(0)
    if scoring == "r2":  # the shift between the mean of y and that of the fit is no band's: it is shared evenly
        shift = (center - mean) / len(predicted)
        own = predicted + shift
        whole = own.sum(0)
        found = ((2 * (y - mean) - whole) * own).sum(1) / ((y - mean) ** 2).sum(0)
    else:
        own = predicted - predicted.mean(1, keepdim=True)
        size = ((own.sum(0) ** 2).sum(0) * ((y - mean) ** 2).sum(0)).sqrt()
        found = ((y - mean) * own).sum(1) / torch.where(size > 0, size, 1)
    return torch.where(target_scores.varies(y), found, torch.nan)
