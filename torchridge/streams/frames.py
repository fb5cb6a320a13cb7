"""Rows of data frames and Arrow tables in memory, whose columns have names: pandas, polars, pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchridge._files import content as _content
from torchridge.streams.arrow import pyarrow
from torchridge.streams.tables import Piece, TableRows


def is_frame(value: Any) -> bool:
    """Whether a value is a data frame or an Arrow table; nothing is imported to find out."""
    kind = type(value)
    library, name = kind.__module__.partition(".")[0], kind.__name__
    return (library in ("pandas", "polars") and name == "DataFrame") or (
        library == "pyarrow" and name in ("Table", "RecordBatch")
    )


class FrameRows(TableRows):
    """Rows of one frame, made into Arrow a batch at a time."""

    def __init__(self, frame: Any, target: Any, features: Any, sample_weight: Any, fold: Any) -> None:
        self._frame, self.name = frame, f"the {type(frame).__name__}"
        names = frame.schema.names if hasattr(frame, "num_rows") else [str(name) for name in frame.columns]
        self._choose(names, target, features, sample_weight, fold)
        first = as_table(frame, 0, 1, self.name, self._wanted)
        self._measure([first.schema], Piece(first, self.name, 0) if first.num_rows else None)

    @property
    def n_rows(self) -> int:
        """How many rows the frame has."""
        return rows_of(self._frame)

    def _pieces(self, start: int, rows: int) -> Iterator[Piece]:
        for at in range(start, self.n_rows, rows):
            piece = as_table(self._frame, at, min(rows, self.n_rows - at), self.name, self._wanted)
            yield Piece(piece, self.name, at)

    def identity(self) -> dict[str, Any]:
        """Add what the columns hold."""
        size = max(1, self.row_bytes or 1)
        columns = [
            _content.of_rows(lambda a, b, i=i: _part(self, i, a, b), self.n_rows, size)  # type: ignore[misc]
            for i in range(4)
        ]
        return super().identity() | {"content": columns, "rows": self.n_rows}


def _part(source: FrameRows, index: int, start: int, stop: int) -> Any:
    batch = next(source.batches(start, stop - start))
    return batch.X[:0] if (part := batch[index]) is None else part


def rows_of(frame: Any) -> int:
    """Return how many rows a frame has."""
    return int(frame.num_rows) if hasattr(frame, "num_rows") else len(frame)


def as_table(frame: Any, start: int, rows: int, name: str, wanted: list[str]) -> Any:
    """Return some rows of the wanted columns of a frame as an Arrow table."""
    pa, library = pyarrow(), type(frame).__module__.partition(".")[0]
    if library == "pyarrow":
        piece = frame.slice(start, rows).select(wanted)
        return pa.Table.from_batches([piece]) if isinstance(piece, pa.RecordBatch) else piece
    if library == "polars":
        return frame.slice(start, rows).select(wanted).to_arrow()
    named = frame.iloc[start : start + rows].set_axis([str(c) for c in frame.columns], axis=1)[wanted]
    try:
        return pa.Table.from_pandas(named, preserve_index=False)
    except pa.ArrowException as error:  # of objects; it says of which column
        raise ValueError(
            f"{name}: expected columns of numbers ({error.args[-1]}). Name the `features` that are."
        ) from None
