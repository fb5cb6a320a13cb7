"""What tells data from other data: a digest of all of it, or of a sample if it is large, and then it says so."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What is larger is known by a sample.
_WHOLE_BYTES = 2**26

# Rows of an array, and pieces of a file, that make a sample: the first, the last, and evenly between.
_ROWS, _PIECES, _PIECE_BYTES = 1024, 64, 2**16


def of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the size and the digest of a file; with a sample, the time of its last change too."""
    with Path(path).open("rb") as file:
        status = os.fstat(file.fileno())
        size, total = status.st_size, _hash()
        if size <= _WHOLE_BYTES:
            while part := file.read(2**20):
                total.update(part)
            return {"bytes": size, "digest": total.hexdigest()}
        for start in _evenly(size - _PIECE_BYTES, _PIECES):
            file.seek(start)
            total.update(file.read(_PIECE_BYTES))
    return {"bytes": size, "digest": total.hexdigest(), "sample": _PIECES, "changed": status.st_mtime_ns}


def of_rows(read: Callable[[int, int], Tensor], n: int, row_bytes: int) -> dict[str, Any]:
    """Return the digest of n rows that `read(start, stop)` gives."""
    total = _hash()
    if whole := n * row_bytes <= _WHOLE_BYTES:
        step = max(1, 2**22 // max(1, row_bytes))
        parts: Iterable[tuple[int, int]] = ((i, min(n, i + step)) for i in range(0, n, step))
    else:
        parts = ((i, i + 1) for i in _evenly(n - 1, _ROWS))
    for start, stop in parts:
        _update(total, read(start, stop))
    return {"digest": total.hexdigest()} | ({} if whole else {"sample": _ROWS})


def of_tensor(values: Tensor) -> dict[str, Any]:
    """Return the shape, dtype and digest of a tensor."""
    head = {"shape": list(values.shape), "dtype": str(values.dtype)}
    flat = values.detach().reshape(1) if values.ndim == 0 else values.detach()
    size = math.prod(flat.shape[1:]) * flat.element_size()
    return head | of_rows(lambda start, stop: flat[start:stop], len(flat), size)


def of_module(module: torch.nn.Module) -> str:
    """Return the digest of the parameters and buffers of a module, each known by a sample if it is large."""
    total = _hash()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        local = value.to_local() if hasattr(value, "to_local") else value
        plain = local.layout is torch.strided and not local.is_meta and not local.is_quantized
        total.update(f"{name} {of_tensor(local) if plain else tuple(local.shape)}".encode())
    return str(total.hexdigest())


def chained(before: str, *values: Any) -> str:
    """Return the digest of what came before and of some values: tensors, arrays, text, and mappings and lists of them.

    Of other objects only the type counts.
    """
    total = _hash(before.encode())
    for value in values:
        _add(total, value)
    return str(total.hexdigest())


def _add(total: Any, value: Any) -> None:
    if hasattr(value, "__array_interface__") and not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except TypeError:  # text, or objects
            value = value.tolist()
    if isinstance(value, Tensor) and value.layout is torch.strided:
        total.update(f"{tuple(value.shape)} {value.dtype}".encode())
        _update(total, value)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            total.update(f"{name!r}:".encode())
            _add(total, part)
    elif isinstance(value, (list, tuple)):
        total.update(f"{len(value)} ".encode())
        for part in value:
            _add(total, part)
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex)):
        total.update(f"{type(value).__name__} {value!r}".encode())
    else:
        total.update(type(value).__name__.encode())


def _update(total: Any, values: Tensor) -> None:
    plain = values.detach().cpu().resolve_conj().resolve_neg().contiguous()
    total.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _hash(start: bytes = b"") -> Any:
    return hashlib.blake2b(start, digest_size=16)


def _evenly(last: int, count: int) -> list[int]:
    return sorted({last * i // (count - 1) for i in range(count)})
