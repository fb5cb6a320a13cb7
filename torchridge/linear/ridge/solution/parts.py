"""Parts of a solution: some of its targets, or one strength of a path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchridge import _check
from torchridge.linear.ridge.solution.dual_solution import weight_of

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution


def of_targets(solution: RidgeSolution, targets: Any) -> RidgeSolution:
    """Return the solution of some targets: a slice, or their numbers or a mask."""
    if solution.vector_target or len(solution.shape) != 2 + solution.is_path:
        raise ValueError(f"there are no targets to choose from: the weights have shape {solution.shape}.")
    part = targets if isinstance(targets, slice) else torch.as_tensor(targets, device=solution.bias.device)
    per_target = solution.alpha.ndim == 1 and not solution.is_path
    changes: dict[str, Any] = {"alpha": solution.alpha[part]} if per_target else {}
    for name in ("scores", "fold_scores", "dead_targets", "score_errors", "residual", "converged"):
        value = getattr(solution, name)
        changes[name] = None if value is None else value[..., part]
    if solution.best_score is not None and solution.best_score.ndim:
        changes["best_score"] = solution.best_score[part]
    diagnosis = solution.diagnosis.map(
        residual_variance=lambda v: v[..., part],
        **({"dof": lambda v: v[part], "unit_variance": lambda v: v[part]} if per_target else {}),
    )
    diagnosis = diagnosis.extended(**{n: late.of_targets(part) for n, late in solution.diagnosis.late.items()})
    chosen = solution.with_changes(bias=solution.bias[..., part], diagnosis=diagnosis, **changes)
    if solution.dual is None:
        return chosen.with_changes(weight=solution.weight[..., part, :])
    dual = solution.dual.of_targets(part)
    return chosen.with_changes(dual=dual, weight=weight_of(dual, solution.is_path))


def at(solution: RidgeSolution, index: int) -> RidgeSolution:
    """Return one strength of a path; a negative `index` counts from the last."""
    if not solution.is_path:
        raise ValueError(f"this solution has one strength, got `index`={index}; `at` picks from a path.")
    _check.position(index, solution.alpha.shape[-1], "index", "strengths")
    dual = None if solution.dual is None else solution.dual.at(index)
    return solution.with_changes(
        dual=dual,
        weight=solution.weight[..., index, :, :] if dual is None else weight_of(dual, False),
        bias=solution.bias[..., index, :],
        alpha=solution.alpha[..., index],
        diagnosis=solution.diagnosis.map(
            dof=lambda dof: dof[..., index],
            residual_variance=lambda variance: variance[..., index, :],
            unit_variance=lambda unit: None if unit is None else unit[..., index, :],
        ),
        residual=None if solution.residual is None else solution.residual[..., index, :],
        converged=None if solution.converged is None else solution.converged[..., index, :],
        is_path=False,
    )
