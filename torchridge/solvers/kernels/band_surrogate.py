"""Which proportions of bands to try next: a Gaussian process over those that were tried, one for all targets.

With P the tried proportions (c, B) and Z the losses of t targets there, each brought to mean zero and unit deviation,
the losses elsewhere are predicted with one kernel for all targets, so that a factorization of c × c serves them all.
The next to try is that of greatest expected improvement (Jones, Schonlau & Welch 1998, doi:10.1023/A:1008306431147),
summed over targets in units of their own losses; several are picked at once as if the predictions were found there.
Only targets that may lose less there take part; of the others the predictions stand in. All on the host.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Length of the kernel between square roots of proportions, the share of noise, and targets that say what is tried next.
_LENGTH, _NOISE, _SAMPLE = 0.7, 1e-4, 250

# A target takes part if its predicted loss less so many deviations is under its least.
_HOPE = 3.0

# Proportions drawn to choose from, of two concentrations of Dirichlet's distribution, and near each tried one.
_DRAWN, _CONCENTRATIONS, _NEAR = 400, (1.0, 0.4), 8


def first_shares(B: int, count: int, least: float) -> Tensor:
    """Return proportions to begin with, (≤ count, B): equal ones, each band alone, and each left out."""
    alone = (1 - least) * torch.eye(B, dtype=torch.float64) + least
    without = [1 + least - alone] if 2 < B <= count // 4 else []
    shares = torch.cat([torch.ones(1, B, dtype=torch.float64), alone, *without])[:count]
    return shares / shares.sum(1, keepdim=True)


class Picked(NamedTuple):
    """Proportions to try, and what is expected there."""

    shares: Tensor  # (q, B)
    losses: Tensor  # (q, t)
    hopeful: Tensor  # (q, t) whether a target may lose less there than so far


def next_shares(tried: Tensor, losses: Tensor, count: int, least: float, generator: torch.Generator) -> Picked:
    """Return `count` more proportions to try, after losses (c, t) of `tried` (c, B). Cost O(c t)."""
    pool, tiny = _pool(tried, least, generator), torch.finfo(losses.dtype).tiny
    center, spread = losses.mean(0), losses.std(0, correction=0)
    z, lowest = (losses - center) / spread.clamp_min(tiny), losses.amin(0)
    sample = slice(None, None, max(1, losses.shape[1] // _SAMPLE))
    unit = (spread / center.clamp_min(tiny))[sample]
    chosen, expected, hopeful = [], [], []
    for _ in range(count):
        gain = _process(tried, z[:, sample], pool).gain(z[:, sample].amin(0))
        best = pool[(gain @ unit).argmax()][None]
        there = _process(tried, z, best)
        loss = there.mean * spread + center
        hopeful.append((loss - _HOPE * there.deviation * spread < lowest) & (spread > 0))
        expected.append(torch.maximum(loss, lowest))
        chosen.append(best)
        tried, z = torch.cat([tried, best]), torch.cat([z, there.mean])
    return Picked(torch.cat(chosen), torch.cat(expected), torch.cat(hopeful))


def _pool(tried: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Return proportions to choose from, none less than about `least`."""
    B = tried.shape[1]
    drawn = [_gamma(concentration, (_DRAWN, B), generator) for concentration in _CONCENTRATIONS]
    near = torch.randn(_NEAR, *tried.shape, dtype=torch.float64, generator=generator).mul_(0.7).exp_() * tried
    pool = torch.cat([*drawn, near.flatten(0, 1)])
    pool = pool / pool.sum(1, keepdim=True) + least
    return pool / pool.sum(1, keepdim=True)


def _gamma(concentration: float, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    found: Tensor = torch._standard_gamma(torch.full(shape, concentration, dtype=torch.float64), generator=generator)
    return found.clamp_min(torch.finfo(found.dtype).tiny)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return Matérn's kernel of smoothness 5/2."""
    apart = math.sqrt(5) * torch.cdist(a.sqrt(), b.sqrt()) / _LENGTH
    found: Tensor = (1 + apart + apart * apart / 3) * torch.exp(-apart)
    return found


class _Predicted(NamedTuple):
    mean: Tensor  # (p, t)
    deviation: Tensor  # (p, t)

    def gain(self, lowest: Tensor) -> Tensor:
        """Return the expected improvement on losses (t,)."""
        ahead = (lowest - self.mean) / self.deviation
        density = torch.exp(-ahead * ahead / 2) / math.sqrt(2 * math.pi)
        below: Tensor = torch.special.ndtr(ahead)
        return self.deviation * (ahead * below + density)


def _process(tried: Tensor, z: Tensor, pool: Tensor) -> _Predicted:
    """Predict losses at `pool` (p, B) from those of `tried`, (c, t)."""
    own = _kernel(tried, tried)
    own.diagonal().add_(_NOISE)
    lower = torch.linalg.cholesky(own)
    weight, across = torch.cholesky_solve(z, lower), _kernel(pool, tried)
    unexplained = 1 - torch.linalg.solve_triangular(lower, across.T, upper=False).square().sum(0)
    scale = (z * weight).mean(0).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
    return _Predicted(across @ weight, unexplained.clamp_min(_NOISE**2).sqrt()[:, None] * scale)
