"""Checks of the arguments that linear models share, and what they become inside: the only ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.ridge.table import SOLVERS
from torchridge.solvers.device import sent
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.moments import Moments
from torchridge.strength import convert_strength


class Options(NamedTuple):
    """What `ridge`, `ridge_path` and `ridge_cv` share, as it came in."""

    fit_intercept: bool = True
    standardize: bool = False
    penalty_factors: Any = None
    prior: Any = None
    solver: str = "auto"
    moments_dtype: torch.dtype = torch.float64
    tol: Any = None
    max_iter: Any = None
    rank: Any = None
    kernel: Any = None
    max_bytes: Any = None

    def objective(self, d: int, t: int, like: Tensor, batch: tuple[int, ...] = (), dtype: Any = None) -> Objective:
        """Return the checked objective of a problem with d features and t targets, for tensors on `like`'s device."""
        dtype = dtype or self.moments_dtype
        for name in ("fit_intercept", "standardize"):
            _check.option(getattr(self, name), name, (True, False))
        penalty = free = prior = None
        if self.penalty_factors is not None:
            penalty = _as_tensor(self.penalty_factors, "penalty_factors", like, dtype)
            _check.shape(penalty, list(dict.fromkeys([(d,), (*batch, d)])), "penalty_factors")
            if _check.non_negative(penalty, "penalty_factors") == 0 and penalty.ndim == 1:
                free = (penalty == 0).nonzero()[:, 0]
        if self.prior is not None:
            prior = _as_tensor(self.prior, "prior", like, dtype)
            _check.shape(prior, list(dict.fromkeys([(d,), (t, d), (*batch, t, d)])), "prior")
            _check.finite(prior, "prior")
            prior = (prior.expand(t, d) if prior.ndim == 1 else prior).mT
        return Objective(
            bool(self.fit_intercept), bool(self.standardize), penalty, prior, free, self.kernel == "precomputed"
        )

    def for_rows(self, X: Tensor) -> Options:
        """Return the options for rows X: integers that float32 may not hold are summed in float64."""
        wide = not X.is_floating_point() and torch.iinfo(X.dtype).max > 2**24 if X.dtype is not torch.bool else False
        return self._replace(moments_dtype=torch.float64) if wide else self


class Asked(NamedTuple):
    """What `ridge_cv` was asked, as it came in."""

    X: Any
    y: Any
    alphas: Any
    cv: Any
    groups: Any
    scoring: Any
    per_target: Any
    sample_weight: Any
    options: Options


class Strengths(NamedTuple):
    """L strengths that all targets share, or one for each target."""

    alpha: Tensor  # (L,) or (t,), float64
    per_target: bool
    weakest: float  # on the host
    path: bool = False  # whether the answer has a dimension of strengths

    def to(self, dtype: torch.dtype) -> Strengths:
        """Return the strengths in another dtype."""
        return self._replace(alpha=self.alpha.to(dtype))


def check_options(options: Options) -> None:
    """Raise on an unknown solver or dtype of moments."""
    _check.option(options.solver, "solver", ("auto", *SOLVERS, "cg"))
    _check.option(options.moments_dtype, "moments_dtype", (torch.float64, torch.float32))
    _check.option(options.kernel, "kernel", (None, "linear", "precomputed"))
    if options.max_bytes is not None:
        _check.integer(options.max_bytes, "max_bytes", minimum=1)
    if options.kernel == "precomputed":
        _refuse_of_features(options)


def _refuse_of_features(options: Options) -> None:
    """Raise on what belongs to features, which a kernel that is given does not have."""
    own = {"standardize": False, "penalty_factors": None, "prior": None, "tol": None, "max_iter": None, "rank": None}
    for name, absent in own.items():
        if getattr(options, name) is not absent:
            raise ValueError(f"`{name}` belongs to features, and kernel='precomputed' has none. Leave it out.")
    _check.option(options.solver, "solver", ("auto", "dual"))


def refuse_beside_moments(**arguments: Any) -> None:
    """Raise if an argument that belongs to rows comes with moments."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` has no use with moments. Leave it out; rows go to `Moments.update`.")


def check_strengths(alpha: Any, name: str, *, like: Tensor) -> tuple[Tensor, float]:
    """Return strengths as a float64 tensor on the device of `like`, and the least of them, or raise."""
    if isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and math.isfinite(alpha) and alpha >= 0:
        return torch.full((), alpha, dtype=torch.float64, device=like.device), float(alpha)
    if isinstance(alpha, bool) or (isinstance(alpha, Tensor) and alpha.dtype is torch.bool):
        raise TypeError(f"`{name}` should be a number or a tensor of numbers, got {alpha!r}. Pass 1.0 for True.")
    if alpha is None:
        raise TypeError(f"`{name}` is missing; pass the strength, e.g. `{name}=1.0` (α = nλ, see `convert_strength`).")
    if isinstance(alpha, str):
        raise TypeError(f"`{name}` should be a number or a tensor of numbers, got {alpha!r}.")
    try:
        strengths = alpha if isinstance(alpha, Tensor) else torch.as_tensor(alpha, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` should be a number or a tensor of numbers, got {type(alpha).__name__}.") from None
    _check.is_dense_real(strengths, name)
    _check.not_empty(strengths, name)
    weakest = _check.non_negative(strengths.detach().cpu(), name)  # few numbers: one wait for a device
    copied = sent(strengths, like.device, torch.float64)  # what is read later must not change with the caller's tensor
    return (copied.clone() if copied is strengths else copied), weakest


def alpha_of(given: Any, is_lambda: bool, X: Any, sample_weight: Any, path: bool = False) -> Any:
    """Return α; if λ was given, the weight of the penalty against the mean loss, α = λ Σ s (see `convert_strength`)."""
    if not is_lambda:
        return given
    value = given if isinstance(given, (Tensor, int, float)) else torch.as_tensor(given, dtype=torch.float64)
    if isinstance(value, Tensor):
        _check.non_negative(value, "strength")
    else:
        value = _check.number(value, "strength")
    if isinstance(X, Moments):
        return value * X.weight_sum
    if not isinstance(sample_weight, Tensor):
        shape = tuple(getattr(X, "shape", ()))
        n = shape[-2] if len(shape) >= 2 else 1  # anything but a matrix is refused later
        return value * convert_strength(1.0, "lambda", "sklearn", n_samples=max(n, 1))
    total = sample_weight.sum(-1)
    if path and total.ndim:
        raise ValueError("`strength`: weighted problems of a batch differ in Σ s, but share one path. Pass `alphas`.")
    return value * total


def one_of(alpha: Any, strength: Any, name: str) -> Any:
    """Return the strength, in whichever convention it was given, or raise on both."""
    if alpha is not None and strength is not None:
        raise ValueError(f"`{name}` and `strength` were both given; they say the same thing. Pass one of them.")
    return alpha if strength is None else strength


def check_one_strength(shape: tuple[int, ...], allowed: list[tuple[int, ...]]) -> None:
    """Raise unless there is one strength, or one for each target."""
    if shape not in allowed:
        listed = " or ".join(str(e) for e in dict.fromkeys(allowed))
        raise ValueError(
            f"`alpha` should have shape {listed}, got {shape}. For a path of several strengths call "
            f"`ridge_path(X, y, alphas)`."
        )


def strengths_of(alpha: Any, name: str, t: int, like: Tensor) -> Strengths:
    """Return checked strengths: those of a path ("alphas"), or one for all targets, or one for each."""
    values, weakest = check_strengths(alpha, name, like=like)
    values = values.detach()
    if name == "alphas":
        return Strengths(_listed(values), False, weakest, True)
    check_one_strength(tuple(values.shape), [(), (1,), (t,)])
    return Strengths(values.reshape(-1), values.numel() > 1, weakest)


def grid_of(alphas: Any) -> Tensor:
    """Return the strengths of a grid, (L,), float64 on the host, or raise."""
    alphas = alphas.detach().cpu() if isinstance(alphas, Tensor) else alphas
    return _listed(check_strengths(alphas, "alphas", like=torch.empty(0))[0])


def _listed(values: Tensor) -> Tensor:
    if values.ndim > 1:
        raise ValueError(f"`alphas` should be a list or a tensor of shape (L,), got shape {tuple(values.shape)}.")
    return values.reshape(-1)


def _as_tensor(value: Any, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        _check.same_device({"X": like, name: value})
        _check.is_dense_real(value, name)
        copied = value.to(dtype)
        return copied.clone() if copied is value else copied
    try:
        return torch.as_tensor(value, dtype=dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` should be a tensor or numbers, got {type(value).__name__}.") from None
