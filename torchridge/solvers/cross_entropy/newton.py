"""One small logistic problem by Newton's method: the Hessian itself, factored, a few times.

    minimize over θ (c, q):   f(θ) = Σ_i w_i CE(y_i, θ f_i)  +  ½ λ ‖θ‖²     without the column of ones; Σ w_i = 1

With D = w p (1 − p), the Hessian of a single logit is Fᵀ D F + λ, of c logits Σ_i w_i (diag(p_i) − p_i p_iᵀ) ⊗ f_i f_iᵀ
+ λ. For fewer rows than features a single logit is solved for coefficients a of the rows, weight = Xᵀ a, with
K = X Xᵀ and D K + λ in the place of the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy.descent import shorter
from torchridge.solvers.cross_entropy.features import DenseFeatures
from torchridge.solvers.cross_entropy.loss import loss_and_residual
from torchridge.solvers.cross_entropy.problem import Problem
from torchridge.solvers.cross_entropy.scaling import factor as factor_of

# What a gap may be wrong by that is read off the Hessian at the point before.
_SAFETY = 24.0

_SUFFICIENT = 1e-4  # Armijo's constant
_SHORTEST = 1e-6


class Solved(NamedTuple):
    """Where Newton's method ended."""

    theta: Tensor  # (c, q)
    objective: float
    gap: float
    n_iter: int


class Point(NamedTuple):
    """f and its derivatives at a point x."""

    x: Tensor
    value: float
    grad: Tensor
    residual: Tensor  # (c, n)


# (gradient) → (step, decrement gradᵀ H⁻¹ grad)
Step = Callable[[Point], tuple[Tensor, float]]


def primal(problem: Problem, features: DenseFeatures, theta: Tensor, *, tol: float, max_iter: int) -> Solved:
    """Solve for θ. Cost: n·(c·q)² + (c·q)³/3 multiply-adds an iteration."""
    F, diagonal, shape = _columns(features), problem.diagonal, theta.shape

    def at(x: Tensor) -> Point:
        loss, residual = loss_and_residual(x @ F.mT, problem.labels, problem.weight)
        shrunk = x * diagonal
        value = float(loss + 0.5 * torch.dot(shrunk.view(-1), x.view(-1)))
        return Point(x, value, torch.addmm(shrunk, residual, F), residual)

    def factor(point: Point) -> Step:
        hessian = _hessian(problem, F, point.residual)
        hessian.diagonal().add_(diagonal.repeat(shape[0]))
        lower = factor_of(hessian)

        def step(point: Point) -> tuple[Tensor, float]:
            ahead = torch.cholesky_solve(point.grad.view(-1, 1), lower)
            return ahead.view(shape), float(torch.dot(ahead[:, 0], point.grad.view(-1)))

        return step

    point, gap, count = _iterate(at, factor, theta, tol, max_iter)
    return Solved(point.x, point.value, gap, count)


def dual(problem: Problem, features: DenseFeatures, theta: Tensor, *, tol: float, max_iter: int) -> Solved:
    """Solve a single logit for coefficients of the rows, from zero weights and the bias of θ.

    Cost: n²·d multiply-adds once, and n³/3 an iteration.
    """
    F, penalty, intercept = _columns(features), problem.penalty, features.intercept
    X = F[:, :-1] if intercept else F
    gram, n = X @ X.mT, len(X)
    bias = theta[0, -1:] if intercept else theta.new_zeros(1)

    def at(x: Tensor) -> Point:
        image = gram @ x[:n]
        loss, residual = loss_and_residual((image + x[n])[None], problem.labels, problem.weight)
        value = float(loss + 0.5 * penalty * torch.dot(x[:n], image))
        grad = torch.cat([torch.add(residual[0], x[:n], alpha=penalty), residual.sum(1)])
        return Point(x, value, grad, residual)

    def factor(point: Point) -> Step:
        curvature = _curvature(problem, point.residual)
        root = curvature.sqrt()
        inner = root[:, None] * gram * root
        inner.diagonal().add_(penalty)
        lower = factor_of(inner)

        def step(point: Point) -> tuple[Tensor, float]:
            """(D K + λ) a + D b = g and 1ᵀ (D K a + D b) = 1ᵀ r, by D K + λ's inverse of g and of D."""
            right = torch.stack([point.grad[:n], curvature], 1)
            image = gram @ right
            solved = torch.addcmul(right, root[:, None], torch.cholesky_solve(root[:, None] * image, lower), value=-1)
            solved = solved / penalty
            if not intercept:
                ahead = torch.cat([solved[:, 0], bias.new_zeros(1)])
            else:
                sums = curvature @ (gram @ solved)  # (2,)
                shift = (point.grad[n] - sums[0]) / (curvature.sum() - sums[1])
                ahead = torch.cat([solved[:, 0] - shift * solved[:, 1], shift[None]])
            slope = torch.dot(gram @ ahead[:n], point.grad[:n]) + ahead[n] * point.grad[n]
            return ahead, float(slope)

        return step

    point, gap, count = _iterate(at, factor, torch.cat([bias.new_zeros(n), bias]), tol, max_iter)
    weight = point.x[:n] @ X
    theta = torch.cat([weight, point.x[n:]])[None] if intercept else weight[None]
    return Solved(theta, point.value, gap, count)


def _iterate(
    at: Callable[[Tensor], Point], factor: Callable[[Point], Step], x: Tensor, tol: float, max_iter: int
) -> tuple[Point, float, int]:
    """Take damped Newton steps until the gap is at most tol·f; the factor before tells it after a step."""
    point, count = at(x), 1
    while True:
        step = factor(point)
        ahead, decrement = step(point)
        length, gap = 1.0, decrement
        if gap <= tol * point.value or count >= max_iter:
            return point, gap, count
        while length >= _SHORTEST:
            trial = at(torch.sub(point.x, ahead, alpha=length))
            count += 1
            noise = torch.finfo(torch.float64).eps * point.value
            if trial.value <= point.value - _SUFFICIENT * length * decrement + noise or count >= max_iter:
                break
            length *= shorter(point.value, trial.value, -length * decrement)
        if not trial.value <= point.value + noise:
            return point, gap, count
        point = trial
        gap = 0.5 * _SAFETY * step(point)[1]
        if gap <= tol * point.value:
            return point, gap, count


def _columns(features: DenseFeatures) -> Tensor:
    X = features.centred()
    return torch.cat([X, X.new_ones(len(X), 1)], 1) if features.intercept else X


def _curvature(problem: Problem, residual: Tensor) -> Tensor:
    """Return w p (1 − p) (n,) from the residuals ±w (1 − p of the class) of a single logit."""
    wrong = residual[0].abs()
    return torch.where(wrong > 0, wrong - wrong.square() / problem.weight, 0).clamp_min_(0)


def _hessian(problem: Problem, F: Tensor, residual: Tensor) -> Tensor:
    """Return the Hessian of the mean loss, (c·q, c·q), pinned where a shift of all biases changes no probability."""
    if len(residual) == 1:
        return (F * _curvature(problem, residual)[:, None]).mT @ F
    (n, q), c = F.shape, len(residual)
    weight = problem.weight
    mass = residual.scatter_add(0, problem.labels[None], weight[None])  # w p, (c, n)
    root = torch.where(weight > 0, weight.rsqrt(), 0)
    mixed = ((mass * root).mT[:, :, None] * F[:, None]).reshape(n, c * q)
    hessian = torch.mm(mixed.mT, mixed).neg_().view(c, q, c, q)
    blocks = (mass[:, :, None] * F).mT @ F  # (c, q, q)
    hessian.diagonal(dim1=0, dim2=2).add_(blocks.permute(1, 2, 0))
    if problem.features.intercept:
        hessian[:, -1, :, -1] += 1 / c**2
    return hessian.view(c * q, c * q)
