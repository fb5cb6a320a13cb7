"""Effective degrees of freedom from random probes, with the Nyström approximation as a control variate.

tr G (G + α)⁻¹ is the trace of the approximation's own, which is known, and the mean of what it leaves over random
signs ω. The better it approximates, the less is left to chance. Sources: Hutchinson 1990,
doi:10.1080/03610919008812866; Persson, Cortinovis & Kressner 2022, arXiv:2109.10659.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.iterative import conjugate_gradients, shifted, sparse_ridge
from torchridge.solvers.iterative.nystrom import Nystrom
from torchridge.solvers.iterative.solve_many import Columns, Rule, blocks, norm, ratio, system_of
from torchridge.solvers.iterative.standard_form import Design

PROBES = 16

# ωᵀ z is off by the square of its residual.
_LOOSE = 1e-6


class Trace(NamedTuple):
    """An estimate, and its standard error."""

    value: Tensor  # (L,)
    error: Tensor  # (L,)
    residual: Tensor  # relative, of every probe's solve
    steps: Tensor


def degrees_of_freedom(form: Design, approximation: Nystrom, alpha: Tensor, rule: Rule) -> Trace:
    """Return tr G (G + α)⁻¹ at strengths α (L,) > 0. Cost: the solves of 16 right-hand sides a strength."""
    m, device, strengths = form.size(form.dual), form.X.device, len(alpha)
    generator = torch.Generator(device).manual_seed(1)
    signs = torch.randint(0, 2, (m, PROBES), generator=generator, device=device).double() * 2 - 1
    zero = torch.zeros(strengths * PROBES, dtype=torch.int64, device=device)
    columns = Columns(zero, alpha.repeat_interleave(PROBES), torch.arange(PROBES, device=device).repeat(strengths))
    shared = _shared(form, signs, alpha, rule)
    if shared is not None:
        samples = m - alpha[:, None] * (signs * shared.solution).sum(1)
        count = torch.full((strengths * PROBES,), shared.steps, device=device)
        return Trace(*_corrected(samples, signs, approximation, alpha), shared.error.reshape(-1), count)
    products, residual, steps = [], [], []
    for some in blocks(form, columns):
        part = columns.at(some)
        solved = _solve(form, approximation, signs[:, part.target], part, rule)
        products.append((signs[:, part.target] * solved.solution).sum(0))
        residual.append(solved.error)
        steps.append(solved.steps)
    samples = m - alpha[:, None] * torch.cat(products).reshape(strengths, PROBES)
    return Trace(*_corrected(samples, signs, approximation, alpha), torch.cat(residual), torch.cat(steps))


def _shared(form: Design, signs: Tensor, alpha: Tensor, rule: Rule) -> shifted.Solved | None:
    """Return the solves of probes of a sparse matrix, whose strengths share all products; None if these take long."""
    if not sparse_ridge.applies(form.X, form, False):
        return None
    most, tol = sparse_ridge.patience(rule, len(alpha)), tolerance(rule)
    solved = shifted.solve(sparse_ridge.product_of(form), signs, alpha, tol, most)
    return solved if bool((solved.error <= tol).all()) else None


def tolerance(rule: Rule) -> float:
    """Return the relative residual that the probes are solved to."""
    return max(rule.tol, _LOOSE)


def _solve(
    form: Design, approximation: Nystrom, rhs: Tensor, columns: Columns, rule: Rule
) -> conjugate_gradients.Solved:
    share = torch.ones(1, dtype=torch.float64, device=rhs.device)
    system, size, tol = system_of(form, approximation, share, columns), norm(rhs), tolerance(rule)

    def measure(z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        residual = rhs[:, at] - system.product(z, at) - columns.alpha[at] * z
        return residual, ratio(norm(residual), size[at])

    return conjugate_gradients.solve(system, rhs, measure, tol, rule.max_iter, 0.9 * tol * size)


def _corrected(samples: Tensor, signs: Tensor, approximation: Nystrom, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of samples (L, probes) and its standard error, both corrected by the approximation."""
    vectors, eigvals = approximation
    inner = (vectors.T @ signs.to(vectors.dtype)).double() ** 2  # (k, probes)
    shrunk = eigvals / (eigvals + alpha[:, None])  # (L, k)
    left = samples - (shrunk @ inner)
    # The eigenvalues beyond the rank may be shrunk by one more constant: its coefficient is fitted, its mean is zero.
    spread = inner.sum(0) - approximation.rank
    if approximation.rank and bool((size := (spread**2).sum()) > 0):
        left = left - ((left - left.mean(1, keepdim=True)) @ spread / size)[:, None] * spread
    error = ((left - left.mean(1, keepdim=True)) ** 2).sum(1) / (PROBES - 2)
    return shrunk.sum(1) + left.mean(1), (error / PROBES).sqrt()
