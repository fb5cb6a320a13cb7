"""Checks of the arguments that the ridge functions share, and what they become inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers.objective import Objective


def check_strengths(alpha: Any, name: str, *, like: Tensor) -> Tensor:
    """Return strengths as a float64 tensor on the device of `like`, or raise."""
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
    _check.non_negative(strengths, name)
    return strengths.to(like.device, torch.float64)


def check_objective(
    d: int,
    t: int,
    like: Tensor,
    dtype: torch.dtype,
    *,
    fit_intercept: bool,
    standardize: bool,
    penalty_factors: Any,
    prior: Any,
    batch: tuple[int, ...] = (),
) -> Objective:
    """Return the objective of a problem with d features and t targets, or raise."""
    penalty = None if penalty_factors is None else _as_tensor(penalty_factors, "penalty_factors", like, dtype)
    if penalty is not None:
        _check.shape(penalty, list(dict.fromkeys([(d,), (*batch, d)])), "penalty_factors")
        _check.non_negative(penalty, "penalty_factors")
    center = None if prior is None else _as_tensor(prior, "prior", like, dtype)
    if center is not None:
        _check.shape(center, list(dict.fromkeys([(d,), (t, d), (*batch, t, d)])), "prior")
        _check.finite(center, "prior")
        center = center.expand(t, d) if center.ndim == 1 else center
    for name, value in (("fit_intercept", fit_intercept), ("standardize", standardize)):
        _check.option(value, name, (True, False))
    return Objective(bool(fit_intercept), bool(standardize), penalty, None if center is None else center.mT)


def _as_tensor(value: Any, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        _check.same_device({"X": like, name: value})
        _check.is_dense_real(value, name)
        return value.to(dtype)
    try:
        return torch.as_tensor(value, dtype=dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`{name}` should be a tensor or numbers, got {type(value).__name__}.") from None
