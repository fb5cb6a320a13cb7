"""Strengths of penalties: checked, read as numbers, and multiplied with sums."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from torchridge import _check

Strength = float | Tensor


def validate_float_arg(value: Any, name: str) -> Any:
    """Return a strength as a float, or as it is if it is a 0-d tensor; Keras's name and words.

    Args:
        value: The strength.
        name: What the error calls it.

    Raises:
        ValueError: If `value` is negative, NaN, infinite, or neither a number nor a real 0-d tensor.

    Example:
        >>> validate_float_arg(1, name="l2")
        1.0
    """
    if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():
        if not _check.values_visible(value) or is_strength(float(value.detach())):
            return value
    elif isinstance(value, numbers.Real) and is_strength(float(value)):
        return float(value)
    raise ValueError(
        f"Invalid value for argument {name}: expected a non-negative float. Received: {name}={value}. "
        f"Pass `{name}` as a finite number of at least 0, or as a 0-d floating-point tensor of one."
    )


def as_numbers(x: Any) -> Tensor:
    """Return `x` as a tensor that can be summed: a Keras variable's value, an array's; whole numbers as floats."""
    if not isinstance(x, Tensor):
        inner = getattr(x, "value", None)
        x = inner if isinstance(inner, Tensor) else torch.as_tensor(x)
    tensor: Tensor = x
    return tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.to(torch.get_default_dtype())


def weigh(strength: Strength, total: Tensor) -> Tensor:
    """Multiply a sum by a strength, in the dtype of the sum."""
    return total * (strength.to(total.dtype) if isinstance(strength, Tensor) else strength)


def is_present(strength: Strength) -> bool:
    """Whether a strength can be other than zero."""
    return isinstance(strength, Tensor) or strength != 0.0


def is_strength(value: float) -> bool:
    """Whether a number can be a strength."""
    return math.isfinite(value) and value >= 0
