"""What the trainers share: attach regularizers, penalize the step of every optimizer that trains some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torchridge.exceptions import install
from torchridge.training.penalties.attach import regularize
from torchridge.training.penalties.regularizers import L2
from torchridge.training.penalties.step import StepPenalty, Unused, penalize_step
from torchridge.training.penalties.weights import parameters_of


def attach(model: nn.Module, regularizer: Any, options: dict[str, Any]) -> None:
    """Attach a regularizer, a number λ meaning `L2(λ)`, or only `rules`; nothing if there is none of either."""
    if isinstance(regularizer, (int, float)) and not isinstance(regularizer, bool):
        regularizer = L2(regularizer)
    if regularizer is not None or options.get("rules"):
        regularize(model, regularizer, **options)


def penalize_steps(optimizers: Sequence[Any], model: nn.Module, unused: Unused) -> list[StepPenalty]:
    """Penalize the steps of all optimizers that hold regularized parameters.

    Raises:
        ValueError: If there are none, as :func:`~torchridge.training.penalties.step.penalize_step`.
    """
    penalized = parameters_of(model)
    holding = [o for o in optimizers if not penalized.isdisjoint(_parameters(o))]
    return [penalize_step(optimizer, model, unused=unused) for optimizer in holding or list(optimizers)[:1]]


def _parameters(optimizer: Any) -> set[torch.Tensor]:
    return {p for group in optimizer.param_groups for p in group["params"]}


def missing(framework: str) -> ImportError:
    """Return the error for a framework that is not installed."""
    return ImportError(
        f"{framework} is not installed; expected it for torchridge.integrations. {install(framework, 'integrations')}"
    )
