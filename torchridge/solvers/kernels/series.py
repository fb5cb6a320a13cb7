"""Solutions of shifted systems by Chebyshev series: a few products with the matrix, if its condition is small.

For eigenvalues in [a, b] = c ± h and z = (c + α) / h, ρ = z + √(z² − 1),

    1 / (s + α) = 1 / (h √(z² − 1)) · (1 + 2 Σ_k (−1/ρ)^k T_k((s − c) / h)),

so that the products T_k of the matrix with the right-hand sides serve every α, and m of them leave ρ^{−m}. Source:
Mason & Handscomb 2003, Chebyshev Polynomials, section 5.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# What the series may leave out of a solution.
_LEFT_OUT = 1e-9


def terms(low: float, top: float, weakest: float) -> int:
    """Return how many products a series takes for eigenvalues from `low` to `top`, at the weakest strength."""
    half = max((top - low) / 2, 1e-12 * top)
    z = ((top + low) / 2 + weakest) / half
    return 1 + math.ceil(-math.log(_LEFT_OUT) / math.acosh(z))


def solved(matrix: Tensor, right: Tensor, alpha: Tensor, low: float, top: float) -> Tensor:
    """Return right (matrix + α)⁻¹, (r, f, n), for rows `right` (f, n) and strengths (r,).

    The rows lie in a space that the matrix (n, n) maps into itself, with eigenvalues from `low` to `top` there.
    Cost n² f for each term; memory terms · f · n numbers.
    """
    count, middle, half = terms(low, top, float(alpha.min())), (top + low) / 2, max((top - low) / 2, 1e-12 * top)
    powers = right.new_empty(count, *right.shape)
    powers[0] = right
    for k in range(1, count):
        before = powers[k - 1]
        torch.mm(before, matrix, out=powers[k])
        powers[k].sub_(before, alpha=middle).mul_((1 if k == 1 else 2) / half)
        if k > 1:
            powers[k] -= powers[k - 2]
    z = (middle + alpha) / half
    root = (z * z - 1).sqrt()
    degree = torch.arange(count, dtype=alpha.dtype, device=alpha.device)
    factors = 2 * (-1 / (z + root))[:, None] ** degree / (half * root)[:, None]  # (r, m)
    factors[:, 0] /= 2
    return (factors @ powers.flatten(1)).view(len(alpha), *right.shape)
