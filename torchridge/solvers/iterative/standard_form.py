"""A ridge problem in the standard form that conjugate gradients solve, with the matrix left as it is.

Everything that would fill a sparse matrix, or copy a dense one, is a correction to its products. For rows of weight s,
penalty factors p and the columns Z that are not penalized (a column of ones for the intercept, and the features of
p = 0), the standard form is

    A = √S (X − Z Γᵀ) diag(e),    e_j = 1/√p_j, or 0 for a feature of Z or a constant one,    Γᵀ = (Zᵀ S Z)⁻¹ Zᵀ S X,

and (AᵀA + αI) u = Aᵀ √S (y − Z η) has w = e ∘ u, η likewise the coefficients of y on Z. Several sets of weights (the
training parts of folds) share one X: column c of a block belongs to set `part[c]`, and one product serves all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.iterative.operators import Dense, LinearOperator, Operator
from torchridge.solvers.iterative.sketch_rank import choose_dual
from torchridge.solvers.least_squares.objective import Objective

# Rows that tell which features may be constant, and columns of those that are read at once.
_FIRST, _AT_ONCE = 4, 64

# Rows that tell the sizes of features, and a ratio of these from which a residual hides that of the small ones.
_SAMPLE, _NUMBERS, _FAR = 256, 2**22, 1e4


class Design(NamedTuple):
    """The standard form of F sets of weights over one matrix."""

    X: Operator
    weight: Tensor | None  # s, (n, F)
    scale: Tensor | None  # e, (d, 1 or F)
    fixed: Tensor  # Z, (n, q)
    slopes: Tensor  # Γ, (q, d, F)
    inverse: Tensor  # (Zᵀ S Z)⁻¹, (F, q, q)
    total: Tensor  # Σ s, (F,)
    free: Tensor  # features of p = 0, their numbers
    spread: Tensor | None = None  # about Σ x² of each feature about its mean, (d, 1), if they differ by many decades
    plain: bool = True  # whether e is one but for constant features, where it is zero

    @property
    def sets(self) -> int:
        """F."""
        return self.slopes.shape[2]

    @property
    def dual(self) -> bool:
        """Whether rows are the unknowns."""
        return choose_dual(*self.X.shape)

    def one(self, k: int) -> Design:
        """Return the form of one set of weights, if all of them share the scale."""
        weight = None if self.weight is None else self.weight[:, k : k + 1]
        some = slice(k, k + 1)
        return self._replace(
            weight=weight, slopes=self.slopes[:, :, some], inverse=self.inverse[some], total=self.total[some]
        )

    def size(self, dual: bool) -> int:
        """Return how many unknowns a column has."""
        return self.X.shape[0] if dual else self.X.shape[1]


def design(X: Operator, weight: Tensor | None, objective: Objective) -> Design:
    """Return the standard form for weights (n, F). Cost: up to three products with F columns."""
    n, d = X.shape
    every = torch.ones(n, 1, dtype=torch.float64, device=X.device) if weight is None else weight
    free = torch.zeros(0, dtype=torch.int64, device=X.device)
    if objective.penalty is not None:
        free = (objective.penalty == 0).nonzero()[:, 0]
    fixed = _fixed(X, objective.intercept, free)
    total = every.sum(0)
    outer = torch.einsum("nq,nf,nr->fqr", fixed, every, fixed)
    inverse = torch.linalg.pinv(outer, hermitian=True, rtol=1e-12) if fixed.shape[1] else outer
    sets, q = every.shape[1], fixed.shape[1]
    slopes = fixed.new_zeros(q, d, sets)
    if q:
        sums = X.rmatmul((fixed[:, :, None] * every[:, None, :]).reshape(n, q * sets)).reshape(d, q, sets)
        slopes = torch.einsum("fqr,drf->qdf", inverse, sums).contiguous()
    scale = _scale(X, every, objective, free)
    plain = objective.penalty is None and not objective.standardize
    return Design(X, weight, scale, fixed, slopes, inverse, total, free, _spread(X, objective), plain)


def _fixed(X: Operator, intercept: bool, free: Tensor) -> Tensor:
    ones = torch.ones(X.shape[0], int(intercept), dtype=torch.float64, device=X.device)
    if len(free) == 0:
        return ones
    columns = X.columns(free)
    return torch.cat([ones, columns], 1)


def _scale(X: Operator, weight: Tensor, objective: Objective, free: Tensor) -> Tensor | None:
    penalty = None if objective.penalty is None else objective.penalty.double()[:, None]
    if objective.standardize:
        variance = _variance(X, weight)
        penalty = variance if penalty is None else penalty * variance
    constant = _constant(X) if objective.intercept else free[:0]
    if penalty is None and not len(constant):
        return None
    scale = weight.new_ones(X.shape[1], 1) if penalty is None else penalty.rsqrt()
    scale[free] = 0
    scale[constant] = 0
    return scale


def _spread(X: Operator, objective: Objective) -> Tensor | None:
    """Return Σ x² of each feature about its mean, (d, 1); None unless they are far apart.

    Dense ones come from a sample of the rows.
    """
    (n, d), one = X.shape, torch.ones(X.shape[0], 1, dtype=torch.float64, device=X.device)
    if isinstance(X, LinearOperator):
        return None
    if isinstance(X, Dense):
        some = X.some_rows(max(_FIRST, min(_SAMPLE, _NUMBERS // d)))
        mean = some.mean(0)
        squares = ((some - mean * int(objective.intercept)) ** 2).mean(0) * n
    else:
        mean = X.rmatmul(one)[:, 0] / n
        squares = X.squares(one, mean * int(objective.intercept))[:, 0]
    seen = squares > n * 1e2 * torch.finfo(torch.float64).eps * mean**2
    if not bool(seen.any()) or not bool(squares[seen].amax() > _FAR**2 * squares[seen].amin()):
        return None
    return torch.where(seen, squares, squares[seen].amin())[:, None]


def _constant(X: Operator) -> Tensor:
    """Return the features that an intercept makes zero: what rounding leaves of them is no signal."""
    first = X.some_rows(_FIRST)
    if first is None:
        return torch.zeros(0, dtype=torch.int64, device=X.device)
    likely = ((first == first[0]) & (first[0] != 0)).all(0).nonzero()[:, 0]
    parts = [part[(X.columns(part) == first[0, part]).all(0)] for part in torch.split(likely, _AT_ONCE)]
    return torch.cat([likely[:0], *parts])


def _variance(X: Operator, weight: Tensor) -> Tensor:
    """Return the variance of each feature over each set of weights, (d, F); one for a feature that is constant."""
    total = weight.sum(0)
    means = X.rmatmul(weight) / total
    center = means.mean(1)
    spread = X.squares(weight, center) / total
    variance = spread - (means - center[:, None]) ** 2
    # Entries of a sparse matrix are squared about zero, so that what rounding leaves is relative to the mean's square.
    noise = 1e2 * torch.finfo(torch.float64).eps * (spread + means**2)
    return torch.where(variance > noise, variance, torch.ones_like(variance))


def _of(values: Tensor, part: Tensor) -> Tensor:
    """Return the columns (m, c) of values (m, 1 or F)."""
    return values if values.shape[1] == 1 else values[:, part]


def _along(form: Design, v: Tensor, part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Γᵀ v, (q, c)."""
    slopes = form.slopes.to(dtype)
    if form.sets == 1:
        return slopes[:, :, 0] @ v
    return torch.stack([(slopes[k][:, part] * v).sum(0) for k in range(slopes.shape[0])])


def _against(form: Design, fitted: Tensor, part: Tensor) -> Tensor:
    """Return Γ fitted, (d, c), for fitted (q, c)."""
    slopes = form.slopes.to(fitted.dtype)
    if form.sets == 1:
        return slopes[:, :, 0].T @ fitted
    out = slopes[0][:, part] * fitted[0]
    for k in range(1, slopes.shape[0]):
        out += slopes[k][:, part] * fitted[k]
    return out


def gram(form: Design, u: Tensor, part: Tensor) -> Tensor:
    """Return AᵀA u, (d, c), in the dtype of u. Cost: one pass over X."""
    v = _scaled(form, u, part)
    weight, fixed = _cast(form.weight, u.dtype), form.fixed.to(u.dtype)
    q = fixed.shape[1]
    shift = _along(form, v, part, u.dtype) if q else None
    kept = u.new_zeros(q, u.shape[1])

    def between(rows: slice, columns: slice, r: Tensor) -> Tensor:
        if shift is not None:
            r = r - (fixed[rows] @ shift[:, columns])
        if weight is not None:
            r = r * _of(weight[rows], part[columns])
        if q:
            kept[:, columns] += fixed[rows].T @ r
        return r

    out = form.X.normal(v, between)
    if q:
        out -= _against(form, kept, part)
    return _scaled(form, out, part)


def dual_gram(form: Design, z: Tensor, part: Tensor) -> Tensor:
    """Return A Aᵀ z, (n, c), in the dtype of z. Cost: one pass over X."""
    root = None if form.weight is None else _of(form.weight.sqrt().to(z.dtype), part)
    s = z if root is None else z * root
    fixed, scale, slopes = form.fixed.to(z.dtype), _cast(form.scale, z.dtype), form.slopes.to(z.dtype)
    q = fixed.shape[1]
    inner = fixed.T @ s
    kept = z.new_zeros(q, z.shape[1])

    def between(features: slice, columns: slice, w: Tensor) -> Tensor:
        some = form._replace(slopes=slopes[:, features])
        if q:
            w = w - _against(some, inner[:, columns], part[columns])
        if scale is not None:
            w = w * _of(scale[features], part[columns]) ** 2
        if q:
            kept[:, columns] += _along(some, w, part[columns], z.dtype)
        return w

    out = form.X.conormal(s, between)
    if q:
        out -= fixed @ kept
    return out if root is None else out * root


def _cast(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if values is None else values.to(dtype)


def _scaled(form: Design, v: Tensor, part: Tensor) -> Tensor:
    return v if form.scale is None else v * _of(form.scale.to(v.dtype), part)


def weigh(form: Design, r: Tensor, part: Tensor, root: bool = False) -> Tensor:
    """Return S r, or √S r, (n, c)."""
    if form.weight is None:
        return r
    return r * _of(form.weight.sqrt() if root else form.weight, part)


def forward(form: Design, w: Tensor, part: Tensor) -> Tensor:
    """Return (X − Z Γᵀ) w for weights w (d, c) of the features that are penalized."""
    out = form.X.matmul(w)
    if form.fixed.shape[1]:
        out -= form.fixed @ _along(form, w, part, torch.float64)
    return out


def backward(form: Design, r: Tensor, part: Tensor) -> Tensor:
    """Return diag(e) (X − Z Γᵀ)ᵀ r for r (n, c), which is weighted already."""
    out = form.X.rmatmul(r)
    if form.fixed.shape[1]:
        out -= _against(form, form.fixed.T @ r, part)
    return _scaled(form, out, part)


def spread_of(form: Design, part: Tensor) -> Tensor:
    """Return about what Σ of squares each column of A has, (d, c)."""
    assert form.spread is not None
    return form.spread if form.scale is None else form.spread * _of(form.scale, part) ** 2


def penalized(form: Design, u: Tensor, part: Tensor) -> Tensor:
    """Return the weights e ∘ u, (d, c)."""
    return _scaled(form, u, part)


def on_fixed(form: Design, y: Tensor, part: Tensor) -> Tensor:
    """Return the coefficients of columns y (n, c) on Z, (q, c)."""
    right = form.fixed.T @ weigh(form, y, part)
    return torch.einsum("cqr,rc->qc", form.inverse[part], right)


def completed(form: Design, w: Tensor, coefficients: Tensor, part: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    """Return all weights (d, c) and biases (c,), given those that are penalized and the coefficients of y on Z."""
    if not form.fixed.shape[1]:
        return w, w.new_zeros(w.shape[1])
    left = coefficients - _along(form, w, part, torch.float64)
    w = w.clone()
    w[form.free] = left[int(intercept) :]
    return w, left[0] if intercept else left.new_zeros(left.shape[1])
