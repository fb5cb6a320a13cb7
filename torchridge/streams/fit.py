"""`stream_moments`: the moments of rows that need not fit in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge import _check, _files
from torchridge.solvers.moments import one_pass
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.one_pass import Workspace
from torchridge.solvers.moments.rows import check_rows
from torchridge.streams import checkpoint as checkpoints
from torchridge.streams import prefetch
from torchridge.streams.checkpoint import Position
from torchridge.streams.folding import StreamFolds, folds_of
from torchridge.streams.iterables import IterableRows
from torchridge.streams.source import Batch, RowSource

# The batches that are held have together at most so many bytes, and at least so many when twelve chunks of a pass over
# rows take fewer: enough that the d × d work of a batch, and Python's, do not show.
_MOST_BYTES, _LEAST_BYTES, _CHUNKS = 2**28, 2**25, 12


def stream_moments(
    rows: RowSource | Iterable[Any],
    *,
    cv: int | None = None,
    fold_rows: int | None = None,
    batch_rows: int | None = None,
    max_bytes: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 64,
) -> Moments:
    r"""Return the moments of all rows, in one pass that reads ahead of the sums.

    They are those of `Moments.update` on all rows at once, to rounding; ``ridge_cv(stream_moments(rows, cv=5))`` is
    5-fold cross-validation past memory. A row's fold follows from its number, never from the batches.

    Args:
        rows: what `open_rows` returns, or batches (X, y) or (X, y, sample_weight).
        cv: number of folds K: contiguous runs of rows, as in ``ridge_cv(X, y, cv=K)``, if the number of rows is known
            beforehand; otherwise row i goes to fold i mod K. None for no folds, or if a column of `rows` holds ids.
        fold_rows: deal runs of this many rows to the folds in turn, whether or not the number of rows is known.
        batch_rows: rows summed at once; by default 8 to 64 MiB of them (four times as many of arrays, which are summed
            where they lie, on CPU), fewer if `max_bytes` asks for it.
        max_bytes: bound on the memory that is kept: moments, working memory and batches.
        dtype: of the sums, float64 or float32.
        device: of the sums. Rows go to CUDA through pinned memory, while the batch before is summed.
        progress: show rows, their rate and the time left on standard error; needs tqdm.
        checkpoint: a file to resume from if it is there, written every `checkpoint_every` batches and at the end, and
            replaced whole. A resumed pass gives the same numbers, bit for bit. The file knows the rows by their columns
            and a digest of what is read: all of it up to 64 MiB, a sample of what is larger with the time of its last
            change. Of a pipe, and of batches that are not in a list, all rows are read again and compared.
        checkpoint_every: batches between two writes.

    Raises:
        ValueError: on NaN or infinity, by row; on rows that do not fit `max_bytes`; on a checkpoint of other rows.
        TypeError: on rows of the wrong type.
        OSError: if `checkpoint` cannot be written, before anything is read.
        ImportError: if `progress` or `checkpoint` need a package that is not installed.

    Cost: one pass, n·d·(d/2 + t) multiply-adds. Memory: (K + 4)·d² numbers, 40 MiB, and four batches; of a file that is
    mapped, on CPU, the pages of one.

    Sources: Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115.

    Example:
        >>> import torch
        >>> from torchridge import ridge_cv, stream_moments
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 5, generator=g, dtype=torch.float64)
        >>> y = X.sum(1) + torch.randn(60, generator=g, dtype=torch.float64)
        >>> moments = stream_moments([(X[:37], y[:37]), (X[37:], y[37:])], cv=5)
        >>> alphas = [0.1, 1.0, 10.0, 100.0]
        >>> float(ridge_cv(moments, alphas=alphas).alpha), float(ridge_cv(X, y, alphas, cv=5).alpha)
        (1.0, 1.0)
    """
    source = rows if isinstance(rows, RowSource) else IterableRows(rows)
    moments, at = Moments(dtype=dtype, device=device), Position()
    where = moments.device or torch.device("cpu")
    plan = _plan(source, cv, fold_rows, batch_rows, max_bytes, dtype, prefetch.held(source, where))
    _check.integer(checkpoint_every, "checkpoint_every", minimum=1)
    about = None if checkpoint is None else _about(source, plan, dtype, checkpoint)
    if checkpoint is not None and about is not None and Path(checkpoint).exists():
        at = checkpoints.resume(checkpoint, moments, about)
    known = about is None or "content" in about
    stream = prefetch.batches(source, at.done if known else 0, plan.rows, where)
    with closing(stream), _bar(progress, source, at.done) as bar:  # type: ignore[type-var]
        if checkpoint is not None and not known:
            checkpoints.pass_over(checkpoint, stream, at)
        for i, batch in enumerate(stream, 1):
            plan.add(moments, batch, source.first_row + at.done)
            at = at.after(batch, known=known)
            bar.update(len(batch.X))
            if checkpoint is not None and about is not None and i % checkpoint_every == 0:
                checkpoints.write(checkpoint, moments, at, about)
    plan.check_filled(moments, at.done)
    if checkpoint is not None and about is not None:
        checkpoints.write(checkpoint, moments, at, about)
    return moments


def _about(source: RowSource, plan: _Plan, dtype: torch.dtype, checkpoint: str | Path) -> dict[str, Any]:
    """Return what a checkpoint must agree with, as JSON gives it back."""
    _files.check_place(checkpoint, "checkpoint")
    folds = plan.folds and [plan.folds.k, plan.folds.run, *plan.folds.bounds]
    about = source.identity() | {"fold": folds, "batch_rows": plan.rows, "dtype": str(dtype)}
    return dict(json.loads(json.dumps(about)))


@dataclass
class _Plan:
    folds: StreamFolds | None
    rows: int | None  # of a batch; None: as they come
    max_bytes: int | None
    source: RowSource
    work: Workspace | None = None

    def add(self, moments: Moments, batch: Batch, start: int) -> None:
        """Add a batch whose first row is number `start`."""
        if batch.y is None:
            raise ValueError(f"`rows`{_of(self.source)} have no targets. Name them: `open_rows(..., target=...)`.")
        if moments.n_samples == 0 and self.rows is None and self.max_bytes is not None:
            d, t = batch.X.shape[-1], batch.y.shape[1] if batch.y.ndim == 2 else 1
            k = self.folds.k if self.folds else 1
            _batch_bytes(self.max_bytes, d, t, k, moments.dtype, batch.nbytes, prefetch.HELD)
        if self.folds is None:
            self._sum(moments, batch, batch.fold, start)
            return
        if batch.fold is not None:
            raise ValueError("`cv`: every row brings its own fold already. Leave `cv` out.")
        runs = self.folds.runs(start, start + len(batch.X), most=self.folds.k)
        if runs is None:
            self._sum(moments, batch, self.folds.ids(start, start + len(batch.X)), start)
            return
        for run in runs:
            part = batch.cut(run.start, run.stop)
            if part.sample_weight is None or bool((part.sample_weight != 0).any()):
                self._sum(moments, part, run.fold, start + run.start)

    def _sum(self, moments: Moments, batch: Batch, fold: int | Tensor | None, start: int) -> None:
        try:
            self._update(moments, batch, fold)
        except ValueError as error:
            stop = start + len(batch.X)
            of = f" of {self.source.name}" if self.source.name else ""
            raise ValueError(f"in the rows from {start} to {stop - 1}{of}, numbered from there: {error}") from None

    def _update(self, moments: Moments, batch: Batch, fold: int | Tensor | None) -> None:
        rows = check_rows(batch.X, batch.y, batch.sample_weight)  # type: ignore[arg-type]
        device = moments.device or rows.X.device
        if self.work is None:
            n = self.rows or one_pass.chunk_rows(rows.X.shape[1], rows.y.shape[1], moments.dtype.itemsize)
            self.work = one_pass.workspace(n, rows.X.shape[1], rows.y.shape[1], moments.dtype, device)
        moments._update(rows, fold, work=self.work)

    def check_filled(self, moments: Moments, n: int) -> None:
        """Raise if there were no rows, or folds stayed empty; a part of the rows may have neither."""
        if self.source.total_rows != self.source.n_rows:
            return
        if n == 0:
            raise ValueError(f"`rows`{_of(self.source)} is empty; expected at least one row.")
        if self.folds is not None and len(moments.folds) < self.folds.k:
            raise _unfilled(self.source, self.folds.k, n, len(moments.folds), self.folds.run)


def _of(source: RowSource) -> str:
    return f" ({source.name})" if source.name else ""


def _unfilled(source: RowSource, k: int, n: int, filled: int, run: int | None) -> ValueError:
    runs = f" in runs of {run}" if run else ""
    return ValueError(
        f"`cv`={k}: the {n} rows{runs} fill only {filled} folds. Lower `cv`, or pass a smaller `fold_rows`"
        f"{_of(source)}."
    )


def _plan(
    source: RowSource, cv: Any, fold_rows: Any, batch_rows: Any, max_bytes: Any, dtype: torch.dtype, held: int
) -> _Plan:
    k = None if cv is None else _check.integer(cv, "cv", minimum=2)
    if fold_rows is not None:
        _check.integer(fold_rows, "fold_rows", minimum=1)
        if k is None:
            raise ValueError("`fold_rows` has no use without `cv`, the number of folds. Pass both, or neither.")
    if source.has_folds and k is not None:
        raise ValueError("`cv`: every row brings its own fold already. Leave `cv` out, or open rows without `fold`.")
    rows = None if batch_rows is None else _check.integer(batch_rows, "batch_rows", minimum=1)
    if max_bytes is not None:
        _check.integer(max_bytes, "max_bytes", minimum=1)
    d, t, size = source.n_features, source.n_targets, source.row_bytes
    if d is not None and t is not None and size is not None:
        least = size * (rows or 64)
        most = None if max_bytes is None else _batch_bytes(max_bytes, d, t, k or 1, dtype, least, held)
        rows = rows or _default_rows(d, t, size, dtype, most, held)
    n = None if k is None or fold_rows is not None else source.total_rows
    if k is not None and n and k > n:  # before anything is read, and before K folds are laid out
        raise _unfilled(source, k, n, n, None)
    return _Plan(None if k is None else folds_of(k, fold_rows, n), rows, max_bytes, source)


def _default_rows(d: int, t: int, row_bytes: int, dtype: torch.dtype, most: int | None, held: int) -> int:
    """Return a whole number of the chunks that moments are summed in."""
    chunk = one_pass.chunk_rows(d, t, dtype.itemsize)
    wanted = min(_MOST_BYTES, max(_LEAST_BYTES, _CHUNKS * chunk * row_bytes)) // held
    size = wanted if most is None else min(wanted, most)
    return max(1, size // row_bytes if size < chunk * row_bytes else size // (chunk * row_bytes) * chunk)


def _batch_bytes(max_bytes: int, d: int, t: int, k: int, dtype: torch.dtype, least: int, held: int) -> int:
    """Return how many bytes each of the batches that are held may have, or raise if that is under `least`."""
    moments = (k + 4) * (d + t) * d * dtype.itemsize + one_pass.CHUNK_BYTES
    if (max_bytes - moments) // held < least:
        raise ValueError(
            f"`max_bytes`={max_bytes} is too small: moments of {d} features, {t} targets and {k} folds take {moments}, "
            f"and {held} batches of {least} are held. Pass at least {moments + held * least}, "
            f"fewer `batch_rows`, or dtype=torch.float32."
        )
    return (max_bytes - moments) // held


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def _bar(progress: bool, source: RowSource, done: int) -> Any:
    if not progress:
        return _Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(f"`progress` needs tqdm. {_check.install('tqdm', 'stream')}") from None
    return tqdm(total=source.n_rows, initial=done, desc="rows", unit=" rows", unit_scale=True)
