"""Keras 3's regularizers for PyTorch: callables that turn a tensor into a 0-d penalty.

Names, defaults and meanings are those of `keras.regularizers`, so that an import is all that changes. What differs is
what Keras gets wrong: configs round-trip exactly, float64 is penalized in float64 and half precision in float32,
complex numbers count by |w|², a single row is orthogonal (0, not NaN), and regularizers compare by value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchridge.training.penalties.strengths import Strength, as_numbers, is_present, validate_float_arg, weigh
from torchridge.training.sums import sum_absolute, sum_squares, whole, widened

Penalty = Callable[[Tensor], Tensor]

_EPSILON = 1e-7  # Keras's: a row shorter than this is not stretched to length 1


class Regularizer:
    """Base class: subclass it, compute the penalty in `__call__`, and return the arguments in `get_config`.

    Two regularizers are equal when their class and their config are.

    Example:
        >>> class Cubed(Regularizer):
        ...     def __init__(self, factor):
        ...         self.factor = factor
        ...     def __call__(self, x):
        ...         return self.factor * x.abs().pow(3).sum()
        ...     def get_config(self):
        ...         return {"factor": float(self.factor)}
        >>> Cubed(0.5)(torch.ones(2, 2)), Cubed(0.5) == Cubed.from_config({"factor": 0.5})
        (tensor(2.), True)
    """

    def __call__(self, x: Tensor) -> Tensor | float:
        """Compute the penalty of `x`."""
        return 0.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Regularizer:
        """Build the regularizer that `get_config` describes."""
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the class as plain Python values.

        Raises:
            NotImplementedError: If a subclass does not define it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not implement get_config(). Return the arguments of `__init__` in a dict, "
            f"so that it can be serialized and compared."
        )

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or not isinstance(other, Regularizer):
            return NotImplemented
        try:
            return self.get_config() == other.get_config()
        except NotImplementedError:
            return False

    def __hash__(self) -> int:
        try:
            return hash((type(self), tuple(self.get_config().items())))
        except NotImplementedError:
            return id(self)

    def __repr__(self) -> str:
        try:
            config = self.get_config()
        except NotImplementedError:
            return f"{type(self).__name__}()"
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in config.items())})"


class L2(Regularizer):
    """The penalty `l2 * Σ x²`: no ½ and no mean, so its gradient is 2·l2·x.

    The same as `weight_decay = 2 * l2` in `torch.optim.SGD` and `Adam`; not the same as any `weight_decay` of AdamW.

    Args:
        l2: The strength λ ≥ 0, or a 0-d tensor of it, which can change without a recompilation by `torch.compile`.

    Shape:
        Any, to 0-d, of the dtype of `x` but at least float32; complex numbers count by |x|².

    Raises:
        ValueError: If `l2` is negative, NaN, infinite or not a number.

    Cost: one read of `x` forward, one read and one write backward.

    Source: `keras.regularizers.L2`.

    Example:
        >>> L2(2.0)(torch.ones(5, 5))
        tensor(50.)
    """

    def __init__(self, l2: Strength | None = 0.01) -> None:
        self.l2: Strength = validate_float_arg(0.01 if l2 is None else l2, name="l2")

    def __call__(self, x: Tensor) -> Tensor:
        """Compute `l2 * Σ x²`."""
        return weigh(self.l2, sum_squares([as_numbers(x)]))

    def get_config(self) -> dict[str, Any]:
        """Return `{"l2": strength}`."""
        return {"l2": float(self.l2)}


class L1(Regularizer):
    """The penalty `l1 * Σ |x|`.

    Args:
        l1: The strength ≥ 0, or a 0-d tensor of it.

    Shape:
        Any, to 0-d, of the dtype of `x` but at least float32.

    Raises:
        ValueError: If `l1` is negative, NaN, infinite or not a number.

    Cost: one read of `x` forward, one read and one write backward.

    Source: `keras.regularizers.L1`.

    Example:
        >>> L1(0.5)(torch.tensor([1.0, -3.0]))
        tensor(2.)
    """

    def __init__(self, l1: Strength | None = 0.01) -> None:
        self.l1: Strength = validate_float_arg(0.01 if l1 is None else l1, name="l1")

    def __call__(self, x: Tensor) -> Tensor:
        """Compute `l1 * Σ |x|`."""
        return weigh(self.l1, sum_absolute(as_numbers(x)))

    def get_config(self) -> dict[str, Any]:
        """Return `{"l1": strength}`."""
        return {"l1": float(self.l1)}


class L1L2(Regularizer):
    """The penalty `l1 * Σ |x| + l2 * Σ x²`; a part with strength 0 is left out.

    Args:
        l1: The strength of Σ |x|, ≥ 0, or a 0-d tensor of it.
        l2: The strength of Σ x², ≥ 0, or a 0-d tensor of it.

    Shape:
        Any, to 0-d, of the dtype of `x` but at least float32.

    Raises:
        ValueError: If a strength is negative, NaN, infinite or not a number.

    Cost: one read of `x` forward, one read and one write backward.

    Source: `keras.regularizers.L1L2`.

    Example:
        >>> L1L2(l1=0.5, l2=1.0)(torch.tensor([1.0, -3.0]))
        tensor(12.)
    """

    def __init__(self, l1: Strength | None = 0.0, l2: Strength | None = 0.0) -> None:
        self.l1: Strength = validate_float_arg(0.0 if l1 is None else l1, name="l1")
        self.l2: Strength = validate_float_arg(0.0 if l2 is None else l2, name="l2")

    def __call__(self, x: Tensor) -> Tensor:
        """Compute `l1 * Σ |x| + l2 * Σ x²`."""
        x = as_numbers(x)
        parts = [weigh(s, part(x)) for s, part in ((self.l1, sum_absolute), (self.l2, _sum_squares)) if is_present(s)]
        if not parts:
            return widened(x).real.new_zeros(())
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def get_config(self) -> dict[str, Any]:
        """Return `{"l1": strength, "l2": strength}`."""
        return {"l1": float(self.l1), "l2": float(self.l2)}


class OrthogonalRegularizer(Regularizer):
    """The penalty `factor * mean over pairs of |cos|` between the rows, or the columns, of a matrix.

    Rows (columns) are scaled to length 1 first; a pair counts once. One row alone has no pair: its penalty is 0.
    A torch weight is (out, in), the transpose of a Keras kernel: `mode="rows"` here is `mode="columns"` there.

    Args:
        factor: The strength ≥ 0, or a 0-d tensor of it.
        mode: `"rows"` or `"columns"`.

    Shape:
        (rows, columns), to 0-d, of the dtype of the input but at least float32.

    Raises:
        ValueError: If `factor` is not a finite number of at least 0, `mode` is unknown, or the input is not a matrix.

    Cost: O(rows² · columns) time and O(rows²) memory, for `"columns"` the other way round.

    Source: `keras.regularizers.OrthogonalRegularizer`.

    Example:
        >>> OrthogonalRegularizer(factor=1.0)(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor(0.7071)
    """

    def __init__(self, factor: Strength | None = 0.01, mode: str = "rows") -> None:
        self.factor: Strength = validate_float_arg(0.01 if factor is None else factor, name="factor")
        if mode not in {"rows", "columns"}:
            raise ValueError(
                'Invalid value for argument `mode`. Expected one of {"rows", "columns"}. '  # Keras's very words
                f"Received: mode={mode}"
            )
        self.mode = mode

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute the mean |cos| between the rows or columns of `inputs`, times `factor`."""
        inputs = as_numbers(inputs)
        if inputs.ndim != 2:
            raise ValueError(
                "Inputs to OrthogonalRegularizer must have rank 2. "  # Keras's very words
                f"Received: inputs.shape={tuple(inputs.shape)}"
            )
        rows = widened(whole(inputs))
        rows = rows if self.mode == "rows" else rows.mT
        with torch.autocast(rows.device.type, enabled=False):
            unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(_EPSILON)
            cosines = torch.triu(unit @ unit.mH, diagonal=1).abs()
        pairs = max(1.0, len(rows) * (len(rows) - 1) / 2)
        return weigh(self.factor, cosines.sum() / pairs)

    def get_config(self) -> dict[str, Any]:
        """Return `{"factor": strength, "mode": mode}`."""
        return {"factor": float(self.factor), "mode": self.mode}


l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal = orthogonal_regularizer = OrthogonalRegularizer


def _sum_squares(x: Tensor) -> Tensor:
    return sum_squares([x])


# What takes a regularizer takes a function, a name or a config as well.
RegularizerLike = Regularizer | Penalty | str | Mapping[str, Any] | None
