"""Rows of an Arrow IPC (Feather) file, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchridge._files import content as _content
from torchridge.exceptions import install
from torchridge.streams.tables import Piece, TableRows, reading


class ArrowRows(TableRows):
    """Rows of one file, a record batch at a time."""

    def __init__(self, path: Path, target: Any, features: Any, sample_weight: Any, fold: Any) -> None:
        self._path, self.name = path, path.name
        with reading(self.name), pyarrow().OSFile(str(path)) as source, pyarrow().ipc.open_file(source) as file:
            schema = file.schema
            self._count: int = sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))
        self._choose(schema.names, target, features, sample_weight, fold)
        self._measure([schema], next(self._pieces(0, 1), None))

    @property
    def n_rows(self) -> int:
        """How many rows the file holds."""
        return self._count

    def _pieces(self, start: int, rows: int) -> Iterator[Piece]:
        with reading(self.name), pyarrow().OSFile(str(self._path)) as source, pyarrow().ipc.open_file(source) as file:
            at = 0
            for i in range(file.num_record_batches):
                whole = file.get_batch(i).select(self._wanted)
                whole.validate(full=True)  # offsets of a damaged file may point anywhere
                for offset in range(max(0, start - at), whole.num_rows, rows):
                    yield Piece(whole.slice(offset, rows), self.name, at + offset)
                at += whole.num_rows

    def identity(self) -> dict[str, Any]:
        """Add the file."""
        return super().identity() | {"content": _content.of_file(self._path)}


def pyarrow() -> Any:
    """Return pyarrow, or raise if it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        how = install("pyarrow", "stream")
        raise ImportError(f"Parquet, Arrow and data frames need pyarrow. {how}") from None
    return pyarrow
