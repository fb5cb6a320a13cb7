"""Rows of Parquet: one file, or the files of a folder or a pattern, and of those the row groups of one rank."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from torchridge._files import content as _content
from torchridge.streams.arrow import pyarrow
from torchridge.streams.tables import Piece, TableRows, reading


class _File(NamedTuple):
    path: Path
    schema: Any
    groups: tuple[int, ...]  # rows of each row group
    keys: dict[str, Any]  # what the folders say, year=2024


class ParquetRows(TableRows):
    """Rows of files, in the order of their paths; or those of a part of their row groups."""

    def __init__(self, source: Path, target: Any, features: Any, sample_weight: Any, fold: Any) -> None:
        self.name, pyarrow_ = source.name or str(source), pyarrow()
        self._files = [_head(path, keys, pyarrow_) for path, keys in _found(source)]
        self._total = sum(sum(file.groups) for file in self._files)
        self.first_row, self._stop = 0, self._total
        self._choose(self._files[0].schema.names, target, features, sample_weight, fold)
        for file in self._files:
            self._check_columns(file)
        self._measure([file.schema for file in self._files], next(self._pieces(0, 1), None))

    def _check_columns(self, file: _File) -> None:
        missing = [name for name in self._wanted if file.schema.get_field_index(name) < 0]
        if missing:
            raise ValueError(
                f"`source`: {file.path.name} has no column {missing[0]!r}, which {self._files[0].path.name} has. "
                f"Leave one of them out."
            )

    def says(self) -> dict[str, Any]:
        """Return what all ranks must agree on."""
        return {"rows": self._total, "files": len(self._files), "columns": self._wanted}

    def take_part(self, part: int, parts: int) -> None:
        """Keep row groups that follow one another, as near to an equal share of the rows as their sizes allow."""
        bounds = [0, *accumulate(rows for file in self._files for rows in file.groups)]
        cuts = [min(bounds, key=lambda b: abs(b - self._total * i / parts)) for i in range(parts + 1)]
        self.first_row, self._stop = cuts[part], cuts[part + 1]

    @property
    def n_rows(self) -> int:
        """How many rows the files hold, or the row groups of this rank."""
        return self._stop - self.first_row

    @property
    def total_rows(self) -> int:
        """How many rows the files hold."""
        return self._total

    def _pieces(self, start: int, rows: int) -> Iterator[Piece]:
        at, first = 0, self.first_row + start
        for file in self._files:
            size = sum(file.groups)
            if at < self._stop and at + size > first:
                yield from self._of(file, max(0, first - at), min(size, self._stop - at), rows)
            at += size

    def _of(self, file: _File, start: int, stop: int, rows: int) -> Iterator[Piece]:
        """Yield the rows from `start` to `stop` of a file, none of them past a row group that is not needed."""
        at, groups = 0, list[int]()
        for i, size in enumerate(file.groups):
            if not groups and at + size <= start:
                at += size
            elif at + sum(file.groups[g] for g in groups) < stop:
                groups.append(i)
        stored = [name for name in self._wanted if name not in file.keys]
        # Buffered reads: without them the compressed columns of a whole row group are held at once.
        with (
            reading(file.path.name),
            pyarrow().parquet.ParquetFile(file.path, buffer_size=2**18, pre_buffer=False) as opened,
        ):
            for piece in opened.iter_batches(rows, row_groups=groups, columns=stored or None):
                low, high = max(start, at), min(stop, at + piece.num_rows)
                if low < high:
                    yield Piece(self._whole(piece.slice(low - at, high - low), file), file.path.name, low)
                at += piece.num_rows

    def _whole(self, piece: Any, file: _File) -> Any:
        """Return the wanted columns in their order, with those that the folders give."""
        pa, n = pyarrow(), piece.num_rows
        columns = [pa.repeat(file.keys[c], n) if c in file.keys else piece.column(c) for c in self._wanted]
        return pa.table(columns, names=self._wanted)

    def identity(self) -> dict[str, Any]:
        """Add the files, and which of their rows are taken."""
        content = [_content.of_file(file.path) | {"keys": repr(file.keys)} for file in self._files]
        return super().identity() | {"content": content, "rows": [self.first_row, self._stop]}


def _found(source: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return the files, and what the names of their folders say."""
    if source.is_file():
        return [(source, {})]
    if not source.is_dir():
        return [(Path(path), {}) for path in sorted(glob.glob(str(source), recursive=True))]
    import pyarrow.dataset as dataset

    files = sorted(p for kind in ("parquet", "pq") for p in source.rglob(f"*.{kind}") if _visible(p, source))
    if not files:
        raise FileNotFoundError(f"`source`: the folder {str(source)!r} holds no .parquet file.")
    with reading(source.name):
        found = dataset.dataset(
            [str(p) for p in files],
            format="parquet",
            partitioning=dataset.partitioning(flavor="hive"),
            partition_base_dir=str(source),
        )
        keys = {f.path: dataset.get_partition_keys(f.partition_expression) for f in found.get_fragments()}
    return [(path, keys[str(path)]) for path in files]


def _visible(path: Path, folder: Path) -> bool:
    """Leave out what other tools leave next to the rows: _metadata, .part, _temporary/."""
    return path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)


def _head(path: Path, keys: dict[str, Any], pyarrow_: Any) -> _File:
    with reading(path.name), pyarrow_.parquet.ParquetFile(path) as file:
        schema, metadata = file.schema_arrow, file.metadata
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        keys = {k: v for k, v in keys.items() if schema.get_field_index(k) < 0}
        for name, value in keys.items():
            schema = schema.append(pyarrow_.field(name, pyarrow_.scalar(value).type))
        return _File(path, schema, groups, keys)
