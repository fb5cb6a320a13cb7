"""Linear layers that carry their own regularizers, for `torchridge.penalty`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchridge.training.penalties.attachment import attach_activity, attach_weight, attachment, clear_at_forward
from torchridge.training.penalties.identifiers import get
from torchridge.training.penalties.regularizers import L2, Penalty, RegularizerLike
from torchridge.training.penalties.strengths import Strength, validate_float_arg

_DEFAULT = 0.01


class L2Linear(nn.Linear):
    """A linear layer whose weight is penalized by l2 · Σ W² once `penalty(model)` is added to the loss.

    In everything else it is `torch.nn.Linear`: initialization, state dict, forward. The bias is not penalized unless
    `bias_regularizer` says so. It is `keras.layers.Dense(kernel_regularizer=l2(0.01))` with Keras's strength, the
    same as `weight_decay = 2 * l2` in SGD and Adam; the penalty is the same in training and evaluation mode, and 0
    while the weight is frozen.

    An output penalty counts the last call of the layer. If the model calls the layer several times a forward, call
    `regularize(model)` once: then all calls count, and every forward of the model starts anew.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        bias: Whether to learn a bias.
        l2: Strength λ ≥ 0 on the weight, or a 0-d tensor of it; 0 or None for no penalty.
        weight_regularizer: Regularizer of the weight in place of `l2`, in any form that `regularizers.get` takes.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output, divided by the batch size and taken in at least float32.
        device: As in `nn.Linear`.
        dtype: As in `nn.Linear`.

    Shape:
        (*, in_features) to (*, out_features).

    Raises:
        ValueError: If a strength is negative or NaN, a regularizer cannot be understood, both `l2` and
            `weight_regularizer` are given, or `bias_regularizer` without a bias.

    Cost: that of `nn.Linear`; the penalty is computed by `penalty`, one read of the weight.

    Example:
        >>> layer = L2Linear(3, 2, l2=0.5)
        >>> layer
        L2Linear(in_features=3, out_features=2, bias=True, weight_regularizer=L2(l2=0.5))
        >>> list(layer.state_dict())
        ['weight', 'bias']
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        l2: Strength | None = _DEFAULT,
        weight_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        activity_regularizer: RegularizerLike = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        chosen = _chosen(l2, weight_regularizer, bias_regularizer, activity_regularizer, bias)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight_regularizer, self.bias_regularizer, self.activity_regularizer = chosen

    @property
    def weight_regularizer(self) -> Penalty | None:
        """The regularizer of the weight; assign another, or None."""
        return _regularizer_of(self, "weight")

    @weight_regularizer.setter
    def weight_regularizer(self, value: Any) -> None:
        attach_weight(self, "weight", get(value))

    @property
    def bias_regularizer(self) -> Penalty | None:
        """The regularizer of the bias; assign another, or None."""
        return _regularizer_of(self, "bias")

    @bias_regularizer.setter
    def bias_regularizer(self, value: Any) -> None:
        attach_weight(self, "bias", get(value))

    @property
    def activity_regularizer(self) -> Penalty | None:
        """The regularizer of the output; assign another, or None."""
        carried = attachment(self)
        return None if carried is None else carried.activity

    @activity_regularizer.setter
    def activity_regularizer(self, value: Any) -> None:
        regularizer = get(value)
        attach_activity(self, regularizer)
        if regularizer is not None:
            clear_at_forward(self)

    def extra_repr(self) -> str:
        """What `nn.Linear` says, then the regularizers."""
        names = ("weight_regularizer", "bias_regularizer", "activity_regularizer")
        present = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) is not None]
        return ", ".join([super().extra_repr(), *present])


class LazyL2Linear(nn.LazyLinear, L2Linear):
    """An `L2Linear` that takes `in_features` from its first input, and is an `L2Linear` from then on.

    Args:
        out_features: Size of each output.
        bias: Whether to learn a bias.
        l2: As in `L2Linear`.
        weight_regularizer: As in `L2Linear`.
        bias_regularizer: As in `L2Linear`.
        activity_regularizer: As in `L2Linear`.
        device: As in `nn.Linear`.
        dtype: As in `nn.Linear`.

    Raises:
        ValueError: As `L2Linear`. `penalty` raises it too before the first forward.

    Cost: as `L2Linear`.

    Example:
        >>> layer = LazyL2Linear(2)
        >>> layer(torch.ones(5, 3)).shape, layer.weight.shape, type(layer).__name__
        (torch.Size([5, 2]), torch.Size([2, 3]), 'L2Linear')
    """

    cls_to_become = L2Linear  # type: ignore[assignment]

    def __init__(
        self,
        out_features: int,
        bias: bool = True,
        *,
        l2: Strength | None = _DEFAULT,
        weight_regularizer: RegularizerLike = None,
        bias_regularizer: RegularizerLike = None,
        activity_regularizer: RegularizerLike = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        chosen = _chosen(l2, weight_regularizer, bias_regularizer, activity_regularizer, bias)
        super().__init__(out_features, bias, device=device, dtype=dtype)
        self.weight_regularizer, self.bias_regularizer, self.activity_regularizer = chosen


def _chosen(
    l2: Strength | None, weight: Any, bias: Any, activity: Any, has_bias: bool
) -> tuple[Penalty | None, Penalty | None, Penalty | None]:
    """The three regularizers that the arguments ask for, checked before a layer is made."""
    strength = 0.0 if l2 is None else validate_float_arg(l2, "l2")
    present = isinstance(strength, torch.Tensor) or strength > 0
    if weight is not None and present and (isinstance(strength, torch.Tensor) or strength != _DEFAULT):
        raise ValueError(
            f"got both `l2` = {l2} and `weight_regularizer` = {weight!r}; expected one of them. "
            f"Drop `l2`, or put it into the regularizer, e.g. `L1L2(l1=..., l2=...)`."
        )
    if bias is not None and not has_bias:
        raise ValueError(f"got `bias_regularizer` = {bias!r} with `bias=False`; expected a bias to penalize. Drop one.")
    return get(weight) if weight is not None else L2(strength) if present else None, get(bias), get(activity)


def _regularizer_of(module: nn.Module, name: str) -> Penalty | None:
    carried = attachment(module)
    return None if carried is None else carried.weights.get(name)
