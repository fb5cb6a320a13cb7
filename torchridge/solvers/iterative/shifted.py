"""Conjugate gradients for many strengths at once: the Krylov space of the weakest one solves all the others too.

The spaces of (G + α) x = b and (G + α') x = b are the same, and their residuals are multiples of each other. So every
strength α_l = α + σ_l follows the steps a_k, b_k of the weakest: with q_l the shrinkage of its residual in a step,

    1 / q_l = 1 + σ_l a_k + (1 − q_l') a_k b_{k−1} / a_{k−1},      x_l += q_l a_k p_l,      p_l = r_l + q_l² b_k p_l.

A step takes one product for all strengths, and each strength that still moves two passes over its vectors. Sources:
Frommer & Maass 1999, doi:10.1137/S1064827596313310; Jegerlehner 1996, arXiv:hep-lat/9612014.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers that the two vectors of all strengths may take (256 MiB): targets are solved in runs.
_NUMBERS = 2**25

# The share of the tolerance at which the recurrence stops, as the residual proper may be a little larger.
_MARGIN = 0.5

Product = Callable[[Tensor], Tensor]


class Solved(NamedTuple):
    """Solutions at L strengths."""

    solution: Tensor  # (L, m, t)
    error: (
        Tensor  # (L, t) relative residuals: by recurrence, but at least what a product says of all strengths together
    )
    steps: int


def solve(product: Product, rhs: Tensor, alphas: Tensor, tol: float, max_iter: int) -> Solved:
    """Solve (G + α) X = B for B (m, t) at strengths (L,) above zero, `product` taking v to G v.

    Cost: a product in t columns for each step that the weakest strength takes, and about 6·m·t numbers passed for each
    strength that has not converged. Memory: 2·L·m·t numbers, in runs of targets if that is over 256 MiB.
    """
    values, order = alphas.sort()
    parts = [_run(product, rhs[:, part].contiguous(), values, tol, max_iter) for part in _runs(rhs, len(alphas))]
    back = order.argsort()
    solution = torch.cat([p.solution for p in parts], 2) if len(parts) > 1 else parts[0].solution
    error = torch.cat([p.error for p in parts], 1)
    return Solved(solution[back], error[back], max(p.steps for p in parts))


def _runs(rhs: Tensor, strengths: int) -> Iterator[slice]:
    m, t = rhs.shape
    size = max(1, _NUMBERS // max(1, 2 * strengths * m))
    return (slice(i, min(i + size, t)) for i in range(0, t, size))


def _run(product: Product, rhs: Tensor, alphas: Tensor, tol: float, max_iter: int) -> Solved:
    size = torch.linalg.vector_norm(rhs, dim=0)
    target = _MARGIN * tol * size
    shift = (alphas - alphas[0])[:, None]  # (L, 1), the weakest first
    x = rhs.new_zeros(len(alphas), *rhs.shape)
    p, r, energy = rhs.expand_as(x).clone(), rhs.clone(), size.square()
    shrunk, q = torch.ones_like(x[:, 0]), torch.ones_like(x[:, 0])  # (L, t) of all steps, and of the last
    before, growth = torch.ones_like(size), torch.zeros_like(size)  # a and b of the last step
    moving = len(alphas)
    for steps in range(max_iter + 1):
        left = shrunk * energy.sqrt()
        behind = (left[:moving] > target).any(1).nonzero()
        moving = int(behind[-1]) + 1 if len(behind) else 0
        if not moving or steps == max_iter:
            break
        image = product(p[0]).add_(p[0] * alphas[0])
        curvature = (p[0] * image).sum(0)
        a = torch.where(curvature > 0, energy / curvature, 0)
        some = slice(0, moving)
        q[some] = 1 / (1 + shift[some] * a + (1 - q[some]) * (a * growth / before))
        x[some].addcmul_(p[some], (q[some] * a)[:, None])
        shrunk[some] *= q[some]
        r.addcmul_(image, -a)
        new = r.square().sum(0)
        growth = torch.where(energy > 0, new / energy, 0)
        p[some].mul_((q[some].square() * growth)[:, None]).addcmul_(r, shrunk[some][:, None])
        before, energy = torch.where(a > 0, a, 1), new
    error = torch.where(size > 0, left / size.clamp_min(torch.finfo(size.dtype).tiny), 0)
    return Solved(x, torch.maximum(error, _checked(product, rhs, alphas, x, size)), steps)


def _checked(product: Product, rhs: Tensor, alphas: Tensor, x: Tensor, size: Tensor) -> Tensor:
    """Return the relative residual of a sum of all solutions with signs, (t,), which one product tells.

    If a residual is not what its recurrence says, neither is this sum, but by chance.
    """
    sign = torch.ones_like(alphas)
    sign[1::2] = -1
    together = torch.einsum("l,lmt->mt", sign, x)
    residual = rhs * sign.sum() - product(together) - torch.einsum("l,lmt->mt", sign * alphas, x)
    of = torch.linalg.vector_norm(residual, dim=0) / len(alphas) ** 0.5
    return torch.where(size > 0, of / size.clamp_min(torch.finfo(size.dtype).tiny), 0)
