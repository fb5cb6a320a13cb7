"""A solution as text, and as a layer of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from torchridge.linear import printing

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution


def text(solution: RidgeSolution) -> str:
    """Return shapes and the figures that are known, in a few lines."""
    known = solution.diagnosis.known
    return printing.listed(
        f"RidgeSolution{' (path)' if solution.is_path else ''}",
        {
            "weight": printing.shaped(solution.weight)
            if solution.dual is None
            else f"{solution.shape}, made when read",
            "bias": printing.shaped(solution.bias) if solution.fit_intercept else "none",
            "alpha": printing.figures(solution.alpha),
            "score": printing.chosen_by(solution.alphas, solution.fold_scores, solution.best_score, solution.scoring),
            "dof": printing.figures(torch.as_tensor(known["dof"])) if "dof" in known else None,
            "condition": f"{known['condition']:.3g}" if isinstance(known.get("condition"), float) else None,
            "n_samples": str(solution.n_samples),
            "converged": printing.count_true(solution.converged),
            "solver": f"{solution.solver}: {solution.reason}",
        },
    )


def as_linear(solution: RidgeSolution) -> nn.Linear:
    """Return a layer that computes `predict`."""
    if solution.weight.ndim != 2:
        raise ValueError(
            f"a single layer holds one problem at one strength, got weights of shape {tuple(solution.weight.shape)}. "
            f"Pick one, e.g. `path.at(0).to_linear()`."
        )
    t, d = solution.weight.shape
    layer = nn.Linear(d, t, bias=solution.fit_intercept, device=solution.weight.device, dtype=solution.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(solution.weight)
        if solution.fit_intercept:
            layer.bias.copy_(solution.bias)
    return layer
