"""Rows of the tensors of a safetensors file, mapped without staying resident."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchridge.streams.array import Array
from torchridge.streams.arrays import ArrayRows
from torchridge.streams.source import RowSource

# dtypes of safetensors, with what NumPy reads them as; it has no bfloat16.
_DTYPES = {
    "F64": (np.float64, torch.float64),
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),
    "I64": (np.int64, torch.int64),
    "I32": (np.int32, torch.int32),
    "I16": (np.int16, torch.int16),
    "I8": (np.int8, torch.int8),
    "U8": (np.uint8, torch.uint8),
    "BOOL": (np.bool_, torch.bool),
}


def safetensors_rows(path: Path, target: Any, features: Any, sample_weight: Any, fold: Any) -> RowSource:
    """Return the rows of the tensors of a file; `target`, `features`, `sample_weight` and `fold` are their names."""
    tensors = _tensors(path)
    taken = [name for name in (target, sample_weight, fold) if name is not None]
    if features is None:
        others = [name for name, a in tensors.items() if name not in taken and a.values.ndim == 2]
        if len(others) != 1:
            raise ValueError(f"`source`: {path.name}: `features` should name one of its matrices {others}, got None.")
        features = others[0]
    for name, key in (("features", features), ("target", target), ("sample_weight", sample_weight), ("fold", fold)):
        if key is not None and (not isinstance(key, str) or key not in tensors):
            raise ValueError(f"`{name}`={key!r} is not a tensor of 1 or 2 dimensions in {path.name}: {list(tensors)}.")
    y, s, ids = (None if key is None else tensors[key] for key in (target, sample_weight, fold))
    return ArrayRows(tensors[features], y, s, ids, files=[path])


def _tensors(path: Path) -> dict[str, Array]:
    """Map the tensors of a file. The format: 8 bytes of length, a JSON header, then the numbers, without gaps."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 10**8):
            raise ValueError(f"`source`: {path.name} is truncated or not a safetensors file.")
        try:
            header = dict(json.loads(file.read(length), object_pairs_hook=_once))
            header.pop("__metadata__", None)
            _check_places(header, size - 8 - length)
            return {k: a for k, v in header.items() if (a := _tensor(path, 8 + length, k, v)) is not None}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"`source`: {path.name} is truncated or not a safetensors file ({error!r}).") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in the header")
    return dict(pairs)


def _check_places(header: dict[str, Any], size: int) -> None:
    """Raise unless the tensors lie one after the other and fill the file."""
    at = 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        start, stop = entry["data_offsets"]
        whole = [start, stop, *entry["shape"]]
        if not all(type(n) is int and n >= 0 for n in whole) or start != at or stop < start or stop > size:
            raise ValueError(
                f"tensor {name!r} should lie within the file, after the one before it, got bytes {start} to {stop}; "
                f"expected a start at {at}"
            )
        at = stop
    if at != size:
        raise ValueError(f"{size - at} bytes follow the last tensor")


def _tensor(path: Path, base: int, name: str, entry: Any) -> Array | None:
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        return None
    kind, dtype = _DTYPES[entry["dtype"]]
    expected = math.prod(shape) * np.dtype(kind).itemsize
    if stop - start != expected:
        raise ValueError(f"tensor {name!r} should have {expected} bytes within the file, got {stop - start}")
    if len(shape) not in (1, 2) or 0 in shape:
        return None
    values = np.memmap(path, dtype=kind, mode="r", offset=base + start, shape=shape)
    return Array(values, name, dtype if dtype is torch.bfloat16 else None, path=path)
