"""Weight decay that changes over training, apart from the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from torchridge import _check
from torchridge.training.hooks import StepHook, holds_optimizer, innermost, installed, steppable
from torchridge.training.weight_decay.strengths import KEY, get_weight_decay, given_lr, set_weight_decay


class ConstantWeightDecay(StepHook):
    """Keep the weight decay of each group at its initial value, whatever the learning rate does.

    Torch's decoupled optimizers shrink weights by lr · weight_decay a step, so a learning-rate schedule is one of the
    decay too. With `independent_of_lr` the group's weight decay is divided by lr / initial lr, and the shrinkage of a
    step is initial lr · weight_decay throughout (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, §2).

    It is divided just before each step of the optimizer, so it does not matter which schedule was made or steps first.
    The initial learning rate is the one that the optimizer was given, also under `OneCycleLR` and `CyclicLR`.

    Groups whose initial weight decay is 0 stay there. The initial values are kept here and in `state_dict`, so that
    loading the optimizer's state does not change them; a group that was added later starts with its own. The base of
    the other schedules: subclass it with `factor`.

    Args:
        optimizer: The optimizer, or what wraps it; if
            :class:`~torchridge.training.weight_decay.decoupled.DecoupledWeightDecay` took its decay over, that is
            what is scheduled, in place in its tensor.
        independent_of_lr: Undo what the learning-rate schedule does to the decay.

    Raises:
        TypeError: If `optimizer` is not an optimizer.
        ValueError: If `independent_of_lr`: at a learning rate of 0, which no weight decay can make up for, and for an
            optimizer whose step would never call a hook.

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
        if not holds_optimizer(optimizer):
            raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        self.optimizer = steppable(optimizer) if independent_of_lr else innermost(optimizer)
        self.independent_of_lr = independent_of_lr
        self.last_step = 0
        self.base_weight_decays: list[float] = []
        self._given_lrs: list[float] = []
        self._apply()
        if independent_of_lr:
            self.attach(self.optimizer, first=True)  # what decays by the strength has to find it made up for

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
        return {"last_step": self.last_step, "base_weight_decays": list(self.base_weight_decays)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume at a saved step, from the saved initial values.

        Raises:
            ValueError: If the step is not an integer of at least 0, or the values are not one for each group.
            KeyError: If the state holds no step.
        """
        step = _check.integer(state_dict["last_step"], "state_dict['last_step']", minimum=0)
        bases = list(state_dict.get("base_weight_decays", self.base_weight_decays))
        if len(bases) > len(self.optimizer.param_groups):
            raise ValueError(
                f"`state_dict` has {len(bases)} initial weight decays, but the optimizer has "
                f"{len(self.optimizer.param_groups)} groups; expected one for each. Build the optimizer as it was "
                f"saved."
            )
        self.last_step = step
        self.base_weight_decays[: len(bases)] = bases
        self._apply()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make up for the learning rate that this step is taken at."""
        self._apply()

    def _apply(self) -> None:
        self._drop_left_over()
        groups = self.optimizer.param_groups
        for group in groups[len(self.base_weight_decays) :]:
            self.base_weight_decays.append(group.setdefault("initial_weight_decay", get_weight_decay(group)))
        for group in groups[len(self._given_lrs) :]:
            self._given_lrs.append(given_lr(self.optimizer, group))
        factor = self.factor(self.last_step)
        values = [base * factor for base in self.base_weight_decays]
        if self.independent_of_lr:
            triples = zip(values, groups, self._given_lrs, strict=True)
            values = [self._compensated(value, group, given) for value, group, given in triples]
        for group, value in zip(groups, values, strict=True):
            set_weight_decay(group, value)

    def _drop_left_over(self) -> None:
        """Drop the tensors that came with the state of an optimizer under `DecoupledWeightDecay` if this one is not."""
        if not any(hook.holds_decay for hook in installed(self.optimizer, StepHook)):
            for group in self.optimizer.param_groups:
                if KEY in group:
                    group["weight_decay"] = float(group.pop(KEY))

    def _compensated(self, value: float, group: Mapping[str, Any], given: float) -> float:
        lr = float(group["lr"])
        if value == 0.0:
            return 0.0
        if lr == 0.0:
            raise ValueError(
                "`lr` is 0, at which no weight decay shrinks anything, got `independent_of_lr=True`. Start the warmup "
                "above 0, or apply the decay by `DecoupledWeightDecay(optimizer, independent_of_lr=True)`."
            )
        return value * given / lr


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
