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
from torchridge.solvers.cross_entropy.problem import Problem
from torchridge.solvers.cross_entropy.scaling import factor as factor_of
from torchridge.solvers.device import keeps_float32

# What a gap may be wrong by that is read off the Hessian at the point before.
_SAFETY = 24.0

_SUFFICIENT = 1e-4  # Armijo's constant
_REUSED = 0.1  # of the decrement, that a factor may leave and still give the next step
_SHORTEST = 1e-6

# A Hessian is summed in float32 if the penalty is more than this share of its trace, far above what rounding moves, and
# neither is near the ends of what float32 holds.
_ROUNDING, _LEAST, _MOST = 1e2 * torch.finfo(torch.float32).eps, 1e-20, 1e30


class Solved(NamedTuple):
    """Where Newton's method ended."""

    theta: Tensor  # (c, q)
    objective: float
    gap: float
    n_iter: int
    residual: Tensor  # (c, n)


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
    transposed, penalty = F.mT, diagonal if len(theta) == 1 else diagonal.repeat(len(theta))

    rounded = F.float() if _rounds(F, problem) else F

    def at(x: Tensor) -> Point:
        loss, residual = problem.loss(x @ transposed)
        shrunk = x * diagonal
        value = float(loss.add_(torch.dot(shrunk.view(-1), x.view(-1)), alpha=0.5))
        return Point(x, value, shrunk.addmm_(residual, F), residual)

    def factor(point: Point) -> Step:
        hessian = hessian_of(rounded, problem.labels, problem.weight, point.residual, problem.diagonal).double()
        hessian.diagonal().add_(penalty)
        lower = factor_of(hessian)

        def step(point: Point) -> tuple[Tensor, float]:
            grad = point.grad.view(-1, 1)
            ahead = torch.cholesky_solve(grad, lower)
            return ahead.view(shape), float(torch.dot(ahead.view(-1), grad.view(-1)))

        return step

    point, gap, count = _iterate(at, factor, theta, tol, max_iter)
    return Solved(point.x, point.value, gap, count, point.residual)


def _rounds(F: Tensor, problem: Problem) -> bool:
    """Whether the Hessian may be summed in float32, by a bound of its trace."""
    flat = F.reshape(-1)
    return _resolved(torch.dot(flat, flat) * problem.weight.amax(), problem)


def _resolved(trace: Tensor, problem: Problem) -> bool:
    """Whether the penalty, which bounds the Hessian from below, is large next to what rounding of its trace takes away.

    The column of ones has no penalty, but the Schur complement of all others is as large a share of its own entry.
    """
    if not keeps_float32(trace.device):
        return False
    size = float(trace)
    return size <= _MOST and max(_ROUNDING * 0.25 * size, _LEAST) <= problem.penalty


def dual(problem: Problem, features: DenseFeatures, theta: Tensor, *, tol: float, max_iter: int) -> Solved:
    """Solve a single logit for coefficients of the rows, from zero weights and the bias of θ.

    Cost: n²·d multiply-adds once, and n³/6 for a factor.
    """
    penalty, intercept = problem.penalty, features.intercept
    X = features.centred()
    gram, n = X @ X.mT, len(X)
    rounded = gram.float() if _resolved(gram.trace() * problem.weight.amax(), problem) else gram
    bias = theta[0, -1:] if intercept else theta.new_zeros(1)

    def at(x: Tensor) -> Point:
        """Take a, b and K a, which is linear in a and so never multiplied for."""
        a, image = x[:n], x[n + 1 :]
        loss, residual = problem.loss((image + x[n])[None])
        value = float(loss.add_(torch.dot(a, image), alpha=0.5 * penalty))
        return Point(x, value, torch.add(residual[0], a, alpha=penalty), residual)

    def factor(point: Point) -> Step:
        curvature = _curvature(problem.weight, point.residual)
        root = curvature.sqrt()
        inner = (root[:, None].to(rounded.dtype) * rounded).mul_(root)
        inner.diagonal().add_(penalty)
        lower = factor_of(inner)
        ones: list[Tensor] = []  # of D: the solution, K times it, and what it leaves of 1ᵀ D 1

        def solved(right: Tensor) -> tuple[Tensor, Tensor]:
            """Return v = (D K + λ)⁻¹ of columns, here rows (m, n), and K v."""
            image = torch.cholesky_solve((right @ gram).mul_(root).to(lower.dtype).mT, lower).mT.double()
            column = right.sub(image.mul_(root)).div_(penalty)
            return column, column @ gram

        def of_ones(right: Tensor) -> tuple[Tensor, Tensor]:
            """Solve for a column and, once, for D."""
            both = right[None] if ones else torch.stack([right, curvature])
            columns, images = solved(both)
            if not ones:
                ones.extend([columns[1], images[1], curvature.sum().sub_(torch.dot(curvature, images[1]))])
            return columns[0], images[0]

        def step(point: Point) -> tuple[Tensor, float]:
            """(D K + λ) a + D b = g and 1ᵀ (D K a + D b) = 1ᵀ r, by D K + λ's inverse of g and of D."""
            if not intercept:
                a, along = (v[0] for v in solved(point.grad[None]))
                return torch.cat([a, bias.new_zeros(1), along]), float(torch.dot(along, point.grad))
            a, along = of_ones(point.grad)
            column, image, total = ones
            pull = point.residual.sum(1)
            shift = (pull - torch.dot(curvature, along)) / total
            a, along = torch.addcmul(a, shift, column, value=-1), torch.addcmul(along, shift, image, value=-1)
            return torch.cat([a, shift, along]), float(torch.dot(along, point.grad) + torch.dot(shift, pull))

        return step

    point, gap, count = _iterate(at, factor, torch.cat([bias.new_zeros(n), bias, bias.new_zeros(n)]), tol, max_iter)
    weight = point.x[:n] @ X
    theta = torch.cat([weight, point.x[n : n + 1]])[None] if intercept else weight[None]
    return Solved(theta, point.value, gap, count, point.residual)


def _iterate(
    at: Callable[[Tensor], Point], factor: Callable[[Point], Step], x: Tensor, tol: float, max_iter: int
) -> tuple[Point, float, int]:
    """Take damped Newton steps until the gap is at most tol·f; the factor before tells it after a step.

    While a factor still brings the decrement down, its next step is taken too: it costs no Hessian.
    """
    point, count = at(x), 1
    while True:
        step = factor(point)
        ahead, decrement = step(point)
        gap = decrement
        if gap <= tol * point.value or count >= max_iter:
            return point, gap, count
        found, tried = _along(at, point, ahead, decrement, max_iter - count)
        count += tried
        if found is None:
            return point, gap, count
        while found is not None:
            point, before = found, decrement
            ahead, decrement = step(point)
            gap = 0.5 * _SAFETY * decrement
            if gap <= tol * point.value or count >= max_iter:
                return point, gap, count
            if decrement > _REUSED * before:
                break
            found, count = _accepted(point, at(point.x - ahead), decrement), count + 1


def _accepted(point: Point, trial: Point, decrement: float, length: float = 1.0) -> Point | None:
    """Return a trial that is low enough."""
    noise = torch.finfo(torch.float64).eps * point.value
    return trial if trial.value <= point.value - _SUFFICIENT * length * decrement + noise else None


def _along(
    at: Callable[[Tensor], Point], point: Point, ahead: Tensor, decrement: float, most: int
) -> tuple[Point | None, int]:
    """Return a point along the step that is low enough, or None, and how many were tried."""
    length, tried = 1.0, 0
    while length >= _SHORTEST and tried < max(most, 1):
        trial, tried = at(torch.sub(point.x, ahead, alpha=length)), tried + 1
        if _accepted(point, trial, decrement, length) is not None:
            return trial, tried
        length *= shorter(point.value, trial.value, -length * decrement)
    return None, tried


def _columns(features: DenseFeatures) -> Tensor:
    if features.whole is not None:
        return features.whole
    X = features.centred()
    return torch.cat([X, X.new_ones(len(X), 1)], 1) if features.intercept else X


def _curvature(weight: Tensor, residual: Tensor) -> Tensor:
    """Return w p (1 − p) (n,) from the residuals ±w (1 − p of the class) of a single logit."""
    wrong = residual[0].abs()
    return wrong.addcdiv(wrong.square(), weight, value=-1).nan_to_num_(0.0).clamp_min_(0)


def hessian_of(F: Tensor, labels: Tensor, weight: Tensor, residual: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Return the Hessian of the mean loss, (c·q, c·q), pinned if a shift of all classes changes no probability.

    That is in the features to which the penalty, (q,), adds nothing; without one, in all of them.
    """
    if residual.shape[0] == 1:
        return (F * _curvature(weight, residual).to(F.dtype)[:, None]).mT @ F
    (n, q), c = F.shape, len(residual)
    mass = residual.scatter_add(0, labels[None], weight[None])  # w p, (c, n)
    root = torch.where(weight > 0, weight.rsqrt(), 0)
    mixed = ((mass * root).to(F.dtype).mT[:, :, None] * F[:, None]).reshape(n, c * q)
    hessian = torch.mm(mixed.mT, mixed).neg_().view(c, q, c, q)
    blocks = (mass.to(F.dtype)[:, :, None] * F).mT @ F  # (c, q, q)
    hessian.diagonal(dim1=0, dim2=2).add_(blocks.permute(1, 2, 0))
    free = F.new_ones(q) if diagonal is None else (diagonal == 0).to(F)
    hessian.diagonal(dim1=1, dim2=3).add_(free / c**2)
    return hessian.view(c * q, c * q)
