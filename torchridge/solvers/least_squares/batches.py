"""Batches of dense problems in plain torch operations: differentiable to any order, compiled, mapped.

No Python branch looks at a value, so they pass through `vmap` and `torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.moments.blocks import constant_noise


class Batch(NamedTuple):
    """Data and objective of a batch of problems, in the dtype they are solved in; `*b` are the leading dimensions."""

    X: Tensor  # (*b, n, d)
    y: Tensor  # (*b, n, t)
    alpha: Tensor  # (*b, a) or (a,), a is 1, or t or L if strengths differ
    sample_weight: Tensor | None  # (*b, n)
    penalty: Tensor | None  # (*b, d)
    prior: Tensor | None  # (*b, t, d)
    intercept: bool
    standardize: bool
    per_target: bool


class Centred(NamedTuple):
    """The rows of a batch less their means, and less what the prior predicts."""

    X: Tensor  # (*b, n, d)
    y: Tensor  # (*b, n, t)
    mean_x: Tensor | None  # (*b, 1, d)
    mean_y: Tensor | None  # (*b, 1, t)
    weight: Tensor | None  # (*b, n, 1)
    penalty: Tensor | None  # (*b, d)


class Solved(NamedTuple):
    """A batch of solved problems."""

    weight: Tensor  # (*b, L, t, d), L = 1 but for a path
    bias: Tensor  # (*b, L, t)
    matrix: Tensor  # (*b, a, m, m) what was solved
    failed: Tensor  # (*b,) a factorization met a matrix that is singular to rounding


class Diagnosed(NamedTuple):
    """What is known of solved problems."""

    squares: Tensor  # (*b, L, t)
    dof: Tensor  # (*b, a)
    unit_variance: Tensor  # (*b, a, d)
    condition: Tensor  # (*b,)
    rank: Tensor  # (*b,)


def solve(batch: Batch, primal: bool, smooth: bool) -> tuple[Solved, Centred]:
    """Minimize Σ s (y − Wx − b)² + α Σ p (W − prior)². Cost n d² + d³ (primal), n² d + n³ (dual) a strength.

    `smooth` asks for operations whose derivatives are cheap and exist at a sample weight of zero.
    """
    rows = centred(batch)
    matrix, right = _primal(batch, rows) if primal else _dual(batch, rows, smooth)
    solution, failed = _solved(matrix, right, batch.per_target, smooth)
    if not primal:
        solution = _from_rows(rows, solution, smooth)
    weight = solution.squeeze(-1).unsqueeze(-3) if batch.per_target else solution.mT  # (*b, L, t, d)
    if batch.prior is not None:
        weight = weight + batch.prior.unsqueeze(-3)
    bias = torch.zeros_like(weight[..., 0])
    if rows.mean_x is not None and rows.mean_y is not None:
        bias = rows.mean_y - (weight @ rows.mean_x.unsqueeze(-3).mT).squeeze(-1)
    return Solved(weight, bias, matrix, failed), rows


def centred(batch: Batch) -> Centred:
    """Return the rows about their weighted means, or as they are without intercept."""
    X, y, mean_x, mean_y = batch.X, batch.y, None, None
    weight = None if batch.sample_weight is None else batch.sample_weight.unsqueeze(-1)
    if batch.intercept:
        X, mean_x = _about_mean(X, weight)
        y, mean_y = _about_mean(y, weight)
    if batch.prior is not None:
        y = y - X @ batch.prior.mT
    return Centred(X, y, mean_x, mean_y, weight, _penalty(batch, X, weight, mean_x))


def _about_mean(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    share = None if weight is None else (weight / weight.sum(-2, keepdim=True)).mT  # (*b, 1, n)
    mean = x.mean(-2, keepdim=True) if share is None else share @ x
    x = x - mean
    # What rounding left of a large mean; as a function it is zero, and so is its derivative.
    rest = (x.mean(-2, keepdim=True) if share is None else share @ x).detach()
    return x - rest, mean + rest


def _penalty(batch: Batch, X: Tensor, weight: Tensor | None, mean_x: Tensor | None) -> Tensor | None:
    if not batch.standardize:
        return batch.penalty
    weight = torch.ones_like(X[..., :1]) if weight is None else weight
    share = (weight / weight.sum(-2, keepdim=True)).mT
    mean = share @ X  # not zero if there is no intercept
    variance = (share @ (X - mean) ** 2).squeeze(-2)
    center = (mean if mean_x is None else mean_x).squeeze(-2)
    variance = torch.where(variance > constant_noise(center), variance, 1)
    return variance if batch.penalty is None else variance * batch.penalty


def _primal(batch: Batch, rows: Centred) -> tuple[Tensor, Tensor]:
    left = (rows.X if rows.weight is None else rows.X * rows.weight).mT
    return _shifted(left @ rows.X, batch.alpha, rows.penalty), left @ rows.y


def _dual(batch: Batch, rows: Centred, smooth: bool) -> tuple[Tensor, Tensor]:
    scaled = rows.X if rows.penalty is None else rows.X / rows.penalty.unsqueeze(-2)
    gram = scaled @ rows.X.mT
    if rows.weight is None:
        return _shifted(gram, batch.alpha, None), rows.y
    if smooth:  # (diag(s) K + αI) a = diag(s) y: not symmetric, but smooth at a weight of zero, if √s is not
        return _shifted(rows.weight * gram, batch.alpha, None), rows.weight * rows.y
    root = rows.weight.sqrt()
    return _shifted(root * gram * root.mT, batch.alpha, None), root * rows.y


def _from_rows(rows: Centred, coef: Tensor, smooth: bool) -> Tensor:
    """Return weights (*b, a, d, c) of dual coefficients (*b, a, n, c)."""
    scaled = rows.X if rows.penalty is None else rows.X / rows.penalty.unsqueeze(-2)
    if rows.weight is not None and not smooth:
        scaled = scaled * rows.weight.sqrt()
    a, c = coef.shape[-3], coef.shape[-1]
    flat = scaled.mT @ coef.movedim(-3, -2).flatten(-2)  # (*b, d, a c): one product, not one for each strength
    weight: Tensor = flat.reshape(*flat.shape[:-1], a, c).movedim(-2, -3)
    return weight


def _shifted(gram: Tensor, alpha: Tensor, penalty: Tensor | None) -> Tensor:
    """Return gram + α diag(penalty), (*b, a, m, m)."""
    if penalty is None:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return gram.unsqueeze(-3) + alpha[..., None, None] * eye
    return gram.unsqueeze(-3) + torch.diag_embed(alpha.unsqueeze(-1) * penalty.unsqueeze(-2))


def _solved(matrix: Tensor, right: Tensor, per_target: bool, smooth: bool) -> tuple[Tensor, Tensor]:
    """Solve for right-hand sides (*b, m, t): all of them, or one for each matrix if each target has its own."""
    columns = right.mT.unsqueeze(-1) if per_target else right.unsqueeze(-3)
    if smooth:  # the derivative of an LU solve is one more solve, that of a Cholesky factor is several
        solution, info = torch.linalg.solve_ex(matrix, columns.expand(*matrix.shape[:-1], columns.shape[-1]))
        return solution, (info > 0).any(-1)
    factor = algebra.cholesky(matrix)
    return factor.solve(columns), (factor.info > 0).any(-1)


def condition_bound(solved: Solved, alpha: Tensor) -> Tensor:
    """Return a bound on the condition of what was solved, (*b,): ‖A‖₁ / α, for strengths (*b, a) > 0 and p = 1."""
    bound: Tensor = (algebra.norm(solved.matrix) / alpha).amax(-1)
    return torch.where(solved.failed, torch.inf, bound)


def condition_estimate(batch: Batch, rows: Centred, primal: bool) -> Tensor:
    """Return the condition of what is solved, its columns scaled to one size, (*b,); infinite if it is singular."""
    factor = algebra.cholesky((_primal(batch, rows) if primal else _dual(batch, rows, smooth=False))[0])
    return torch.where(factor.info == 0, factor.condition(), torch.inf).nan_to_num(torch.inf).amax(-1)


def _almost(penalty: Tensor, squares: Tensor, alpha: Tensor) -> Tensor:
    """Return the penalty factors, those of free features so small that they change nothing at any strength."""
    least = 1e-10 * squares / alpha.amax(-1, keepdim=True).clamp_min(torch.finfo(alpha.dtype).tiny)
    return torch.where(penalty > 0, penalty, least.clamp(1e-200, 1e200))


def diagnosed(batch: Batch, solved: Solved, rows: Centred, primal: bool) -> Diagnosed:
    """Return what is known of the solutions. Cost: a singular value decomposition."""
    weight = solved.weight if batch.prior is None else solved.weight - batch.prior.unsqueeze(-3)
    left = rows.y.unsqueeze(-3) - rows.X.unsqueeze(-3) @ weight.mT  # (*b, L, n, t)
    s = torch.ones_like(rows.X[..., :1]) if rows.weight is None else rows.weight
    squares = (s.unsqueeze(-3) * left**2).sum(-2)
    root = None if rows.penalty is None else _almost(rows.penalty, (s * rows.X**2).sum(-2), batch.alpha).rsqrt()
    x = rows.X if root is None else rows.X * root.unsqueeze(-2)
    n, d = x.shape[-2:]
    _, sigma, right = torch.linalg.svd(x * s.sqrt(), full_matrices=False)
    eigvals = sigma**2
    low = eigvals[..., -1] if primal and n >= d else torch.zeros_like(eigvals[..., -1])
    weakest = batch.alpha.amin(-1)
    condition = (eigvals[..., 0] + weakest) / (low + weakest)
    rank = (sigma > max(n, d) * torch.finfo(sigma.dtype).eps * sigma[..., :1]).sum(-1)
    total = eigvals.unsqueeze(-2) + batch.alpha.unsqueeze(-1)
    kept = eigvals.unsqueeze(-2) / total  # (*b, a, m)
    unit = (kept / total) @ right**2  # (*b, a, d)
    unit = unit if root is None else unit * root.unsqueeze(-2) ** 2
    return Diagnosed(squares, kept.sum(-1), unit, condition, rank)
