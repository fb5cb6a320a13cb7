"""One dense logistic problem without a penalty: Newton's method, and whether an optimum exists at all.

    minimize over θ (c, q):   f(θ) = Σ_i w_i CE(y_i, θ f_i)

with features of unit mean square over the r directions that the rows span, so that the Hessian is singular only if the
classes come apart: then f falls forever along some θ, and a Newton step goes on changing logits by about 1. An optimum
is there if the steps die out. Collinear features share their weight (minimum norm).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy import newton
from torchridge.solvers.cross_entropy.features import DenseFeatures
from torchridge.solvers.cross_entropy.loss import Loss
from torchridge.solvers.cross_entropy.newton import hessian_of
from torchridge.solvers.cross_entropy.problem import Problem

# Orders of Hessians, and multiply-adds of a step, up to which Newton's method is taken.
_ORDER, _PRICE = 2048, 1e10

# Steps, each of which multiplies the odds by up to e: past them only classes that come apart still move.
_STEPS = 100
_MOVING = 0.1

# Change of the logits at which the quadratic convergence of the next step reaches rounding.
_CLOSE = 1e-7

_WEAK = 1e-10  # penalty on features of unit mean square, if none leaves no optimum
_NOISE = 1e-13  # of a loss, relative: differences below it say nothing
_SINGULAR = 1e-12  # of squared pivots, relative
_SUFFICIENT = 1e-4  # Armijo's constant
_SHORTEST = 1e-6


class Unpenalized(NamedTuple):
    """Where a problem without a penalty ended."""

    weight: Tensor  # (c, d)
    bias: Tensor  # (c,)
    loss: float  # weighted mean
    gap: float  # relative
    n_iter: int
    exists: bool | None  # an optimum; None if the steps were too few to tell


class Directions(NamedTuple):
    """Features F = (X − mean) @ out of unit mean square, with orthogonal columns."""

    mean: Tensor  # (d,)
    out: Tensor  # (d, r)
    features: Tensor  # (n, r)


def affordable(n: int, d: int, classes: int) -> bool:
    """Whether Newton's method takes a problem of this size."""
    order = (1 if classes == 2 else classes) * (min(n, d) + 1)
    return order <= _ORDER and n * order**2 <= _PRICE


def whitened(X: Tensor, intercept: bool) -> Directions:
    """Return the directions that the rows of X (n, d) span. Cost: 4·n·d² multiply-adds."""
    X = X.double()
    mean = X.mean(0) if intercept else X.new_zeros(X.shape[1])
    centred = X - mean
    noise = 8 * torch.finfo(torch.float64).eps * X.abs().amax(0)  # what centring leaves of a constant column
    scale = centred.square().mean(0).sqrt()
    scale = torch.where(scale > noise, 1 / scale, 0)
    left, size, right = torch.linalg.svd(centred * scale, full_matrices=False)
    kept = size > max(X.shape) * torch.finfo(torch.float64).eps * size[:1]
    root = len(X) ** 0.5
    out, features = scale[:, None] * right[kept].mT / size[kept] * root, left[:, kept] * root
    if out.shape[1] < X.shape[1]:  # of the weights with the same logits, those in the span of the rows are smallest
        span = torch.linalg.qr((features.mT @ centred).mT).Q
        out = span @ (span.mT @ out)
    return Directions(mean, out, features)


def fit(X: Tensor, labels: Tensor, weight: Tensor, classes: int, *, intercept: bool, max_iter: int) -> Unpenalized:
    """Fit rows of positive weights (n,) that sum to one and labels (n,) of classes that all have rows.

    Cost: 4·n·d² + n·(c·q)² + (c·q)³/3 multiply-adds an iteration, of which overlapping classes take about 5 to 15.
    """
    mean, out, features = whitened(X, intercept)
    F = torch.cat([features, features.new_ones(len(X), 1)], 1) if intercept else features
    theta, loss, gap, count, exists = _newton(F, labels, weight, 1 if classes == 2 else classes, max_iter)
    if exists is False:
        theta = _limit(features, labels, weight, theta, intercept)
        loss = float(Loss(labels, weight)(theta @ F.mT)[0])
    coefficients = theta[:, : out.shape[1]] @ out.mT
    bias = theta[:, -1] - coefficients @ mean if intercept else theta.new_zeros(len(theta))
    return Unpenalized(coefficients, bias - bias.mean() if len(bias) > 1 else bias, loss, gap, count, exists)


def _limit(features: Tensor, labels: Tensor, weight: Tensor, theta: Tensor, intercept: bool) -> Tensor:
    """Return θ under a very weak penalty, at which classes that come apart are told apart by a wide margin."""
    rows = DenseFeatures(features, weight, intercept=intercept)
    problem = Problem(rows, labels, weight, _WEAK, 0.25)
    found = newton.primal(problem, rows, torch.zeros_like(theta), tol=1e-8, max_iter=2 * _STEPS).theta
    if intercept:
        found[:, -1] -= found[:, :-1] @ rows.mean
    return found


def _newton(
    F: Tensor, labels: Tensor, weight: Tensor, c: int, max_iter: int
) -> tuple[Tensor, float, float, int, bool | None]:
    theta, moved, of = F.new_zeros(c, F.shape[1]), torch.inf, Loss(labels, weight)
    loss, residual = of(theta @ F.mT)
    count, most = 1, min(max_iter, _STEPS)
    while True:
        grad = residual @ F
        step = _step(hessian_of(F, labels, weight, residual), grad)
        if step is None or _apart(theta @ F.mT, labels):
            return theta, float(loss), torch.inf, count, False
        before, moved = moved, float((step @ F.mT).abs().max())
        decrement = float((step * grad).sum())
        if count >= most or (moved < _CLOSE and moved > 0.1 * before) or moved == 0:
            exists = moved < _CLOSE or (None if count < _STEPS or moved <= _MOVING else False)
            gap = decrement / max(float(loss), torch.finfo(torch.float64).tiny)
            return theta, float(loss), gap if exists is not False else torch.inf, count, exists
        theta, loss, residual, tried = _ahead(F, of, theta, step, loss, decrement)
        count += tried


def _ahead(
    F: Tensor, of: Loss, theta: Tensor, step: Tensor, loss: Tensor, decrement: float
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Go along a step as far as f falls; return θ, f, the residuals and how often f was evaluated."""
    length, tried, noise = 1.0, 0, _NOISE * float(loss)
    while True:
        trial = theta - length * step
        value, residual = of(trial @ F.mT)
        tried += 1
        if float(value) <= float(loss) - _SUFFICIENT * length * decrement + noise or length < _SHORTEST:
            return trial, value, residual, tried
        length *= 0.5


def _step(hessian: Tensor, grad: Tensor) -> Tensor | None:
    """Return the Newton step, or None if the Hessian, scaled to a diagonal of ones, is singular to rounding."""
    scale = hessian.diagonal().rsqrt()
    lower, info = torch.linalg.cholesky_ex(scale[:, None] * hessian * scale)
    pivots = lower.diagonal().square()
    if int(info) or not bool(pivots.amin() > _SINGULAR):
        return None
    solved = torch.cholesky_solve((scale * grad.view(-1))[:, None], lower)[:, 0]
    return (scale * solved).view(grad.shape)


def _apart(logits: Tensor, labels: Tensor) -> bool:
    """Whether every row is strictly on the right side, which proves that f has no minimum."""
    if len(logits) == 1:
        return bool((logits[0] * (2 * labels - 1) > 0).all())
    own = logits.gather(0, labels[None])
    others = logits.scatter(0, labels[None], -torch.inf)
    return bool((own[0] > others.amax(0)).all())
