"""The arguments that `ridge`, `ridge_path` and `ridge_cv` share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers import select
from torchridge.solvers.arguments import check_objective, check_strengths
from torchridge.solvers.fit import Strengths
from torchridge.solvers.objective import Objective


class Options(NamedTuple):
    """What the three functions share, as it came in."""

    fit_intercept: bool
    standardize: bool
    penalty_factors: Any
    prior: Any
    solver: str
    moments_dtype: torch.dtype
    tol: Any = None
    max_iter: Any = None
    rank: Any = None

    def objective(self, d: int, t: int, like: Tensor, batch: tuple[int, ...] = (), dtype: Any = None) -> Objective:
        """Return the checked objective of a problem with d features and t targets."""
        return check_objective(
            d,
            t,
            like,
            dtype or self.moments_dtype,
            fit_intercept=self.fit_intercept,
            standardize=self.standardize,
            penalty_factors=self.penalty_factors,
            prior=self.prior,
            batch=batch,
        )


def check_options(options: Options) -> None:
    """Raise on an unknown solver or dtype of moments."""
    _check.option(options.solver, "solver", select.SOLVERS)
    _check.option(options.moments_dtype, "moments_dtype", (torch.float64, torch.float32))


def refuse_beside_moments(**arguments: Any) -> None:
    """Raise where an argument that belongs to rows comes beside moments."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` has no use beside moments. Leave it out; rows go to `Moments.update`.")


def needs_torch(*values: Any) -> bool:
    """Whether a gradient, a transform or a compiler looks on, so that all operations must be torch's."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not _check.values_visible(*tensors):
        return True
    return torch.is_grad_enabled() and any(v.requires_grad for v in tensors)


def strengths_of(alpha: Any, name: str, t: int, like: Tensor, dtype: torch.dtype) -> Strengths:
    """Return checked strengths: those of a path, or one for all targets, or one for each."""
    values = check_strengths(alpha, name, like=like).detach().to(dtype)
    if name == "alphas":
        if values.ndim > 1:
            raise ValueError(f"`alphas` should be a list or a tensor of shape (L,), got shape {tuple(values.shape)}.")
        return Strengths(values.reshape(-1), False)
    _check.shape(values, list(dict.fromkeys([(), (1,), (t,)])), "alpha")
    return Strengths(values.reshape(-1), values.numel() > 1)
