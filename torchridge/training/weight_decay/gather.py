"""Decisions about parameters, gathered into the groups of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchridge import _check
from torchridge.training.parameters.decisions import Decision


def gathered(decisions: Sequence[Decision], lr: float | None, param_names: bool) -> list[dict[str, Any]]:
    """Gather decisions into plain dicts, in an order that depends on the decisions alone."""
    base = None if lr is None else _check.number(lr, "lr")
    scaled = any(decision.lr_scale != 1.0 for decision in decisions)
    if scaled and base is None:
        raise ValueError(
            "`lr` is needed to scale learning rates by `layer_decay` or `lr_scale`, got None. "
            "Pass the base learning rate that you give to the optimizer."
        )
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for d in sorted(decisions, key=_group_key):
        group = groups.setdefault(_group_key(d), {"params": [], "weight_decay": d.weight_decay, "name": d.group})
        group["params"].append(d.judgement.parameter)
        if param_names:
            group.setdefault("param_names", []).append(d.judgement.name)
        if base is not None:
            group["lr"] = base * d.lr_scale
        if scaled:
            group["lr_scale"] = d.lr_scale
    return list(groups.values())


def _group_key(decision: Decision) -> tuple[Any, ...]:
    return (decision.layer or 0, decision.lr_scale, not decision.decay, decision.weight_decay)
