"""Features kept for a second look, in memory or on disk, within a bound."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchridge.probing.features.chunks import Chunk
from torchridge.probing.features.table import available_bytes


class Kept:
    """Chunks in a smaller dtype, in memory or, one file a layer and chunk, in a folder.

    Args:
        where: "memory" or a folder.
        dtype: of the kept features; None for their own.
        limit: bytes of features that may be kept; half of what is free, if None.
    """

    def __init__(self, where: str | Path, dtype: torch.dtype | None, limit: int | None) -> None:
        self.folder = None if where == "memory" else Path(where)
        self.dtype = dtype
        self.bytes = 0
        self.dtypes: dict[str, torch.dtype] = {}
        self.chunks: list[Chunk] = []
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.limit = self._free() if limit is None else limit

    def add(self, chunk: Chunk) -> Chunk:
        """Keep a chunk, and return it as it will be read again."""
        features = {layer: rows.to(self.dtype or rows.dtype) for layer, rows in chunk.features.items()}
        for layer, rows in chunk.features.items():
            if self.dtype is torch.float16 and float(rows.abs().amax()) > torch.finfo(torch.float16).max:
                raise ValueError(f"`keep_dtype`: features of layer {layer} overflow float16. Pass torch.bfloat16.")
        self.dtypes = {layer: rows.dtype for layer, rows in features.items()}
        self.bytes += sum(rows.numel() * rows.element_size() for rows in features.values())
        if self.limit is not None and self.bytes > self.limit:
            raise ValueError(
                f"`keep_bytes`={self.limit}: the features of {int(chunk.example.max()) + 1} examples take "
                f"{self.bytes} bytes already. Raise it, keep a folder in place of memory, or probe fewer `layers`."
            )
        if self.folder is not None:
            for i, rows in enumerate(features.values()):
                np.save(self._file(len(self.chunks), i), _storable(rows), allow_pickle=False)
        self.chunks.append(replace(chunk, features=features if self.folder is None else dict.fromkeys(features, _GONE)))
        return replace(chunk, features={layer: _computable(rows) for layer, rows in features.items()})

    def _free(self) -> int | None:
        """Return what may be kept if the caller names no bound: half of the free memory, or of the free disk."""
        if self.folder is not None:
            return shutil.disk_usage(self.folder).free // 2
        free = available_bytes(torch.device("cpu"))
        return None if free is None else free // 2

    def _file(self, chunk: int, layer: int) -> Path:
        assert self.folder is not None
        return self.folder / f"features-{chunk:06d}-{layer:03d}.npy"

    def rows(self, chunk: int, layer: str) -> Tensor:
        """Return the features of one layer and chunk."""
        features = self.chunks[chunk].features
        if self.folder is None:
            return _computable(features[layer])
        file = self._file(chunk, list(features).index(layer))
        return _computable(torch.from_numpy(np.load(file, allow_pickle=False)).view(self.dtypes[layer]))

    def as_read(self, rows: Tensor) -> Tensor:
        """Return rows in the dtype that they would be read in again."""
        return _computable(rows.to(self.dtype or rows.dtype))

    def layer(self, layer: str) -> Tensor:
        """Return all the features of one layer, (n, d)."""
        return torch.cat([self.rows(i, layer) for i in range(len(self.chunks))])

    def __iter__(self) -> Iterator[Chunk]:
        for i, chunk in enumerate(self.chunks):
            yield replace(chunk, features={layer: self.rows(i, layer) for layer in chunk.features})


_GONE = torch.empty(0)


def _storable(rows: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    rows = rows.cpu().contiguous()
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = (
        rows.view(torch.int16) if rows.dtype is torch.bfloat16 else rows
    ).numpy()
    return array


def _computable(rows: Tensor) -> Tensor:
    return rows if rows.dtype is torch.float64 else rows.float()
