"""L2 in numbers while a model trains: norms, decay, and how the penalty compares to the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from torchridge import _check
from torchridge.training.parameters.classify import Judgement, judge
from torchridge.training.penalties.attachment import carriers
from torchridge.training.penalties.regularizers import L1L2, L2
from torchridge.training.penalties.strengths import Strength
from torchridge.training.sums import sum_squares, whole
from torchridge.training.weight_decay.strengths import strength_of


class Writer(Protocol):
    """What a monitor writes to, e.g. `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Write one number."""
        ...


class _Watched(NamedTuple):
    name: str
    parameter: nn.Parameter
    group: dict[str, Any]


class L2Monitor:
    """Log L2 over training: call `step` once after `loss.backward()`, before the gradients are cleared.

    For each decayed weight w of a group with learning rate η and weight decay s, under an attached penalty λ‖w‖² (an
    `L2` or `L1L2` of `regularize`, `L2Linear` and the like; λ = 0 if there is none), and its gradient g:

    * `l2/weight_norm/{name}`: ‖w‖;
    * `l2/pull_to_gradient/{name}`: (s + 2λ) ‖w‖ / ‖g‖, how the pull of (s/2 + λ) ‖w‖² compares to the gradient; large
      values mean that the penalty decides. g is what `backward` left: if the penalty is in the loss, g contains
      λ's part of the pull, under `penalize_step` it does not.

    And over all of them `l2/total_norm`, for each group `l2/lr/{group}`, `l2/weight_decay/{group}` and
    `l2/lr_times_weight_decay/{group}`, the share that decoupled decay takes from a weight in one step; `l2/strength`,
    the s/2 + λ that all weights are under on average, weighted by w²; `loss`, `l2/penalty` and their ratio if they
    are given.

    Args:
        writer: Any object with `add_scalar(tag, value, step)`; histograms need `add_histogram` too.
        model: The model; its judgement names the weights.
        optimizer: The optimizer, for strengths and learning rates.
        every: Log at every n-th call of `step`.
        histograms_every: Write `l2/weight/{name}` and `l2/gradient/{name}` at every n-th call; None for never.

    Raises:
        TypeError: If `writer` has no `add_scalar`, or no `add_histogram` although histograms are asked for.
        ValueError: If an interval is not a positive integer, or no weight of the model is in the optimizer.

    Cost: one read of the weights and their gradients and one transfer to the host a logging step, besides histograms;
    nothing at the others. Under FSDP2 the norms are of the full weights, and all ranks have to call `step`.

    Example:
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, round(value, 3))
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> monitor = L2Monitor(Printer(), layer, torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5))
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> monitor.step()
        0 l2/weight_norm/weight 4.243
        0 l2/pull_to_gradient/weight 1.5
        0 l2/total_norm 4.243
        0 l2/strength 0.25
        0 l2/lr/group_0 0.1
        0 l2/weight_decay/group_0 0.5
        0 l2/lr_times_weight_decay/group_0 0.05
    """

    def __init__(
        self,
        writer: Writer,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        every: int = 1,
        histograms_every: int | None = None,
    ) -> None:
        _has(writer, "add_scalar")
        if histograms_every is not None:
            _has(writer, "add_histogram")
            _check.integer(histograms_every, "histograms_every", minimum=1)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        self.every = _check.integer(every, "every", minimum=1)
        self.histograms_every = histograms_every
        self.writer, self.optimizer = writer, optimizer
        self.last_step = -1
        self._model = model
        self._weights = [judgement for judgement in judge(model) if judgement.decay]
        if not self._watched():
            raise ValueError(
                "`optimizer` holds no weight of `model`; expected the parameters of this model. "
                "Build it on `weight_decay_groups(model, weight_decay)`."
            )

    def step(
        self, *, loss: Tensor | float | None = None, penalty: Tensor | float | None = None, step: int | None = None
    ) -> None:
        """Log, if it is the turn of this step.

        Args:
            loss: The loss, as it was minimized.
            penalty: The penalty in it, e.g. of `penalty(model)`.
            step: The number to log under; by default the calls are counted from 0.

        Raises:
            ValueError: If `step` is not an integer of at least 0.
        """
        self.last_step = self.last_step + 1 if step is None else _check.integer(step, "step", minimum=0)
        if self.last_step % self.every == 0:
            for tag, value in self._measure(loss, penalty).items():
                self.writer.add_scalar(tag, value, self.last_step)
        if self.histograms_every is not None and self.last_step % self.histograms_every == 0:
            self._write_histograms()

    @torch.no_grad()
    def _measure(self, loss: Tensor | float | None, penalty: Tensor | float | None) -> dict[str, float]:
        watched, groups = self._watched(), self.optimizer.param_groups
        device = watched[0].parameter.device
        given = [value for value in (loss, penalty) if value is not None]
        rates = [value for group in groups for value in (group["lr"], strength_of(group))]
        attached = _attached(self._model)
        penalties = [attached.get(id(w.parameter), 0.0) for w in watched]
        squares = [_sum_squares(t, device) for w in watched for t in (w.parameter, w.parameter.grad)]
        numbers = iter(_fetch([*given, *rates, *penalties, *squares], device))
        values = _given(*(None if value is None else next(numbers) for value in (loss, penalty)))
        by_group = {id(group): (next(numbers), next(numbers)) for group in groups}
        strengths = [(w.name, by_group[id(w.group)][1] + 2 * next(numbers)) for w in watched]
        norms = {w.name: (next(numbers) ** 0.5, next(numbers) ** 0.5) for w in watched}
        return values | _by_weight(strengths, norms) | _by_group(groups, by_group)

    def _watched(self) -> list[_Watched]:
        """The decayed weights with their groups as they are now: loading a checkpoint replaces the groups."""
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        return [
            _Watched(j.name, j.parameter, groups[id(j.parameter)])
            for j in self._weights
            if id(j.parameter) in groups and _is_ready(j)
        ]

    def _write_histograms(self) -> None:
        for name, parameter, _ in self._watched():
            self.writer.add_histogram(f"l2/weight/{name}", whole(parameter.detach()), self.last_step)  # type: ignore[attr-defined]
            if parameter.grad is not None:
                self.writer.add_histogram(f"l2/gradient/{name}", whole(parameter.grad), self.last_step)  # type: ignore[attr-defined]


def _attached(model: nn.Module) -> dict[int, Strength]:
    """The λ of λ‖w‖² by the parameter it is attached to."""
    return {
        id(parameter): regularizer.l2
        for _, module, carried in carriers(model)
        for attribute, regularizer in carried.weights.items()
        if isinstance(regularizer, (L2, L1L2))
        and type(regularizer) in (L2, L1L2)  # a subclass may compute something else
        and (parameter := module._parameters.get(attribute)) is not None
    }


def _given(loss: float | None, penalty: float | None) -> dict[str, float]:
    values = {tag: value for tag, value in (("loss", loss), ("l2/penalty", penalty)) if value is not None}
    if loss and penalty is not None:
        values["l2/penalty_to_loss"] = penalty / loss
    return values


def _by_weight(strengths: Sequence[tuple[str, float]], norms: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The numbers of each weight, from its strength and the norms of it and its gradient, and over all of them."""
    values: dict[str, float] = {}
    pull = 0.0
    for name, strength in strengths:
        norm, gradient = norms[name]
        values[f"l2/weight_norm/{name}"] = norm
        if gradient > 0:
            values[f"l2/pull_to_gradient/{name}"] = strength * norm / gradient
        pull += strength / 2 * norm**2
    total = sum(norm**2 for norm, _ in norms.values())
    values["l2/total_norm"] = total**0.5
    if total > 0:
        values["l2/strength"] = pull / total
    return values


def _by_group(groups: Sequence[Mapping[str, Any]], rates: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for index, group in enumerate(groups):
        name = group.get("name", f"group_{index}")
        lr, strength = rates[id(group)]
        values[f"l2/lr/{name}"] = lr
        values[f"l2/weight_decay/{name}"] = strength
        values[f"l2/lr_times_weight_decay/{name}"] = lr * strength
    return values


def _sum_squares(tensor: Tensor | None, device: torch.device) -> Tensor:
    if tensor is None:
        return torch.zeros((), device=device)
    return sum_squares([tensor.coalesce().values() if tensor.is_sparse else tensor])


def _fetch(values: Sequence[Tensor | float], device: torch.device) -> list[float]:
    """The numbers on the host: one transfer for all the tensors, none for what is there already."""
    tensors = [v.detach().reshape(()) for v in values if isinstance(v, Tensor)]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    fetched = iter(torch.stack([t.to(device, dtype, non_blocking=True) for t in tensors]).tolist())
    return [next(fetched) if isinstance(v, Tensor) else float(v) for v in values]


def _is_ready(judgement: Judgement) -> bool:
    return not is_lazy(judgement.parameter)


def _has(writer: object, method: str) -> None:
    if not callable(getattr(writer, method, None)):
        raise TypeError(
            f"`writer` should have `{method}`, got {type(writer).__name__}. "
            f"Pass e.g. `torch.utils.tensorboard.SummaryWriter()`, from the extra `torchridge[tensorboard]`."
        )
