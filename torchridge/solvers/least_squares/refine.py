"""Iterative refinement with residuals taken in twice the working precision.

A gram matrix of condition κ costs eps · κ of the weights. Its factor still solves for corrections: as long as
eps · κ < 1, correcting the weights by an accurately computed gradient brings them to the exact solution, rounded.
Sources: Higham 2002, chapter 12, doi:10.1137/1.9780898718027; products by exact slices: Ozaki, Ogita, Oishi &
Rump 2012, doi:10.1007/s11075-011-9478-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.least_squares.objective import Frame
from torchridge.solvers.least_squares.spectral import Spectrum, filters
from torchridge.solvers.moments.rows import Rows

# Two slices of 20 bits multiply to 40; 2¹² of those sum to 52 bits, which float64 holds exactly.
_BITS = 20
_ROWS = 4096
_STEPS = 6


def refine(rows: Rows, frame: Frame, spec: Spectrum, alpha: Tensor, weight: Tensor) -> Tensor:
    """Return refined weights (d, c), column j at strength alpha[j] for target j mod t. Cost about 10 n d c a step."""
    filtered = filters(spec.eigvals, alpha, spec.floor)  # (m, c)
    best, size = weight, torch.full_like(alpha, torch.inf)
    for _ in range(_STEPS):
        gradient = _gradient(rows, frame, alpha, weight)
        step = spec.transform @ (filtered * (spec.transform.T @ gradient))
        if spec.free:
            step[spec.free.columns] += spec.free.inverse @ gradient[spec.free.columns]
        length = torch.linalg.vector_norm(step, dim=0)
        shrinking = length < size / 2  # a column that no longer improves keeps what it has
        weight = torch.where(shrinking, weight + step, weight)
        best, size = weight, torch.where(shrinking, length, 0)
        if bool((size <= 1e-16 * torch.linalg.vector_norm(weight, dim=0)).all()):
            break
    return best


def _gradient(rows: Rows, frame: Frame, alpha: Tensor, weight: Tensor) -> Tensor:
    """Return Xᵀ diag(s) (y − X w) − α diag(p) (w − prior), rounded once, for centred X and y."""
    targets = torch.arange(weight.shape[1], device=weight.device) % frame.target_center.shape[0]
    high, low = torch.zeros_like(weight), torch.zeros_like(weight)
    for start in range(0, rows.X.shape[0], _ROWS):
        part = slice(start, start + _ROWS)
        x, x_low = _two_difference(rows.X[part].detach().to(weight), frame.center)
        y = rows.y[part].detach().to(weight) - frame.target_center
        residual = y[:, targets] - (x @ weight)
        if rows.sample_weight is not None:
            residual = residual * rows.sample_weight[part].detach().to(weight)[:, None]
        for term in (*_exact_products(x, residual), x_low.T @ residual):
            high, low = _add(high, low, term)
    shrunk = weight if frame.prior is None else weight - frame.prior[:, targets]
    for p in _two_product(alpha if frame.penalty is None else alpha * frame.penalty[:, None], shrunk):
        high, low = _add(high, low, -p)
    return high + low


def _two_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a − b rounded, and what the rounding lost (Knuth)."""
    high = a - b
    part = high - a
    return high, (a - (high - part)) - (b + part)


def _add(high: Tensor, low: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
    total, lost = _two_difference(high, -term)
    return total, low + lost


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a · b rounded, and what the rounding lost (Dekker)."""
    product = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    scaled = 134217729.0 * a  # 2²⁷ + 1
    high = scaled - (scaled - a)
    return high, a - high


def _exact_products(x: Tensor, r: Tensor) -> list[Tensor]:
    """Return terms whose sum is xᵀ r to some 60 bits; the leading ones are exact."""
    xs, rs = _slices(x), _slices(r)
    return [(xs[i].T @ rs[j]) for i in range(3) for j in range(3) if i + j < 3]


def _slices(a: Tensor) -> list[Tensor]:
    """Cut every column into three summands: two of `_BITS` bits below the column's largest value, and the rest."""
    result = []
    for _ in range(2):
        largest = a.abs().amax(0).clamp_min(torch.finfo(a.dtype).tiny)
        anchor = 1.5 * torch.exp2(torch.ceil(torch.log2(largest)) + 52 - _BITS)
        head = (a + anchor) - anchor
        result.append(head)
        a = a - head
    return [*result, a]
