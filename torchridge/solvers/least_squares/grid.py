"""Strengths to try: from the eigenvalues of the data, and finer around the best of them. Grids live on the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchridge.solvers.least_squares.spectral import bare_summary


def coarse_grid(eigvals: Tensor, size: int = 50) -> Tensor:
    """Return strengths that span what the data can tell apart, log-spaced and ascending.

    Scale-free: from a thousandth of the smallest eigenvalue above rounding, if nothing is shrunk, to a hundred times
    the largest, if everything is.
    """
    found = bare_summary(eigvals)
    if not found.kept:
        return torch.logspace(-3, 3, size, dtype=torch.float64)
    low, high = max(found.least * 1e-3, found.top * 1e-10), 100 * found.top
    return torch.logspace(math.log10(low), math.log10(high), size, dtype=torch.float64)


def coarse_grid_by_norm(top: float, size: int = 11) -> Tensor:
    """Return strengths that span five decades up to ten times the largest eigenvalue, ascending.

    Weaker ones cost conjugate gradients the more steps, and the eigenvalues down there are not known.
    """
    return (top if top > 0 else 1.0) * torch.logspace(-4, 1, size, dtype=torch.float64)


def finer_grid(grid: Tensor, best: Tensor, cells: int = 16) -> Tensor:
    """Return strengths inside the two cells of an ascending grid next to each of the best indices."""
    centers = torch.unique(best)
    edges = torch.unique(torch.cat([centers - 1, centers]).clamp(0, grid.shape[0] - 2))
    inner = torch.arange(1, cells, dtype=grid.dtype) / cells
    low, high = grid[edges].log()[:, None], grid[edges + 1].log()[:, None]
    points: Tensor = (low + (high - low) * inner).exp()
    return points.reshape(-1)
