"""Weight decay that changes over training, apart from the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from torchridge import _check
from torchridge.training.decoupled import KEY


class ConstantWeightDecay:
    """Keep the weight decay of each group at its initial value, whatever the learning rate does.

    Torch's decoupled optimizers shrink weights by lr · weight_decay a step, so a learning-rate schedule is one of the
    decay too. With `independent_of_lr` the group's weight decay is divided by lr / initial lr, and the shrinkage of a
    step is initial lr · weight_decay throughout (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, §2).

    Groups whose initial weight decay is 0 stay there. The base of the other schedules: subclass it with `factor`.

    Args:
        optimizer: The optimizer; if :class:`~torchridge.training.decoupled.DecoupledWeightDecay` took its decay over,
            that is what is scheduled, in place in its tensor.
        independent_of_lr: Undo what the learning-rate schedule does to the decay. Then call `step` after the
            learning-rate scheduler's.

    Raises:
        TypeError: If `optimizer` is not an optimizer.
        ValueError: On a step with learning rate 0, which no weight decay can make up for, if `independent_of_lr`.

    Cost: one multiplication a group and step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.5, weight_decay=0.4)
        >>> schedule = ConstantWeightDecay(optimizer, independent_of_lr=True)
        >>> optimizer.param_groups[0]["lr"] = 0.25
        >>> schedule.step()
        >>> optimizer.param_groups[0]["weight_decay"]
        0.8
    """

    def __init__(self, optimizer: Optimizer, *, independent_of_lr: bool = False) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        self.optimizer = optimizer
        self.independent_of_lr = independent_of_lr
        self.last_step = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_weight_decay", get_weight_decay(group))
            group.setdefault("initial_lr", float(group["lr"]))
        self._apply()

    def factor(self, step: int) -> float:
        """What the initial weight decay is multiplied by at a step."""
        return 1.0

    def step(self) -> None:
        """Go on by one step, after `optimizer.step()`."""
        self.last_step += 1
        self._apply()

    def get_last_weight_decay(self) -> list[float]:
        """The weight decay of each group now."""
        return [get_weight_decay(group) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to resume."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume at a saved step; load the optimizer's first.

        Raises:
            ValueError: If the step is no integer of at least 0.
            KeyError: If the state holds none.
        """
        self.last_step = _check.integer(state_dict["last_step"], "state_dict['last_step']", minimum=0)
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.last_step)
        values = [group["initial_weight_decay"] * factor for group in self.optimizer.param_groups]
        if self.independent_of_lr:
            values = [
                self._compensated(value, group)
                for value, group in zip(values, self.optimizer.param_groups, strict=True)
            ]
        for group, value in zip(self.optimizer.param_groups, values, strict=True):
            set_weight_decay(group, value)

    def _compensated(self, value: float, group: Mapping[str, Any]) -> float:
        lr = float(group["lr"])
        if value == 0.0:
            return 0.0
        if lr == 0.0:
            raise ValueError(
                "`lr` is 0, at which no weight decay shrinks anything, got `independent_of_lr=True`. Start the warmup "
                "above 0, or apply the decay by `DecoupledWeightDecay(optimizer, independent_of_lr=True)`."
            )
        return float(value * group["initial_lr"] / lr)


class CosineWeightDecay(ConstantWeightDecay):
    """Move the weight decay from its initial value to `end_factor` times it along half a cosine.

    At step t of T: initial · (end_factor + (1 − end_factor) · (1 + cos(πt/T)) / 2), then it stays. DINO
    (https://arxiv.org/abs/2104.14294) goes up, from 0.04 with `end_factor=10`.

    Args:
        optimizer: As for :class:`ConstantWeightDecay`.
        total_steps: T, in calls of `step`.
        end_factor: The last value over the initial one.
        independent_of_lr: As for :class:`ConstantWeightDecay`.

    Raises:
        TypeError: If `optimizer` is not an optimizer.
        ValueError: If `total_steps` is not a positive integer, or `end_factor` negative or not finite.

    Cost: one cosine, and one multiplication a group, a step.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], weight_decay=0.4)
        >>> schedule = CosineWeightDecay(optimizer, total_steps=2, end_factor=0.5)
        >>> for _ in range(3):
        ...     print(round(optimizer.param_groups[0]["weight_decay"], 3))
        ...     optimizer.step()
        ...     schedule.step()
        0.4
        0.3
        0.2
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, *, end_factor: float = 0.0, independent_of_lr: bool = False
    ) -> None:
        self.total_steps = _check.integer(total_steps, "total_steps", minimum=1)
        self.end_factor = _check.number(end_factor, "end_factor")
        super().__init__(optimizer, independent_of_lr=independent_of_lr)

    def factor(self, step: int) -> float:
        """The half cosine."""
        phase = math.pi * min(step, self.total_steps) / self.total_steps
        return self.end_factor + (1 - self.end_factor) * (1 + math.cos(phase)) / 2


def get_weight_decay(group: Mapping[str, Any]) -> float:
    """The strength of a parameter group, wherever it is applied."""
    return float(strength_of(group))


def strength_of(group: Mapping[str, Any]) -> Tensor | float:
    """The strength of a parameter group as it is kept, on its device where it is a tensor."""
    strength: Tensor | float = group.get(KEY, group.get("weight_decay", 0.0))
    return strength


def set_weight_decay(group: dict[str, Any], value: float) -> None:
    """Change the strength of a parameter group, in place where it is a tensor."""
    key = KEY if KEY in group else "weight_decay"
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)
    else:
        group[key] = value
