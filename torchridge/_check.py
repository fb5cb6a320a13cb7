"""Checks of what a caller passes, in one voice: what came, what was expected, what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

_SUMMED_AT_ONCE = 2**20

# How what these libraries hold becomes a tensor.
_FRAMES = {
    "pandas": "torch.tensor({}.to_numpy(dtype='float64'))",
    "polars": "{}.to_torch()",
    "pyarrow": "torch.tensor({}.to_pandas().to_numpy(dtype='float64'))",
}


def values_visible(*tensors: Tensor | None) -> bool:
    """Whether Python may look at the tensors' values: not while compiling, nor under vmap or another transform."""
    if torch.compiler.is_compiling():
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return not any(t is not None and (wrapped(t) or t.is_meta) for t in tensors)


def is_tensor(value: Any, name: str) -> None:
    """Raise unless `value` is a tensor."""
    if isinstance(value, Tensor):
        return
    got = type(value)
    library = got.__module__.partition(".")[0]
    if library in _FRAMES:
        raise TypeError(
            f"`{name}` should be a torch.Tensor, got a {library} {got.__name__}. Data frames go to "
            f"`torchridge.estimators` (Ridge, RidgeCV, ...) as they are, or to `open_rows` with the names of their "
            f"columns; else convert it first, e.g. `{_FRAMES[library].format(name)}`."
        )
    raise TypeError(
        f"`{name}` should be a torch.Tensor, got {got.__name__}. Convert it first, e.g. `torch.as_tensor({name})`."
    )


def is_dense_real(value: Tensor, name: str) -> None:
    """Raise unless `value` is a strided tensor of real numbers."""
    if value.layout is not torch.strided:
        raise TypeError(
            f"`{name}` should be a dense tensor, got layout {value.layout}. Pass `{name}.to_dense()` if it fits."
        )
    if value.is_complex():
        raise TypeError(
            f"`{name}` should be real, got {value.dtype}. Stack its real and imaginary parts as separate columns."
        )


def sum_is_finite(value: Tensor) -> bool:
    """Whether a floating-point tensor has a finite sum in float64: NaN and infinity show without a mask of its size."""
    value = value.detach()
    if value.is_cuda or value.dtype is torch.float64 or value.numel() <= _SUMMED_AT_ONCE:
        return math.isfinite(float(value.sum(dtype=torch.float64)))
    # On CPU a sum in another dtype copies what it sums. Copies a run at a time would still pile up in the allocator,
    # each cut from fresh memory because the sum before took a corner of the last one: one buffer serves all.
    step = max(1, _SUMMED_AT_ONCE // value[:1].numel())
    work = torch.empty_like(value[:step], dtype=torch.float64)
    return all(math.isfinite(float(work[: len(run)].copy_(run).sum())) for run in torch.split(value, step))


def finite(value: Tensor, name: str) -> None:
    """Raise if `value` holds NaN or infinity, naming the first row (the first index of the second-last dim)."""
    if not value.is_floating_point() or not values_visible(value) or value.numel() == 0:
        return
    if sum_is_finite(value):  # an overflow is told apart below
        return
    bad = ~torch.isfinite(value.detach())
    if not bool(bad.any()):
        return
    first = tuple(int(i) for i in bad.nonzero()[0])
    kind = "NaN" if bool(torch.isnan(value[first])) else "infinity"
    where = "" if value.ndim == 0 else f", first in row {first[0]}" if value.ndim <= 2 else f", first in index {first}"
    raise ValueError(
        f"`{name}` holds {kind}{where} ({int(bad.sum())} such values); expected finite numbers. "
        f"Drop or impute these rows."
    )


def exact_integers(value: Tensor, name: str, dtype: torch.dtype = torch.float64) -> None:
    """Raise if integers are too large for `dtype` to hold each of them: they would be rounded without a word."""
    if value.dtype.is_floating_point or value.dtype is torch.bool or value.numel() == 0 or not values_visible(value):
        return
    bound = int(2 / torch.finfo(dtype).eps)
    if torch.iinfo(value.dtype).max <= bound:
        return
    low, high = (int(end) for end in torch.aminmax(value))
    if max(-low, high) > bound:
        raise ValueError(
            f"`{name}` holds integers up to {max(-low, high)}, and {dtype} is exact up to {bound} only. Take an offset "
            f"off first, e.g. `{name} - {name}.min(0).values`, or pass `{name}.double()` to have them rounded."
        )


def not_empty(value: Tensor, name: str) -> None:
    """Raise if `value` has no elements."""
    if value.numel() == 0:
        raise ValueError(
            f"`{name}` is empty, got shape {tuple(value.shape)}; expected at least one row and one column."
        )


def same_device(tensors: dict[str, Tensor | None]) -> None:
    """Raise unless all the tensors lie on the device of the first."""
    present = {name: t for name, t in tensors.items() if t is not None}
    devices = {t.device for t in present.values()}
    if len(devices) > 1:
        where = ", ".join(f"`{name}` on {t.device}" for name, t in present.items())
        first = next(iter(present))
        raise ValueError(f"expected all tensors on one device, got {where}. Move them, e.g. `.to({first}.device)`.")


def same(value: Any, option: Any) -> bool:
    """Whether `value` is an option. Strings are compared with strings alone: other types define `==` as they like."""
    if isinstance(value, str) or isinstance(option, str):
        return isinstance(value, str) and isinstance(option, str) and value == option
    if isinstance(option, int):
        plain = isinstance(value, int) or (type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0)
        return plain and bool(value == option)
    return value is option


def one_of(value: Any, *options: Any) -> bool:
    """Whether `value` is one of some options; see `same`."""
    return any(same(value, option) for option in options)


def option(value: Any, name: str, allowed: Collection[Any]) -> None:
    """Raise unless `value` is one of `allowed`."""
    if not one_of(value, *allowed):
        listed = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"`{name}` should be one of {listed}, got {value!r}.")


def number(value: Any, name: str, *, minimum: float = 0.0, strict: bool = False) -> float:
    """Return `value` as a float, raising unless it is a finite number of at least (`strict`: above) `minimum`."""
    try:
        plain = value.item() if hasattr(value, "item") else value
        result = None if isinstance(plain, (bool, str, bytes)) else float(plain)
    except (TypeError, ValueError, RuntimeError):
        result = None
    if result is None:
        raise TypeError(f"`{name}` should be a number, got {type(value).__name__} {value!r}.")
    bound = f"{'above' if strict else 'at least'} {minimum:g}"
    if not math.isfinite(result) or result < minimum or (strict and result == minimum):
        raise ValueError(f"`{name}` should be a finite number {bound}, got {result}.")
    return result


def integer(value: Any, name: str, *, minimum: int) -> int:
    """Return `value` as an int, raising unless it is a whole number of at least `minimum`."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < minimum:
        raise ValueError(f"`{name}` should be an integer of at least {minimum}, got {value!r}.")
    return whole


def position(value: Any, count: int, name: str, of: str) -> None:
    """Raise unless `value` is the index of one of `count` things."""
    whole = integer(value, name, minimum=-count)
    if whole >= count:
        raise ValueError(f"`{name}`={whole} is out of range for a path of {count} {of} (0 to {count - 1}).")


def same_length(got: int, expected: int, name: str, of: str) -> None:
    """Raise unless `name` has as many rows as `of`."""
    if got != expected:
        raise ValueError(
            f"`{name}` has {got} rows, but `{of}` has {expected}; expected the same number of rows in both."
        )


def shape(value: Tensor, expected: Sequence[tuple[int, ...]], name: str) -> None:
    """Raise unless the shape of `value` is one of `expected`."""
    if tuple(value.shape) not in expected:
        listed = " or ".join(str(e) for e in expected)
        raise ValueError(f"`{name}` should have shape {listed}, got {tuple(value.shape)}.")


def ends(value: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value, NaN if there is one; for a device, one wait."""
    low, high = torch.stack(torch.aminmax(value.detach())).tolist()
    return float(low), float(high)


def non_negative(value: Tensor, name: str) -> float:
    """Raise if `value` holds a negative number, NaN or infinity; return the smallest, NaN if values are not visible."""
    if not values_visible(value) or value.numel() == 0:
        return math.nan
    low, high = ends(value)
    if low >= 0 and high < math.inf:
        return low
    finite(value, name)
    first = int((value.detach() < 0).reshape(-1).nonzero()[0, 0])
    got = value.detach().reshape(-1)[first].item()
    raise ValueError(f"`{name}` should not be negative, got {got} at position {first}.")


def watched(*values: Any) -> bool:
    """Whether autograd, a functorch transform or torch.compile is active, so that all operations must be torch's."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not values_visible(*tensors):
        return True
    return torch.is_grad_enabled() and any(v.requires_grad for v in tensors)


def rows(
    X: Any, y: Any, sample_weight: Any = None, *, flatten: bool = False, values: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, bool, bool]:
    """Return X (n, d), y (n, t), weights (n,), whether y came as (n,), and whether some weights are zero, or raise.

    `flatten` folds leading dimensions of all three into rows. Without `values` the weights' values are not looked at:
    the caller sees them together with the moments. Whether X and y are finite, moments show for free.
    """
    for name, value in (("X", X), ("y", y)):
        is_tensor(value, name)
        if type(value).__name__ == "DTensor":
            raise TypeError(
                f"`{name}` is a DTensor. For rows, give `{name}.to_local()` and add up over ranks (`all_reduce`, or "
                f"process_group='world'); of columns, call `column_moments`."
            )
        is_dense_real(value, name)
    if flatten and X.ndim > 1:
        X, y = _flattened(X, y)
    if X.ndim != 2:
        raise ValueError(f"`X` should have shape (rows, features), got {tuple(X.shape)}. {_remedy(X)}")
    if y.ndim not in (1, 2):
        raise ValueError(f"`y` should have shape (rows,) or (rows, targets), got {tuple(y.shape)}.")
    not_empty(X, "X")
    not_empty(y, "y")
    same_length(y.shape[0], X.shape[0], "y", "X")
    if sample_weight is not None:
        is_tensor(sample_weight, "sample_weight")
        is_dense_real(sample_weight, "sample_weight")
    same_device({"X": X, "y": y, "sample_weight": sample_weight})
    for name, value in (("X", X), ("y", y)):
        exact_integers(value, name)
    weight, least = None, 1.0
    if sample_weight is not None:
        weight = weight_shape(sample_weight, X.shape[0], flatten)
        least = least_weight(weight) if values else least
    if least == 0:
        finite(X, "X")  # no moment shows what such a row holds
        finite(y, "y")
    return X, y[:, None] if y.ndim == 1 else y, weight, y.ndim == 1, least == 0


def plain_rows(X: Any, y: Any, sample_weight: Any, *beside: Any) -> tuple[Any, ...] | None:
    """Return what `rows` does; None for a batch of problems, and if torch watches the rows or what comes with them."""
    is_tensor(X, "X")
    is_tensor(y, "y")
    return None if X.ndim > 2 or watched(X, y, sample_weight, *beside) else rows(X, y, sample_weight)


def _flattened(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leading = X.shape[:-1]
    if y.shape[: len(leading)] != leading:
        raise ValueError(
            f"`y` has shape {tuple(y.shape)}, expected the leading dimensions of `X`, {tuple(leading)}, "
            f"and one more for several targets."
        )
    return X.reshape(-1, X.shape[-1]), y.reshape(-1) if y.ndim == X.ndim - 1 else y.reshape(-1, y.shape[-1])


def _remedy(X: Tensor) -> str:
    if X.ndim < 2:
        return "Pass `X[:, None]` for rows of one feature, `X[None]` for one row."
    return "If every vector is a row, pass `X.reshape(-1, X.shape[-1])`, or `flatten=True` if it is offered."


def weight_shape(sample_weight: Tensor, n: int, flatten: bool = False) -> Tensor:
    """Return sample weights of shape (n,), or raise."""
    weight = sample_weight.reshape(-1) if flatten else sample_weight
    if weight.ndim != 1 or weight.shape[0] != n:
        raise ValueError(
            f"`sample_weight` should have shape ({n},), one weight for each row, got {tuple(sample_weight.shape)}."
        )
    return weight


def least_weight(weight: Tensor) -> float:
    """Return the least weight, or raise if one is negative or not finite, or all are zero."""
    least = non_negative(weight, "sample_weight")
    if least == 0 and not bool((weight.detach() > 0).any()):
        raise ValueError("`sample_weight` is zero in every row; expected at least one positive weight.")
    return least
