"""Ridge over the rows of all ranks: each gathers the moments of its own, and all solve the same sum of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Ranks, brief
from torchridge.distributed import collectives
from torchridge.distributed.folds import fold_plan
from torchridge.linear.arguments import Asked, Options, check_options, refuse_beside_moments
from torchridge.linear.ridge.cross_validation import choose, cross_validate
from torchridge.linear.ridge.prepare import Prepared
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.search import refuse_one_row
from torchridge.solvers.least_squares.criteria import CRITERIA
from torchridge.solvers.least_squares.scorers import Whole
from torchridge.solvers.least_squares.scoring import train_spectrum
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.rows import Rows, result_dtype


class _Made(NamedTuple):
    """This rank's moments, and what it tells the others of them."""

    moments: Moments
    says: dict[str, Any]


class Own:
    """This rank's rows, perhaps none, and their checks.

    Args:
        X: (n, d), n ≥ 0.
        y: (n,) or (n, t).
        sample_weight: (n,); rows of zero weight do not count.
    """

    def __init__(self, X: Any, y: Any, sample_weight: Any) -> None:
        if y is None:
            raise TypeError("`y` is missing; pass this rank's targets, or its `Moments` in place of `X`.")
        for name, value in (("X", X), ("y", y)):
            _check.is_tensor(value, name)
            _check.is_dense_real(value, name)
        if X.ndim != 2 or y.ndim not in (1, 2) or X.shape[1] == 0 or 0 in y.shape[1:]:
            raise ValueError(
                f"over ranks `X` should have shape (n, d), and `y` (n,) or (n, t), got {tuple(X.shape)} and "
                f"{tuple(y.shape)}. A rank without rows gives (0, d) and (0,) or (0, t)."
            )
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in (X, y, sample_weight)):
            raise ValueError("gradients do not pass between ranks. Detach `X`, `y` and `sample_weight`.")
        self.X, self.y, self.sample_weight = X, y, sample_weight
        self.n = X.shape[0]
        idle = self.n == 0 or (isinstance(sample_weight, Tensor) and not bool((sample_weight != 0).any()))
        _check.same_length(y.shape[0], self.n, "y", "X")
        self.rows = None if idle else Rows(*_check.rows(X, y, sample_weight)).counted

    def made(self, ids: Tensor | None, dtype: torch.dtype) -> _Made:
        """Return the moments of these rows, and what the other ranks are told, even if there are none."""
        moments = Moments(dtype=dtype, device=self.X.device)
        if self.rows is not None:
            moments.update(self.X, self.y, self.sample_weight, ids)
        form = {"features": self.X.shape[1], "targets": self.y.shape[1] if self.y.ndim == 2 else 1}
        form |= {
            "vector_target": self.y.ndim == 1,
            "result_dtype": str(result_dtype(self.X.dtype)),
            "dtype": str(dtype),
        }
        return _Made(moments, {**collectives.says(moments), **form})


def over_ranks(
    X: Any, y: Any, sample_weight: Any, operation: str, options: Options, group: Any, **choice: Any
) -> Moments:
    """Return the moments of all ranks' rows, or of their `Moments`; `choice` holds what else ranks must agree on."""

    def own() -> _Made:
        check_options(options)
        if isinstance(choice.get("cv"), str) and not isinstance(X, Moments):
            _check.option(choice["cv"], "cv", CRITERIA)
        if isinstance(X, Moments):
            refuse_beside_moments(y=y, sample_weight=sample_weight)
            return _Made(X, collectives.says(X))
        return Own(X, y, sample_weight).made(None, options.moments_dtype)

    return _summed(Ranks(group), operation, own, alike_of(options, **choice))


def pooled(
    X: Any, y: Any, alpha: Any, name: str, sample_weight: Any, options: Options, group: Any
) -> tuple[Moments, None, Any]:
    """Return what `ridge` and `ridge_path` solve in place of one rank's rows, for `name` "alpha" or "alphas"."""
    if isinstance(X, Moments) and alpha is None:
        y, alpha = None, y  # ridge(moments, 1.0)
    operation = "ridge" if name == "alpha" else "ridge_path"
    return over_ranks(X, y, sample_weight, operation, options, group, **{name: alpha}), None, alpha


def cross_validate_over_ranks(asked: Asked, group: Any) -> RidgeSolution:
    """Choose a strength by the rows of all ranks, and fit at it, on every rank."""
    X, y, _, cv, groups, _, _, sample_weight, options = asked
    choice = {"alphas": asked.alphas, "scoring": asked.scoring, "alpha_per_target": asked.per_target}
    ranks, cv = Ranks(group), cv if cv is not None or isinstance(X, Moments) else "gcv"
    together = asked._replace(y=None, sample_weight=None, cv=cv)
    if isinstance(X, Moments) or isinstance(cv, str):
        whole = over_ranks(X, y, sample_weight, "ridge_cv", options, group, cv=cv, **choice)
        if isinstance(X, Moments) or not CRITERIA[cv].holds_out:
            return cross_validate(together._replace(X=whole))
        return choose(leave_one_out(whole, Own(X, y, sample_weight).rows, options, ranks), together)
    alike = alike_of(options, **choice)
    fold_ids = fold_plan(lambda: Own(X, y, sample_weight).n, cv, groups, ranks, "ridge_cv (its folds)", alike)

    def own() -> _Made:
        check_options(options)
        rows = Own(X, y, sample_weight)
        return rows.made(fold_ids(), options.moments_dtype)

    return cross_validate(together._replace(X=_summed(ranks, "ridge_cv", own, alike), cv=None, groups=None))


def leave_one_out(whole: Moments, rows: Rows | None, options: Options, ranks: Ranks) -> Prepared:
    """Return the scorer of exact leave-one-out: every rank adds the errors of its own rows."""
    block = whole.block()
    d, t = block.cross.shape
    objective = options.objective(d, t, block.gram, dtype=whole.dtype)
    refuse_one_row(block.rows, "loo", objective)
    everything = Whole(CRITERIA["loo"], train_spectrum(block, objective), block, objective, None)
    scorer = collectives.LeaveOneOut(everything, rows, ranks)
    return Prepared(scorer, objective, whole, options, lambda: block)


def alike_of(options: Options, **choice: Any) -> dict[str, str]:
    """Return the arguments that ranks must agree on, in brief."""
    return {name: brief(value) for name, value in {**options._asdict(), **choice}.items()}


def _summed(ranks: Ranks, operation: str, own: Callable[[], _Made], alike: dict[str, str]) -> Moments:
    """Gather this rank's moments, and add up those of all."""
    made, told = ranks.together(operation, own, lambda made: {**made.says, **alike}, agree=(*collectives.AGREE, *alike))
    whole = collectives.all_reduced(made.moments, told, ranks)
    if not whole.n_samples:
        raise ValueError(f"{operation}: no rank holds a row of positive weight; expected at least one.")
    return whole
