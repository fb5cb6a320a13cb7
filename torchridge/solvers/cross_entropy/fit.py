"""Logistic fits in the units of the caller: into the eigenbasis, along the path, and back out."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from torchridge._ranks import Ranks
from torchridge.solvers.cross_entropy import single as logistic_single
from torchridge.solvers.cross_entropy import sparse
from torchridge.solvers.cross_entropy.basis import Basis, eigenbasis, rotate, unrotate
from torchridge.solvers.cross_entropy.features import SparseFeatures
from torchridge.solvers.cross_entropy.hessian import WHOLE
from torchridge.solvers.cross_entropy.loss import Rows, chunks
from torchridge.solvers.cross_entropy.over_ranks import led, shared_basis, summed
from torchridge.solvers.cross_entropy.path import Path, repair, solve_path, strengths_at_once
from torchridge.solvers.cross_entropy.single import Single
from torchridge.solvers.device import keeps_float32
from torchridge.solvers.iterative.operators import Operator

# Below this the rounding of float32 sums is no longer small compared with the gap that is asked for.
_FLOAT32_TOL = 1e-7

# 4 / eps of float32. Planted data of condition 8e6 kept their gap to a fifth of `tol`, those of 7e8 missed it tenfold.
_RESOLVED = 2.0**25

# Rows × coefficients up to which an evaluation in float64 is a matter of milliseconds.
_LITTLE = 2**25


@dataclass(frozen=True)
class Fit:
    """L strengths × h heads × g row weights: weight (L, h, g, c, d), bias (L, h, g, c), and (L, h, g) for the rest."""

    weight: Tensor
    bias: Tensor
    objective: Tensor
    gap: Tensor
    n_iter: Tensor
    converged: Tensor
    separated: Tensor


def fit_sparse(
    X: Operator, labels: Tensor, k: int, weight: Tensor, C: Tensor, *, intercept: bool, tol: float, max_iter: int
) -> Fit:
    """Fit every head under every row weight and strength, by products with X. The strengths must rise.

    Shape:
        as `fit`.

    Cost: two products with c columns an evaluation, of which a strength takes about 5 to 20; two more for each weight.
    """
    total = weight.sum(1)
    shares = weight / total[:, None]
    seen = class_weight(labels, shares, k)  # (h, g, k)
    X = sparse.doubled(X)
    twice = 1.0 + ((seen > 0).sum(-1) == 2) * float(k > 2)
    penalty = twice / (C[:, None, None] * total)  # (L, h, g)
    columns = []
    for g, share in enumerate(shares):
        features = SparseFeatures(X, share, intercept=intercept)
        columns.append(
            [
                sparse.fit(features, head, share, seen[h, g], penalty[:, h, g], tol=tol, max_iter=max_iter)
                for h, head in enumerate(labels)
            ]
        )
    names = [f.name for f in fields(Fit)]

    def joined(name: str) -> Tensor:
        each = [torch.stack([getattr(found, name) for found in heads], 1) for heads in columns]
        return each[0][:, :, None] if len(each) == 1 else torch.stack(each, 2)

    found = {name: joined(name) for name in names}
    found["objective"] = found["objective"] * (C[:, None, None] * total)
    found |= {name: found[name].bool() for name in ("converged", "separated")}
    return Fit(**found)


def working_dtype(tol: float, n: int, coefficients: int, condition: float, device: torch.device) -> torch.dtype:
    """Return the dtype of the products: float32 if that pays, rounds finely enough for `tol`, and is not TF32.

    If Newton's method is used, and on little data, float64 costs milliseconds. `condition` bounds that of the
    Hessian: past what float32 resolves, a fit would be called converged by what rounding leaves of its gap.
    """
    exact = keeps_float32(device)
    pays = coefficients > WHOLE and n * coefficients > _LITTLE
    resolved = condition <= _RESOLVED
    return torch.float32 if tol >= _FLOAT32_TOL and exact and pays and resolved else torch.float64


def fit(
    X: Tensor, labels: Tensor, k: int, weight: Tensor, C: Tensor, *,
    intercept: bool, tol: float, max_iter: int, max_elements: int, ranks: Ranks | None = None,
) -> Fit:  # fmt: skip
    """Fit every head under every row weight and strength. The strengths must rise. With `ranks`, to all their rows.

    Shape:
        X: (n, d); labels: (h, n), int64 under k; weight: (g, n), float64; C: (L,), float64, rising.

    Cost: 3·n·d² + 9·d³ flops once, and 4·n·d·c for an evaluation; a strength takes 1 to 20 of them, up to 100 if
    the data are nearly separable. Memory: the features once more, and `max_elements` logits.
    """
    total = summed(ranks, "weights", weight.sum(1))  # (g,)
    shares = weight / total[:, None]
    seen = summed(ranks, "class weights", class_weight(labels, shares, k))  # (h, g, k)
    alone = None
    if ranks is None and len(C) == len(labels) == len(shares) == 1 and bool((seen > 0).all()):
        alone = _alone(X, labels[0], shares[0], seen[0, 0], float(1 / (C[0] * total[0])), intercept, tol, max_iter)
        if alone.converged or alone.n_iter >= max_iter:
            return _of_single(alone, C * total)
    if ranks is None:
        basis = eigenbasis(X, shares.mean(0), intercept=intercept)
    else:
        basis = shared_basis(ranks, X, shares.mean(0), intercept=intercept)
    # Two classes left of many: the softmax of two has twice the penalty of the single logit that is meant.
    twice = 1.0 + ((seen > 0).sum(-1) == 2) * float(k > 2)
    penalty = twice / (C[:, None, None] * total)  # (L, h, g)
    condition = float(0.5 * basis.eigvals[basis.penalized > 0].amax() / penalty.amin())  # Böhning's bound
    count = int(summed(ranks, "rows", penalty.new_full((), float(len(X)))))
    dtype = working_dtype(tol, count, (1 if k == 2 else k) * len(basis.eigvals), condition, X.device)
    rows = _rows(X, basis, labels, shares, seen, dtype, max_elements)
    start = _start(seen, len(basis.eigvals), intercept) if alone is None else _rotated(basis, alone)
    at_once = strengths_at_once(start.shape[0] * start.shape[1], start.shape[2], X.device)
    options: dict[str, Any] = {"at_once": at_once, "tol": tol, "max_iter": max_iter}

    def solve(rows: Rows) -> Path:
        return solve_path(rows, basis, start, penalty, **options)

    path = solve(rows) if ranks is None else led(ranks, rows, solve)
    if dtype is torch.float32 and not bool(path.converged.all()):
        exact, first = _rows(X, basis, labels, shares, seen, torch.float64, max_elements), path

        def go_on(rows: Rows) -> Path:
            return repair(rows, basis, first, penalty, **options)

        path = go_on(exact) if ranks is None else led(ranks, exact, go_on)
    if ranks is None:
        _finish(path, basis, X, labels, shares, seen, penalty, intercept, tol, max_iter)
    separated = summed(ranks, "separation", (~_separated(rows, path.theta)).double()) == 0
    return _in_units(basis, path, C[:, None, None] * total, seen, separated)


def _alone(
    X: Tensor, labels: Tensor, shares: Tensor, seen: Tensor, penalty: float, intercept: bool, tol: float, max_iter: int
) -> Single:
    """Fit a single problem without a basis, in float32 first if that pays."""
    coefficients = (1 if len(seen) == 2 else len(seen)) * (X.shape[1] + 1)
    dtype = torch.float64
    if len(X) * coefficients > _LITTLE:
        spread = float((shares @ X.double().square()).sum()) if X.numel() <= _LITTLE else 0.0
        dtype = working_dtype(tol, len(X), coefficients, 0.5 * spread / penalty, X.device)
    options: dict[str, Any] = {"intercept": intercept, "tol": tol, "max_iter": max_iter}
    return logistic_single.fit(X, labels, shares, seen, penalty, dtype=dtype, **options)


def _finish(
    path: Path, basis: Basis, X: Tensor, labels: Tensor, shares: Tensor, seen: Tensor, penalty: Tensor,
    intercept: bool, tol: float, max_iter: int,
) -> None:  # fmt: skip
    """Solve by themselves, in place, the problems that got stuck, as row weights over many decades may have it."""
    stuck = ~path.converged & (path.n_iter < max_iter) & (seen > 0).all(-1)
    for i, h, g in stuck.nonzero().tolist():
        left = max_iter - int(path.n_iter[i, h, g])
        value = float(penalty[i, h, g])
        found = _alone(X, labels[h], shares[g], seen[h, g], value, intercept, tol, left)
        path.n_iter[i, h, g] += found.n_iter
        if found.converged or found.objective < float(path.objective[i, h, g]):
            path.theta[i, h, g] = _rotated(basis, found)[0, 0]
            path.objective[i, h, g], path.gap[i, h, g] = found.objective, found.gap
            path.converged[i, h, g] = found.converged


def _of_single(found: Single, unit: Tensor) -> Fit:
    def shaped(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((1, 1, 1), value, dtype=dtype, device=unit.device)

    gap = found.gap / max(found.objective, torch.finfo(torch.float64).tiny)
    return Fit(
        found.weight[None, None, None],
        found.bias[None, None, None],
        found.objective * unit.view(1, 1, 1),
        shaped(gap, torch.float64),
        shaped(found.n_iter, torch.int64),
        shaped(found.converged, torch.bool),
        found.separated.view(1, 1, 1),
    )


def _rotated(basis: Basis, found: Single) -> Tensor:
    """Return the coefficients (1, 1, c, q) over the basis of a fit that is to be gone on with."""
    weight = found.weight @ basis.directions
    if not basis.intercept:
        return weight[None, None]
    return torch.cat([weight, (found.bias + found.weight @ basis.mean)[:, None]], 1)[None, None]


def _rows(
    X: Tensor, basis: Basis, labels: Tensor, shares: Tensor, seen: Tensor, dtype: torch.dtype, max_elements: int
) -> Rows:
    closed = seen == 0
    missing = closed if seen.shape[-1] > 2 and bool(closed.any()) else None
    return Rows(rotate(basis, X, dtype), labels, shares.to(dtype), missing, max_elements)


def class_weight(labels: Tensor, shares: Tensor, k: int) -> Tensor:
    """Return the share (h, g, k) of every class in the weight of the rows."""
    heads, groups = len(labels), len(shares)
    index = labels[:, None].expand(heads, groups, -1)
    return shares.new_zeros(heads, groups, k).scatter_add_(2, index, shares[None].expand(heads, groups, -1))


def _start(seen: Tensor, q: int, intercept: bool) -> Tensor:
    """Return the solution of an infinite penalty, (h, g, c, q): zero weights, and the log odds of the classes."""
    k = seen.shape[-1]
    start = seen.new_zeros(*seen.shape[:2], 1 if k == 2 else k, q)
    if intercept:
        start[..., -1] = torch.logit(seen[..., 1:]) if k == 2 else _centred(seen.log())
    return start.nan_to_num(neginf=0.0)


def _centred(bias: Tensor) -> Tensor:
    """Shift (..., k) so that its finite entries have mean zero: the softmax leaves a common shift open."""
    open_ = torch.isfinite(bias)
    mean = torch.where(open_, bias, 0).sum(-1, keepdim=True) / open_.sum(-1, keepdim=True)
    return bias - mean


def _separated(rows: Rows, theta: Tensor) -> Tensor:
    """Return (L, h, g) whether the logits of θ (L, h, g, c, q) put every row that has weight in its class."""
    *shape, c, q = theta.shape
    right = torch.ones(shape, dtype=torch.bool, device=theta.device)
    flat = theta.to(rows.features.dtype).reshape(-1, q)
    for part in chunks(len(rows.features), len(flat), rows.max_elements):
        logits = (flat @ rows.features[part].mT).view(*shape, c, -1)
        if c > 1 and rows.closed is not None:
            logits.masked_fill_(rows.closed[..., None], -torch.inf)
        chosen = (logits[..., 0, :] > 0).long() if c == 1 else logits.argmax(-2)
        right &= ((chosen == rows.labels[:, None, part]) | (rows.weight[:, part] == 0)).all(-1)
    return right


def _in_units(basis: Basis, path: Path, unit: Tensor, seen: Tensor, separated: Tensor) -> Fit:
    weight, bias = unrotate(basis, path.theta)
    if seen.shape[-1] > 2:
        bias = bias.masked_fill(seen == 0, -torch.inf)
        bias = _centred(bias) if basis.intercept else bias
    gap = path.gap / path.objective.clamp_min(torch.finfo(torch.float64).tiny)
    return Fit(weight, bias, path.objective * unit, gap, path.n_iter, path.converged, separated)
