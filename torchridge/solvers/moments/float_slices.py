"""Products of rows in float32 units that are right to more than float32: fixed-point slices, summed in float64.

Every column is scaled by a power of two to at most one and cut into slices of 8 bits, whole numbers of at most 128. A
product of two slices over 1024 rows is a whole number of at most 2²⁴: float32 holds every partial sum of it exactly, in
any order. Only what lies behind the last slice is lost.

Source: Ozaki, Ogita, Oishi & Rump 2012, doi:10.1007/s11075-011-9478-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

# |q| ≤ 2⁷, so that 2¹⁰ products of two stay within the 24 bits of float32.
_ROWS = 2**10


def gram(z: Tensor, count: int) -> Tensor:
    """Return zᵀ z in float64, (d, d) and exactly symmetric, from `count` slices of z (n, d).

    The entries are right to about 2^(−8 count) of the columns' largest values.

    Cost: 5 products in float32 for 3 slices, 8 for 4.
    """
    total = torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64, device=z.device)
    for part in torch.split(z, _ROWS):
        scale = _scale(part)
        sums = torch.zeros_like(total)
        pieces = slices(part.to(torch.float64) / scale, count)
        for i, a in enumerate(pieces):
            for j in range(i, min(count, count - i + 1)):  # the others lie behind the last slice
                product = (a.T @ pieces[j]).to(torch.float64) * 2.0 ** -(14 + 8 * (i + j))
                sums += product if i == j else product + product.T
        total += sums * (scale[:, None] * scale)
    return total


def slices(scaled: Tensor, count: int) -> list[Tensor]:
    """Return whole numbers q of at most 128 in float32, with scaled ≈ Σ_i q_i 2^−(7 + 8 i)."""
    rest, pieces = scaled * 2.0**7, []
    for _ in range(count):
        whole = rest.round()
        pieces.append(whole.to(torch.float32))
        rest = (rest - whole) * 2.0**8
    return pieces


def _scale(part: Tensor) -> Tensor:
    """Return for each column the power of two that is no less than its largest value, and one for zeros."""
    largest = part.abs().amax(0).to(torch.float64)
    return torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest))), torch.ones_like(largest))
