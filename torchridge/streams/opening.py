"""`open_rows`: the reader that a file, an array or an iterable needs."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from torchridge._ranks import Group, Ranks
from torchridge.streams.arrays import array_rows
from torchridge.streams.arrow import ArrowRows
from torchridge.streams.delimited.rows import CsvRows
from torchridge.streams.frames import FrameRows, is_frame
from torchridge.streams.iterables import IterableRows
from torchridge.streams.named import Roles
from torchridge.streams.parquet import ParquetRows
from torchridge.streams.safetensors_file import safetensors_rows
from torchridge.streams.source import RowSource
from torchridge.streams.sparse import SparseRows, is_sparse

_PARQUET = (".parquet", ".pq")


def open_rows(
    source: Any,
    *,
    target: Any = None,
    features: Any = None,
    sample_weight: Any = None,
    fold: Any = None,
    delimiter: str | None = None,
    header: bool | None = None,
    process_group: Group | None = None,
) -> RowSource:
    """Open rows that need not fit in memory, to go over them in order, again and again.

    =========================  ==========================================================================
    source                     `target`, `features`, `sample_weight`, `fold`
    =========================  ==========================================================================
    .csv, .tsv, .txt (.gz), -  names or numbers of columns; "-" is standard input, once
    .parquet, .arrow, .feather names or numbers of columns, of numbers or of lists of one length; pyarrow
    a folder, "part-*.parquet" the same, of all its Parquet files in the order of their paths
    .safetensors               names of tensors
    .npy, arrays, tensors      another file or array; or column numbers of this one
    data frames, Arrow tables  names or numbers of columns; pandas, polars or pyarrow
    sparse matrices            other arrays; of torch or SciPy, filled a run at a time, of up to 8192 columns
    any iterable               of (X, y) or (X, y, sample_weight); or names of columns, of mappings or frames
                               (X may be sparse, as HashingVectorizer gives it)
    =========================  ==========================================================================

    Mapped arrays (``numpy.load(mmap_mode="r")``, .npy and .safetensors files) do not stay resident: pages are let go
    as soon as they are copied.

    Args:
        source: a path, "-", an array of shape (n, d), a data frame, or an iterable of batches.
        target: the targets; a single one makes y (n,), a list (n, t). None for rows to predict.
        features: the features; by default all columns but the others that are named.
        sample_weight: sample weights.
        fold: integer fold ids.
        delimiter: of CSV; by default a tab for .tsv, else a comma.
        header: whether the first line of CSV holds names; by default, whether any cell of it is neither a number nor a
            missing value ("", "NA", "nan", "?", …).
        process_group: "world" or a `torch.distributed.ProcessGroup`: of Parquet, the rows of this rank's row groups
            alone, perhaps none. `stream_moments` then puts them in the folds of all rows, and `ridge_cv(...,
            process_group=...)` or `all_reduce` adds the ranks up.

    Returns:
        An iterable of batches with `n_rows`, `n_features`, `n_targets`, `feature_names`, `target_names`.

    Raises:
        ValueError: on an unknown suffix, a column that is not there, arrays that differ in rows. Reading it later
            raises on cells that are not finite numbers, by line and column.
        FileNotFoundError: if there is no such file.
        ImportError: if pyarrow is needed and not installed.

    Cost: the header of a file, of each file of a folder; the first row of Parquet and Arrow. Every pass reads the rows.

    Example:
        >>> import numpy as np
        >>> from torchridge import open_rows
        >>> rows = open_rows(np.arange(12.0).reshape(4, 3), target=-1)
        >>> rows.n_rows, rows.n_features, next(iter(rows)).y
        (4, 2, tensor([ 2.,  5.,  8., 11.], dtype=torch.float64))
    """
    named = {"target": target, "features": features, "sample_weight": sample_weight, "fold": fold}
    csv = {"delimiter": delimiter, "header": header}
    if process_group is not None:
        return _of_this_rank(source, named, csv, process_group)
    if isinstance(source, str) and source == "-":
        return CsvRows(sys.stdin.buffer, **named, delimiter=_delimiter(csv, ","), header=header)
    if isinstance(source, (str, Path)):
        return _file(Path(source), named, csv)
    _refuse(csv, "an array or an iterable")
    if isinstance(source, (np.ndarray, Tensor)) and not is_sparse(source):
        return array_rows(source, target, features, sample_weight, fold)
    if is_sparse(source):
        if features is not None:
            raise ValueError("`features` has no use for a sparse matrix. Take its columns: `X[:, features]`.")
        return SparseRows(source, target, sample_weight, fold)
    if is_frame(source):
        return FrameRows(source, **named)
    return IterableRows(source, Roles(**named))


def _of_this_rank(source: Any, named: dict[str, Any], csv: dict[str, Any], process_group: Any) -> RowSource:
    """Open Parquet files, and keep this rank's part; what cannot be opened on one rank is an error on all."""

    def opened() -> ParquetRows:
        rows = _file(Path(source), named, csv) if isinstance(source, (str, Path)) and str(source) != "-" else None
        if not isinstance(rows, ParquetRows):
            raise ValueError(
                "`process_group` spreads the row groups of Parquet files over ranks. For others, open this rank's "
                "own rows, and leave it out."
            )
        return rows

    ranks = Ranks(process_group)
    rows, _ = ranks.together("open_rows", opened, ParquetRows.says, agree=("rows", "files", "columns"))
    rows.take_part(ranks.index, ranks.size)
    return rows


def _file(path: Path, named: dict[str, Any], csv: dict[str, Any]) -> RowSource:
    pattern = not path.exists() and any(c in path.name or c in str(path.parent) for c in "*?[")
    if pattern and not glob.glob(str(path), recursive=True):
        raise FileNotFoundError(f"`source`: no file matches {str(path)!r}.")
    if pattern and path.suffix not in _PARQUET:
        raise ValueError(f"`source`: a pattern should end in {' or '.join(_PARQUET)}, got {str(path)!r}.")
    if not (path.is_file() or path.is_dir() or pattern):
        raise FileNotFoundError(f"`source`: there is no file {str(path)!r}.")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    format_ = FORMATS.get(".parquet" if path.is_dir() or pattern else suffix)
    if format_ is None or (path.suffix == ".gz" and not format_.text):
        raise ValueError(f"`source`: {path.name} should end in {', '.join(FORMATS)}; text also with .gz.")
    if format_.text:
        return format_.opened(path, {**named, "delimiter": _delimiter(csv, format_.delimiter), "header": csv["header"]})
    _refuse(csv, f"a {suffix} file")
    return format_.opened(path, named)


class Format(NamedTuple):
    """How files of one suffix are opened."""

    opened: Callable[[Path, dict[str, Any]], RowSource]  # of the file and of the names of its columns
    text: bool = False  # whether it has a delimiter and perhaps a header, and may be compressed
    delimiter: str = ","


def _opens(kind: Callable[..., RowSource]) -> Callable[[Path, dict[str, Any]], RowSource]:
    return lambda path, named: kind(path, **named)


# A new format is a reader of its own file, a `RowSource`, and a line here.
FORMATS: dict[str, Format] = {
    **dict.fromkeys((".csv", ".txt"), Format(_opens(CsvRows), text=True)),
    ".tsv": Format(_opens(CsvRows), text=True, delimiter="\t"),
    **dict.fromkeys(_PARQUET, Format(_opens(ParquetRows))),
    **dict.fromkeys((".arrow", ".feather"), Format(_opens(ArrowRows))),
    ".safetensors": Format(_opens(safetensors_rows)),
    ".npy": Format(_opens(array_rows)),
}


def _delimiter(csv: dict[str, Any], default: str) -> str:
    given = csv["delimiter"]
    if given is not None and (not isinstance(given, str) or len(given) != 1):
        raise ValueError(f"`delimiter` should be one character, got {given!r}.")
    if given is not None and (given in '"\r\n' or not given.isascii()):
        raise ValueError(f"`delimiter` should be an ASCII character other than a quote or a line end, got {given!r}.")
    return given or default


def _refuse(arguments: dict[str, Any], where: str) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` has no use for {where}. Leave it out.")
