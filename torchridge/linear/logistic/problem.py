"""Checks of what `logistic` and `logistic_cv` are passed, and what it becomes inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Ranks
from torchridge.exceptions import ConvergenceWarning, SeparationWarning, warn
from torchridge.linear.matrices import dense_of, kind_of, operator_of, shape_of
from torchridge.solvers.cross_entropy.fit import class_weight
from torchridge.solvers.cross_entropy.over_ranks import summed
from torchridge.solvers.cross_entropy.sparse import filled
from torchridge.solvers.device import sent
from torchridge.solvers.iterative.operators import Operator
from torchridge.solvers.iterative.sparse import SparseArray, SparseTensor


@dataclass(frozen=True)
class Data:
    """Checked rows: X (n, d), labels (h, n) as indices into classes (k,), weight (n,) float64."""

    X: Tensor | Operator  # strided, or a sparse matrix that is only multiplied with
    labels: Tensor
    classes: Tensor
    weight: Tensor
    heads: bool
    ranks: Ranks | None = None  # of which these are the rows of one

    @property
    def total(self) -> float:
        """Σ s over all rows."""
        return float(summed(self.ranks, "weights", self.weight.sum()))


@dataclass(frozen=True)
class Settings:
    """How to solve: see the arguments of `logistic`."""

    intercept: bool
    tol: float
    max_iter: int
    max_elements: int
    dtype: torch.dtype
    unconverged: type[Warning] = ConvergenceWarning
    separable: type[Warning] = SeparationWarning


def check_data(X: Any, y: Any, sample_weight: Any) -> Data:
    """Return the data, or raise."""
    if kind_of(X) == "sparse":
        X = sparse_rows(X)
    for value, name in ((X, "X"), (y, "y")):
        if not is_operator(value):
            _check.is_tensor(value, name)
            _check.is_dense_real(value, name)
            _check.not_empty(value, name)
    data = check_part(X, y, sample_weight)
    if not bool((data.weight > 0).any()):
        raise ValueError("`sample_weight` is zero for every row; expected at least one row of every class to count.")
    check_two_classes(class_counts(data, data.weight[None])[:, 0], data.classes, "y")
    return data


def check_part(X: Any, y: Any, sample_weight: Any) -> Data:
    """Return what may be part of the data, with no rows or one class, or raise."""
    sparse = is_operator(X)
    for value, name in ((y, "y"),) if sparse else ((X, "X"), (y, "y")):
        _check.is_tensor(value, name)
        _check.is_dense_real(value, name)
    if len(X.shape) != 2:
        raise ValueError(
            f"`X` should have shape (n, d), got {tuple(X.shape)}. Flatten what is not a row, e.g. (n, -1)."
        )
    if y.ndim not in (1, 2):
        raise ValueError(f"`y` should have shape (n,), or (n, h) for h heads, got {tuple(y.shape)}.")
    if y.is_floating_point():
        raise TypeError(f"`y` should hold class labels as integers or booleans, got {y.dtype}. Convert it: `y.long()`.")
    _check.same_length(len(y), X.shape[0], "y", "X")
    on = torch.empty(0, device=X.device)
    _check.same_device({"X": on, "y": y, "sample_weight": sample_weight if isinstance(sample_weight, Tensor) else None})
    if not sparse:
        _check.finite(X, "X")
        X = X.detach()
    weight = check_weight(sample_weight, X)
    classes, labels = torch.unique(y.detach(), return_inverse=True)
    labels = labels.reshape(len(y), y.shape[1] if y.ndim == 2 else 1).mT.contiguous()
    return Data(X, labels, classes, weight, y.ndim == 2)


def is_operator(X: Any) -> bool:
    """Whether X is a matrix that has been checked and is only multiplied with."""
    return isinstance(X, (SparseArray, SparseTensor))


def sparse_rows(X: Any) -> Tensor | Operator:
    """Return a sparse matrix of torch or SciPy as what takes products with it, or strided if that is faster."""
    shape = shape_of(X)
    entries = X._nnz() if isinstance(X, Tensor) else int(X.nnz)
    return dense_of(X) if filled(shape, entries) else operator_of(X, "sparse")


def check_weight(sample_weight: Any, X: Tensor | Operator) -> Tensor:
    """Return the sample weights (n,) in float64, ones if there are none, or raise."""
    if sample_weight is None:
        return torch.ones(X.shape[0], dtype=torch.float64, device=X.device)
    _check.is_tensor(sample_weight, "sample_weight")
    _check.is_dense_real(sample_weight, "sample_weight")
    _check.shape(sample_weight, [(X.shape[0],)], "sample_weight")
    _check.non_negative(sample_weight, "sample_weight")
    weight: Tensor = sample_weight.detach().double()
    return weight


def class_counts(data: Data, weight: Tensor) -> Tensor:
    """Return the weight (h, g, k) of every class over all rows, under row weights (g, n)."""
    return summed(data.ranks, "class weights", class_weight(data.labels, weight, len(data.classes)))


def check_two_classes(seen: Tensor, classes: Tensor, where: str) -> None:
    """Raise if a head has a single class among the rows that have weight; `seen` (h, k) is the weight of each."""
    for head, column in enumerate(seen):
        present = (column > 0).nonzero()[:, 0]
        if len(present) < 2:
            of = f"`{where}`" if len(seen) == 1 else f"column {head} of `{where}`"
            raise ValueError(
                f"{of} holds one class only, {classes[present].tolist()}, among the rows with positive weight; "
                "expected at least two. Leave it out, or add rows of another class."
            )


def folds_that_fit(cv: int, labels: Tensor) -> int:
    """Return the number of stratified folds, or raise if no class has as many rows."""
    cv = _check.integer(cv, "cv", minimum=2)
    if cv > (most := int(labels.bincount().max())):
        raise ValueError(f"`cv`={cv} stratified folds need {cv} rows of some class, got at most {most}. Lower `cv`.")
    return cv


def check_strengths(C: Any, strength: Any, data: Data) -> Tensor:
    """Return C as a float64 tensor, () or (L,), from `C` or from λ in `strength`, or raise."""
    if C is not None and strength is not None:
        raise ValueError("`C` and `strength` were both given; they say the same thing. Pass one of them.")
    name, value = ("strength", strength) if strength is not None else ("C", 1.0 if C is None else C)
    try:
        values = sent(torch.as_tensor(value, dtype=torch.float64), data.X.device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` should be a number or a sequence of numbers, got {value!r}.") from None
    if values.ndim > 1 or values.numel() == 0:
        raise ValueError(f"`{name}` should be a number or have shape (L,), got shape {tuple(values.shape)}.")
    if not bool(((values >= 0) & torch.isfinite(values) if name == "strength" else values > 0).all()):
        bound = "finite and at least 0" if name == "strength" else "above 0 (infinity means no penalty)"
        raise ValueError(f"`{name}` should be {bound}, got {values.tolist()}.")
    return values if name == "C" else 0.5 / (values * data.total)


def _result_dtype(X: Any) -> torch.dtype:
    """Return the dtype of a result: that of X if it is float32 or float64, of a matrix of SciPy too."""
    known = {"float32": torch.float32, "float64": torch.float64}
    return known.get(str(X.dtype).removeprefix("torch."), _default(X))


def _default(X: Any) -> torch.dtype:
    return torch.get_default_dtype() if isinstance(getattr(X, "dtype", None), torch.dtype) else torch.float64


def check_settings(
    like: Any, *, fit_intercept: Any, tol: Any, max_iter: Any, max_elements: Any, dtype: Any
) -> Settings:
    """Return the settings for rows like `like`, or raise."""
    _check.option(fit_intercept, "fit_intercept", (True, False))
    if dtype is None:
        dtype = _result_dtype(like)
    _check.option(dtype, "dtype", (torch.float32, torch.float64))
    tol = (1e-6 if dtype is torch.float32 else 1e-10) if tol is None else tol
    return Settings(
        bool(fit_intercept),
        _check.number(tol, "tol", strict=True),
        _check.integer(max_iter, "max_iter", minimum=1),
        _check.integer(max_elements, "max_elements", minimum=1),
        dtype,
    )


def warn_unless_converged(converged: Tensor, gap: Tensor, settings: Settings) -> None:
    """Warn if a fit stopped before its tolerance, or, of infinite gap, has no optimum to reach."""
    endless = torch.isposinf(gap)
    if bool(endless.any()):
        warn(
            f"{int(endless.sum())} of {endless.numel()} logistic fits have no penalty and classes that are separable: "
            f"no optimum exists, as their weights would grow without bound. Those of a very weak penalty are returned. "
            f"Take a finite `C`.",
            settings.separable,
        )
    converged, gap = converged | endless, torch.where(endless, 0, gap)
    if not bool(converged.all()):
        warn(
            f"{int((~converged).sum())} of {converged.numel()} logistic fits stopped before the relative gap of their "
            f"objective was {settings.tol:g}: the largest is about {float(gap.max()):.1e}. Raise `max_iter` "
            f"(now {settings.max_iter}) or `tol`, strengthen the penalty, or standardize the features.",
            settings.unconverged,
        )
