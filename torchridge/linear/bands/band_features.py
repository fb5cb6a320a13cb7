"""Bands of features: slices, column numbers or labels of one matrix, or matrices by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check


class Bands(NamedTuple):
    """Matrices of the bands, their names, and which columns of one matrix they are."""

    names: list[str]
    matrices: list[Tensor]  # (n, d_b), or kernels (n, n)
    columns: list[slice | Tensor] | None  # None if the matrices came by themselves


def bands_of(X: Any, bands: Any, precomputed: bool) -> Bands:
    """Return the bands of a call, or raise."""
    if isinstance(X, Tensor) and not precomputed:
        return _of_one(X, bands)
    if bands is not None:
        raise ValueError("`bands` divides the columns of one `X`; these are bands by themselves. Leave it out.")
    if isinstance(X, Tensor) and X.ndim == 3:
        X = list(X)
    if not isinstance(X, (list, tuple, Mapping)) or not len(X):
        raise TypeError(
            f"`X` should be a list or dict of {'kernels' if precomputed else 'matrices'}, got {type(X).__name__}."
        )
    named = X if isinstance(X, Mapping) else {str(i): x for i, x in enumerate(X)}
    matrices = list(named.values())
    for name, matrix in named.items():
        _check.is_tensor(matrix, f"X[{name!r}]")
        _check.is_dense_real(matrix, f"X[{name!r}]")
        if matrix.ndim != 2:
            raise ValueError(f"`X[{name!r}]` should have shape (rows, features), got {tuple(matrix.shape)}.")
        _check.same_length(len(matrix), len(matrices[0]), f"X[{name!r}]", "the first band")
    return Bands([str(name) for name in named], matrices, None)


def _of_one(X: Tensor, bands: Any) -> Bands:
    _check.is_dense_real(X, "X")
    if X.ndim != 2:
        raise ValueError(f"`X` should have shape (rows, features), got {tuple(X.shape)}.")
    if bands is None:
        raise TypeError("`bands` is missing; pass slices of the columns of `X` by name, or the bands as a list in `X`.")
    d = X.shape[1]
    named = _named(bands, d)
    columns = {name: _columns(name, part, d) for name, part in named.items()}
    count = torch.zeros(d, dtype=torch.long)
    for part in columns.values():
        count[part if isinstance(part, slice) else part.cpu()] += 1
    if bool((count != 1).any()):
        first = int((count != 1).nonzero()[0])
        raise ValueError(
            f"`bands`: column {first} of `X` belongs to {int(count[first])} bands ({int((count != 1).sum())} such "
            f"columns); every one should belong to one. Drop columns from `X` that should not count."
        )
    columns = {name: c if isinstance(c, slice) else c.to(X.device) for name, c in columns.items()}
    return Bands(list(columns), [X[:, part] for part in columns.values()], list(columns.values()))


def _named(bands: Any, d: int) -> dict[str, Any]:
    if isinstance(bands, Mapping):
        return {str(name): part for name, part in bands.items()}
    listed = bands.tolist() if hasattr(bands, "tolist") else list(bands)
    if listed and all(isinstance(label, (str, int)) for label in listed):
        if len(listed) != d:
            raise ValueError(f"`bands` should hold a label for each of {d} columns of `X`, got {len(listed)}.")
        order = list(dict.fromkeys(listed))
        return {str(name): [i for i, label in enumerate(listed) if label == name] for name in order}
    return {str(i): part for i, part in enumerate(listed)}


def _columns(name: str, given: Any, d: int) -> slice | Tensor:
    part: slice | Tensor
    if isinstance(given, slice):
        part, empty = given, not len(range(*given.indices(d)))
    else:
        part = torch.as_tensor(given)
        if part.dtype is torch.bool and part.shape == (d,):
            part = part.nonzero()[:, 0]
        if part.is_floating_point() or part.ndim != 1:
            raise ValueError(f"`bands[{name!r}]` should be a slice or column numbers, got {part!r}.")
        empty = not len(part)
        if not empty and (int(part.min()) < 0 or int(part.max()) >= d):
            raise ValueError(f"`bands[{name!r}]`: column numbers should lie between 0 and {d - 1}.")
    if empty:
        raise ValueError(f"`bands[{name!r}]` holds no column of `X`, which has {d}.")
    return part
