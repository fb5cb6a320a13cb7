"""The Gram matrix of sparse rows, and few dense features that have the same one.

Whatever depends on rows through their inner products alone (leave-one-out, all its strengths and scores) is the same
for X (n, d) and for R (n, n) with R Rᵀ = X Xᵀ; so a solver of dense rows serves sparse ones that would not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.iterative.operators import Operator

# Columns of Xᵀ that are held dense at once.
_NUMBERS = 2**24

# Rows up to which a matrix (n, n) is factored: 512 MiB.
ROWS = 8192


def gram(X: Operator, center: Tensor) -> Tensor:
    """Return (X − 1 centerᵀ)(X − 1 centerᵀ)ᵀ, (n, n), float64. Cost: n products with X and n with Xᵀ."""
    n, d = X.shape
    out = center.new_empty(n, n)
    step = max(1, _NUMBERS // max(d, n))
    for start in range(0, n, step):
        count = min(step, n - start)
        unit = center.new_zeros(n, count)
        unit[start : start + count].fill_diagonal_(1)
        out[:, start : start + count] = X.matmul(X.rmatmul(unit))
    along = X.matmul(center[:, None])
    out -= along
    out -= along.mT
    out += torch.dot(center, center)
    return (out + out.mT).div_(2)


def equivalent(X: Operator, center: Tensor) -> Tensor:
    """Return R (n, n), lower triangular, with R Rᵀ the Gram matrix of the rows to rounding of its largest entries.

    Ridge in R has the predictions, leverages and norms of ridge in X − 1 centerᵀ.
    """
    matrix = gram(X, center)
    share = torch.finfo(matrix.dtype).eps * len(matrix) * float(matrix.diagonal().amax())
    while True:
        raised = matrix.clone()
        raised.diagonal().add_(share)
        lower, info = torch.linalg.cholesky_ex(raised)
        if not bool(info):
            root: Tensor = lower
            return root
        share = max(10 * share, torch.finfo(matrix.dtype).tiny)
