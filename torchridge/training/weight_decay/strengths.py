"""How strongly a parameter group is decayed and at which learning rate, wherever that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

KEY = "weight_decay_tensor"


def get_weight_decay(group: Mapping[str, Any]) -> float:
    """The strength of a parameter group, wherever it is applied."""
    return float(strength_of(group))


def strength_of(group: Mapping[str, Any]) -> Tensor | float:
    """The strength of a parameter group as it is kept, on its device if it is a tensor."""
    strength: Tensor | float = group[KEY if is_taken_over(group) else "weight_decay"] if has_strength(group) else 0.0
    return strength


def set_weight_decay(group: dict[str, Any], value: float) -> None:
    """Change the strength of a parameter group, in place if it is a tensor."""
    key = KEY if is_taken_over(group) else "weight_decay"
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def has_strength(group: Mapping[str, Any]) -> bool:
    """Whether the group has a weight decay at all, be it 0."""
    return KEY in group or "weight_decay" in group


def is_taken_over(group: Mapping[str, Any]) -> bool:
    """Whether `DecoupledWeightDecay` decays the group; not if its key only came with a loaded state."""
    own = group.get("weight_decay", 0.0)
    return KEY in group and not isinstance(own, Tensor) and own == 0.0


def strength_tensor(group: Mapping[str, Any], strength: float | Tensor) -> Tensor:
    """A strength as a 0-d tensor on the device of the group."""
    first: Tensor = group["params"][0]
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    return torch.as_tensor(strength, dtype=dtype, device=first.device).clone()


def given_lr(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """The learning rate that the optimizer was given for a group, before any scheduler.

    Schedulers keep it in `initial_lr`; but `OneCycleLR` and `CyclicLR` put their own there, and leave their other keys.
    """
    given = optimizer.defaults.get("lr")
    overwritten = "initial_lr" in group and ("max_lr" in group or "base_momentum" in group)
    if overwritten and given is not None:
        return float(given) * float(group.get("lr_scale", 1.0))
    return float(group.get("initial_lr", group["lr"]))
