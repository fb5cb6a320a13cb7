"""Batches that are mappings of names to columns: which are features, targets, weights and fold ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge.streams.columns import select
from torchridge.streams.source import Batch, fold_ids


class Roles(NamedTuple):
    """What `open_rows` was told of the columns."""

    target: Any = None
    features: Any = None
    sample_weight: Any = None
    fold: Any = None

    @property
    def given(self) -> list[str]:
        """The names of the arguments that came."""
        return [name for name, value in self._asdict().items() if value is not None]

    def told(self) -> dict[str, Any]:
        """Return the roles as JSON holds them."""
        return {k: v if isinstance(v, (str, int, type(None))) else list(v) for k, v in self._asdict().items()}

    @staticmethod
    def unnamed(where: str) -> ValueError:
        """Return the error of columns whose roles nobody told."""
        return ValueError(
            f"`rows`: the columns of {where} have names, and nothing says which are targets. Name them: "
            f"open_rows(batches, target=..., features=...). A mapping of 'X' and 'y' needs none."
        )


def batch_of(columns: Mapping[str, Any], roles: Roles, where: str) -> Batch:
    """Return a batch of the columns in their roles; a column is (m,) or (m, length)."""
    if not roles.given:
        raise roles.unnamed(where)
    chosen = select([str(name) for name in columns], *roles, where)
    names = list(columns)
    parts = [_numbers(columns[names[i]], str(names[i]), where) for i in chosen.wanted]
    lengths = {str(names[i]): len(part) for i, part in zip(chosen.wanted, parts, strict=True)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of {where} differ in rows: {lengths}; expected the same number of rows in each.")
    d, t = len(chosen.features), len(chosen.targets)
    y = parts[d] if chosen.vector_target else _joined(parts[d : d + t]) if t else None
    sample_weight = None if chosen.sample_weight is None else parts[d + t]
    return Batch(_joined(parts[:d]), y, sample_weight, None if chosen.fold is None else fold_ids(parts[-1], where))


def _joined(parts: list[Tensor]) -> Tensor:
    """Join columns; whole numbers and floats of two sizes become what holds them all."""
    matrices = [part[:, None] if part.ndim == 1 else part for part in parts]
    kind = matrices[0].dtype
    for matrix in matrices[1:]:
        kind = torch.promote_types(kind, matrix.dtype)
    mixed = kind.is_floating_point and any(not m.is_floating_point() for m in matrices)
    kind = torch.float64 if mixed else kind  # a float32 would round whole numbers
    return torch.cat([matrix.to(kind) for matrix in matrices], 1)


def _numbers(column: Any, name: str, where: str) -> Tensor:
    """Return a column as a tensor, or say which one holds no numbers, or in which row one is missing."""
    values = column if isinstance(column, Tensor) else _array(column, name, where)
    if values.ndim not in (1, 2) or values.is_complex():
        raise ValueError(
            f"{where}: column {name!r} should hold a number, or a list of numbers, in every row, got shape "
            f"{tuple(values.shape)} of {values.dtype}."
        )
    if values.is_floating_point() and not bool(torch.isfinite(values.sum(dtype=torch.float64))):
        wrong = ~torch.isfinite(values).reshape(len(values), -1).all(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(f"{where}, column {name!r}: row {row} has no finite number; expected one in every row.")
    return values


def _array(column: Any, name: str, where: str) -> Tensor:
    try:
        plain = np.ascontiguousarray(column)
    except ValueError:
        raise ValueError(f"{where}, column {name!r} holds lists that differ in length; expected one.") from None
    if plain.dtype == object:
        missing = [i for i, value in enumerate(plain.reshape(-1)) if value is None]
        if missing:
            row = missing[0] // max(1, plain[0].size if plain.ndim > 1 else 1)
            raise ValueError(f"{where}, column {name!r}: row {row} has no value; expected a number in every row.")
    if plain.dtype.kind not in "fiub":
        raise ValueError(
            f"{where}: column {name!r} holds {plain.dtype}; expected numbers. Name the `features` that are numbers."
        )
    return torch.as_tensor(plain.astype(plain.dtype.newbyteorder("="), copy=False))
