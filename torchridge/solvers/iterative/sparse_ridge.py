"""Ridge on a sparse matrix without penalty factors: lean products that conjugate gradients of all strengths share.

Rows of text have one direction of much variance, their mean, which centring takes away; what is left is so well
conditioned that a sketch to precondition it costs more than it saves. And one vector of features is as long as all the
entries of ten rows, so corrections for the centring belong into the space of the rows. With s = √S z, u = Zᵀ s and
P = X Γᵀ (see `design`),

    A Aᵀ z = √S [X Xᵀ s − P u − Z Pᵀ s + Z Γ Γᵀ u]      and      AᵀA v = Xᵀ S (X v − Z Γ v),

the latter because ZᵀS (X − Z Γᵀ) = 0. Measured, one thread, TF-IDF (2000, 15000, 10 targets), residual 1e-8: 0.74 of
scikit-learn's time at the same tolerance; a sketch of rank 16 took twice as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.iterative import conjugate_gradients, shifted
from torchridge.solvers.iterative import standard_form as design
from torchridge.solvers.iterative.operators import Operator
from torchridge.solvers.iterative.solve_many import Rule
from torchridge.solvers.iterative.sparse import SparseArray, SparseTensor
from torchridge.solvers.iterative.standard_form import Design

# Steps after which a sketch is bought after all, and how many more for each strength that shares them.
_PATIENCE, _MORE = 120, 20

# Multiply-adds of a sparse product in one of a dense product, and steps that a solve takes, to compare the two roads.
_DEARER, _STEPS = 12.0, 25

# The same of a fold whose weakest strength is weak, and what either road costs at any size; measured with 200 to 2,000
# rows, 500 to 4,000 features, 1 and 10 targets, 3 and 20 strengths.
_FOLD_STEPS, _FOLD_START = 100, (4e8, 1e8)


class Solved(NamedTuple):
    """Solved columns (L·t), strengths first."""

    weight: Tensor  # (d, c)
    bias: Tensor  # (c,)
    error: Tensor  # (c,)
    steps: Tensor  # (c,)


def pays(n: int, d: int, entries: int, columns: int) -> bool:
    """Choose whether products with a sparse matrix cost less than filling it, its Gram matrix and a factorization."""
    side = min(n, d)
    direct = n * d * side / 2 + side**3 / 3 + 8.0 * n * d  # filling costs as much as some products with each number
    return 2.0 * _DEARER * _STEPS * columns * (entries + n + d) < direct


def folds_pay(n: int, d: int, entries: int, targets: int, strengths: int) -> bool:
    """Choose whether a fold costs less by products than by an eigendecomposition of the smaller side of filled rows.

    The strengths share all products, and take some passes over vectors each.
    """
    side = min(n, d)
    products = 2.0 * _DEARER * _FOLD_STEPS * targets * (entries + n + d + 3 * strengths * side)
    filled = 1.5 * n * d * side + 5.5 * side**3 + 5.0 * n * d * targets * strengths
    return _FOLD_START[0] + products < _FOLD_START[1] + filled


def gram_pays(n: int, d: int, entries: int) -> bool:
    """Choose whether the Gram matrix of sparse rows costs less from products than from filled rows."""
    return n < d and 4.0 * _DEARER * entries < n * d


def applies(X: Operator, form: Design, per_target: bool) -> bool:
    """Whether a problem is of this kind."""
    sparse = isinstance(X, (SparseArray, SparseTensor))
    return sparse and form.plain and form.spread is None and not per_target


def patience(rule: Rule, strengths: int) -> int:
    """Return the steps after which a sketch is bought."""
    return min(rule.max_iter, _PATIENCE + _MORE * (strengths - 1))


def solve(form: Design, y: Tensor, alphas: Tensor, rule: Rule, intercept: bool) -> Solved | None:
    """Solve for targets y (n, t) at strengths (L,) above zero; None if it takes more than patience has."""
    t, L = y.shape[1], len(alphas)
    part = torch.zeros(t, dtype=torch.int64, device=y.device)
    fixed = design.on_fixed(form, y, part)
    target = y - form.fixed @ fixed if form.fixed.shape[1] else y
    rhs = design.weigh(form, target, part, root=form.dual)
    rhs = rhs if form.dual else design.backward(form, rhs, part)
    product, most = product_of(form), patience(rule, L)
    if L == 1:
        z, error, steps = _by_columns(product, rhs, alphas.expand(t), rule.tol, most)
    else:
        path = shifted.solve(product, rhs, alphas, rule.tol, most)
        z, error = path.solution.transpose(0, 1).reshape(len(rhs), L * t), path.error.reshape(-1)
        steps = torch.full((L * t,), path.steps, device=y.device)
    if not bool((error <= rule.tol).all()):
        return None
    parts = part.repeat(L)
    weight = design.backward(form, design.weigh(form, z, parts, root=True), parts) if form.dual else z
    weight = design.penalized(form, weight, parts)
    weight, bias = design.completed(form, weight, fixed.repeat(1, L), parts, intercept)
    return Solved(weight, bias, error, steps)


def product_of(form: Design) -> Callable[[Tensor], Tensor]:
    """Return what takes v (m, c) to AᵀA v, or to A Aᵀ v if rows are the unknowns."""
    X, Z, slopes = form.X, form.fixed, form.slopes[:, :, 0]
    q = Z.shape[1]
    if not form.dual:

        def gram(v: Tensor) -> Tensor:
            image = X.matmul(v)
            image = image.addmm_(Z, slopes @ v, alpha=-1) if q else image
            return X.rmatmul(image if form.weight is None else image * form.weight)

        return gram
    P = X.matmul(slopes.mT.contiguous()) if q else Z
    square = slopes @ slopes.mT
    root = None if form.weight is None else form.weight.sqrt()

    def dual(z: Tensor) -> Tensor:
        s = z if root is None else z * root
        out = X.matmul(X.rmatmul(s))
        if q:
            u = Z.mT @ s
            out.addmm_(P, u, alpha=-1).addmm_(Z, square @ u - P.mT @ s)
        return out if root is None else out * root

    return dual


def _by_columns(
    product: Callable[[Tensor], Tensor], rhs: Tensor, alpha: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.linalg.vector_norm(rhs, dim=0)
    system = conjugate_gradients.System(lambda v, at: product(v), lambda r, at: r.clone(), alpha)

    def measure(z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        residual = rhs[:, at] - product(z) - alpha[at] * z
        norm = torch.linalg.vector_norm(residual, dim=0)
        return residual, torch.where(size[at] > 0, norm / size[at].clamp_min(1e-300), 0)

    solved = conjugate_gradients.solve(system, rhs, measure, tol, max_iter, 0.9 * tol * size)
    return solved.solution, solved.error, solved.steps
