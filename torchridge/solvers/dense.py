"""The dense solve in plain torch operations: differentiable to any order, batched, compiled, mapped.

No Python branch looks at a value, so it passes through `vmap` and `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Dense(NamedTuple):
    """A batch of solved problems; `*b` are the leading dimensions, a is 1, or t or L where strengths differ."""

    weight: Tensor  # (*b, L, t, d), L = 1 but for a path
    bias: Tensor  # (*b, L, t)
    squares: Tensor  # (*b, L, t)
    dof: Tensor  # (*b, a)
    unit_variance: Tensor  # (*b, a, d)
    condition: Tensor  # (*b,)
    rank: Tensor  # (*b,)
    failed: Tensor  # (*b,) a factorization met a matrix that is not positive definite


class Problem(NamedTuple):
    """Data and objective of a batch of problems, in the dtype they are solved in."""

    X: Tensor  # (*b, n, d)
    y: Tensor  # (*b, n, t)
    alpha: Tensor  # (*b, a)
    sample_weight: Tensor | None  # (*b, n)
    penalty: Tensor | None  # (*b, d)
    prior: Tensor | None  # (*b, t, d)
    intercept: bool
    standardize: bool
    per_target: bool


def solve(problem: Problem, primal: bool) -> Dense:
    """Minimize Σ s (y − Wx − b)² + α Σ p (W − prior)². Cost n d² + d³ (primal), n² d + n³ (dual) a strength."""
    X, y, mean_x, mean_y, weighted = _centered(problem)
    penalty = _penalty(problem, X, weighted)
    solver = _primal if primal else _dual
    weight, failed = solver(problem, X, y, weighted, penalty)
    weight = weight.squeeze(-1).unsqueeze(-3) if problem.per_target else weight.mT  # (*b, L, t, d)
    fitted = (X.unsqueeze(-3) @ weight.mT).detach()  # (*b, L, n, t)
    squares = (weighted.detach().unsqueeze(-2).unsqueeze(-1) * (y.unsqueeze(-3).detach() - fitted) ** 2).sum(-2)
    if problem.prior is not None:
        weight = weight + problem.prior.unsqueeze(-3)
    bias = (
        (mean_y.unsqueeze(-2) - (weight @ mean_x.unsqueeze(-2).unsqueeze(-1)).squeeze(-1))
        if problem.intercept
        else (torch.zeros_like(weight[..., 0]))
    )
    dof, unit, condition, rank = _diagnose(problem, X, weighted, penalty, primal)
    return Dense(weight, bias, squares, dof, unit, condition, rank, failed)


def _centered(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    X, y = problem.X, problem.y
    weighted = torch.ones_like(X[..., 0]) if problem.sample_weight is None else problem.sample_weight
    mean_x, mean_y = torch.zeros_like(X[..., 0, :]), torch.zeros_like(y[..., 0, :])
    if problem.intercept:
        share = (weighted / weighted.sum(-1, keepdim=True)).unsqueeze(-2)
        mean_x, mean_y = (share @ X).squeeze(-2), (share @ y).squeeze(-2)
        X, y = X - mean_x.unsqueeze(-2), y - mean_y.unsqueeze(-2)
        # What rounding left of the mean, where the mean is large.
        rest_x, rest_y = (share @ X).squeeze(-2), (share @ y).squeeze(-2)
        X, y = X - rest_x.unsqueeze(-2), y - rest_y.unsqueeze(-2)
        mean_x, mean_y = mean_x + rest_x, mean_y + rest_y
    if problem.prior is not None:
        y = y - X @ problem.prior.mT
    return X, y, mean_x, mean_y, weighted


def _penalty(problem: Problem, X: Tensor, weighted: Tensor) -> Tensor | None:
    if not problem.standardize:
        return problem.penalty
    share = (weighted / weighted.sum(-1, keepdim=True)).unsqueeze(-2)
    mean = share @ X  # not zero where there is no intercept
    variance = (share @ (X - mean) ** 2).squeeze(-2)
    variance = torch.where(variance > 0, variance, 1)
    return variance if problem.penalty is None else variance * problem.penalty


def _cholesky_solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(matrix)
    failed = info > 0
    solution = torch.cholesky_solve(right, factor)
    return torch.where(failed[..., None, None], torch.nan, solution), failed.any(-1)


def _shifted(gram: Tensor, alpha: Tensor, penalty: Tensor | None) -> Tensor:
    """Return gram + α diag(penalty), (*b, a, m, m)."""
    ones = torch.ones_like(gram[..., 0])
    diagonal = alpha.unsqueeze(-1) * (ones if penalty is None else penalty).unsqueeze(-2)
    return gram.unsqueeze(-3) + torch.diag_embed(diagonal)


def _columns(right: Tensor, per_target: bool) -> Tensor:
    """Return right-hand sides (*b, 1, m, t), or (*b, t, m, 1) where each target has a matrix of its own."""
    return right.mT.unsqueeze(-1) if per_target else right.unsqueeze(-3)


def _primal(p: Problem, X: Tensor, y: Tensor, weighted: Tensor, penalty: Tensor | None) -> tuple[Tensor, Tensor]:
    left = (X * weighted.unsqueeze(-1)).mT
    matrix = _shifted(left @ X, p.alpha, penalty)
    return _cholesky_solve(matrix, _columns(left @ y, p.per_target))


def _dual(p: Problem, X: Tensor, y: Tensor, weighted: Tensor, penalty: Tensor | None) -> tuple[Tensor, Tensor]:
    scaled = X if penalty is None else X / penalty.unsqueeze(-2)
    gram = scaled @ X.mT
    if p.sample_weight is None:
        coef, failed = _cholesky_solve(_shifted(gram, p.alpha, None), _columns(y, p.per_target))
    else:
        # (diag(s) K + αI) a = diag(s) y: not symmetric, but smooth at a weight of zero, where √s is not.
        matrix = _shifted(weighted.unsqueeze(-1) * gram, p.alpha, None)
        coef, info = torch.linalg.solve_ex(matrix, _columns(weighted.unsqueeze(-1) * y, p.per_target))
        failed = (info > 0).any(-1)
    return scaled.mT.unsqueeze(-3) @ coef, failed


@torch.no_grad()
def _diagnose(
    p: Problem, X: Tensor, weighted: Tensor, penalty: Tensor | None, primal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dof (*b, a), unit variance (*b, a, d), condition (*b,) and rank (*b,)."""
    root = None if penalty is None else penalty.clamp_min(1e-10).rsqrt()  # a free feature: nearly so
    x = X if root is None else X * root.unsqueeze(-2)
    n, d = X.shape[-2:]
    _, sigma, right = torch.linalg.svd(x * weighted.sqrt().unsqueeze(-1), full_matrices=False)
    s = sigma**2
    low = s[..., -1] if primal and n >= d else torch.zeros_like(s[..., -1])
    weakest = p.alpha.amin(-1)
    condition = (s[..., 0] + weakest) / (low + weakest)
    rank = (sigma > max(n, d) * torch.finfo(s.dtype).eps * sigma[..., :1]).sum(-1)
    kept = s.unsqueeze(-2) / (s.unsqueeze(-2) + p.alpha.unsqueeze(-1))  # (*b, a, m)
    inner = kept / (s.unsqueeze(-2) + p.alpha.unsqueeze(-1))
    unit = inner @ right**2  # (*b, a, d)
    return kept.sum(-1), unit if root is None else unit * root.unsqueeze(-2) ** 2, condition, rank
