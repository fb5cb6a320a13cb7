"""Streamed moments against those of all rows at once, and passes that were interrupted against those that were not."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from files_of_rows import KINDS, NAMES, D, data, named, table, write_csv
from oracles import relative
from tolerances import SAME_SUMS

from torchridge import Moments, open_rows, ridge_cv, stream_moments
from torchridge.solvers.moments.folds import contiguous_folds
from torchridge.streams import RowSource, prefetch
from torchridge.streams.source import Batch

ALPHAS = torch.logspace(-2, 4, 30, dtype=torch.float64)


def assert_same(got: Moments, want: Moments) -> None:
    assert got.folds == want.folds and got.n_samples == want.n_samples
    for fold in want.folds or (None,):
        for a, b in zip(got.block(fold)[1:], want.block(fold)[1:], strict=True):
            assert relative(a, b) <= SAME_SUMS


def assert_equal(got: Moments, want: Moments) -> None:
    for fold in want.folds or (None,):
        for a, b in zip(got.block(fold), want.block(fold), strict=True):
            assert a.equal(b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_folds_of_a_column(kind: str, tmp_path: Path, device: torch.device) -> None:
    rows = data()
    got = stream_moments(open_rows(**named(kind, tmp_path, rows)), batch_rows=100, device=device)
    assert_same(got, Moments().update(*rows))
    assert got.gram.device.type == device.type


@pytest.mark.parametrize("batch_rows", [None, 1, 64, 400, 5000])
def test_contiguous_folds_are_those_of_ridge_cv(batch_rows: int | None, device: torch.device) -> None:
    rows = data(1003)
    source = open_rows(rows.X, target=rows.y)
    got = stream_moments(source, cv=5, batch_rows=batch_rows, device=device)
    assert_same(got, Moments().update(rows.X, rows.y, fold=contiguous_folds(1003, 5)))
    ours, whole = ridge_cv(got, alphas=ALPHAS), ridge_cv(rows.X, rows.y, ALPHAS, cv=5)
    assert ours.alpha == whole.alpha and relative(ours.weight, whole.weight) <= 1e-12


@pytest.mark.parametrize("batch_rows", [None, 3, 64, 1003])
@pytest.mark.parametrize("run", [1, 10, 256])
def test_dealt_folds_follow_the_row_number(batch_rows: int | None, run: int) -> None:
    rows = data(1003)
    got = stream_moments(open_rows(rows.X, target=rows.y), cv=3, fold_rows=run, batch_rows=batch_rows)
    assert_same(got, Moments().update(rows.X, rows.y, fold=torch.arange(1003) // run % 3))


@pytest.mark.parametrize("cuts", [[500], [1, 2, 3], list(range(10, 1000, 10))])
def test_batches_of_an_iterator_do_not_move_the_folds(cuts: list[int]) -> None:
    rows = data(1003)
    parts = zip(*(a.tensor_split(cuts) for a in rows[:3]), strict=True)
    got = stream_moments(iter(parts), cv=2)
    assert_same(got, Moments().update(*rows[:3], fold=torch.arange(1003) % 2))


class Breaking(RowSource):
    """A source that fails after some rows."""

    def __init__(self, source: RowSource, rows: int) -> None:
        self.inner, self.rows = source, rows
        self.n_features, self.n_targets, self.row_bytes = source.n_features, source.n_targets, source.row_bytes
        self.feature_names, self.target_names = source.feature_names, source.target_names

    @property
    def n_rows(self) -> int | None:
        return self.inner.n_rows

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        for batch in self.inner.batches(start, rows):
            start += len(batch.X)
            if start > self.rows:
                raise OSError("the disk is gone")
            yield batch

    def identity(self) -> dict[str, object]:
        return self.inner.identity()


@pytest.mark.parametrize("kind", ["csv", "npy", "parquet"])
@pytest.mark.parametrize("fold", [None, 5])
def test_a_resumed_pass_is_the_same_bit_for_bit(
    kind: str, fold: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchridge.streams.delimited.lines._BLOCK_BYTES", 5000)
    rows = data()
    options = {k: v for k, v in named(kind, tmp_path, rows).items() if k in ("source", "target")}
    if kind != "npy":
        options["features"] = NAMES[:D]
    path = tmp_path / "stream.safetensors"
    source = open_rows(**options)
    whole = stream_moments(source, cv=fold, batch_rows=70)
    with pytest.raises(OSError, match="the disk is gone"):
        stream_moments(Breaking(source, 600), cv=fold, batch_rows=70, checkpoint=path, checkpoint_every=2)
    assert path.exists()
    assert_equal(stream_moments(source, cv=fold, batch_rows=70, checkpoint=path), whole)
    unread = Breaking(source, 1003)  # all is done: nothing is read again
    assert_equal(stream_moments(unread, cv=fold, batch_rows=70, checkpoint=path), whole)
    assert [p.name for p in tmp_path.glob("*.part")] == []


def test_a_checkpoint_of_other_rows_or_options_is_refused(tmp_path: Path) -> None:
    rows, path = data(), tmp_path / "c.safetensors"
    csv = write_csv(tmp_path / "a.csv", table(rows))
    stream_moments(open_rows(csv, target="y"), cv=5, checkpoint=path)
    before = path.read_bytes()
    other = write_csv(tmp_path / "b.csv", table(rows)[:500])
    for source, fold in ((other, 5), (csv, 4), (csv, None)):
        with pytest.raises(ValueError, match="other rows or options"):
            stream_moments(open_rows(source, target="y"), cv=fold, checkpoint=path)
    path.write_bytes(before[:-5])
    with pytest.raises(ValueError, match="truncated"):
        stream_moments(open_rows(csv, target="y"), cv=5, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cv": 1}, "`cv` should be an integer of at least 2"),
        ({"fold_rows": 3}, "`fold_rows` has no use without `cv`"),
        ({"batch_rows": 0}, "`batch_rows` should be an integer of at least 1"),
        ({"max_bytes": 1000}, r"`max_bytes`=1000 is too small: moments of 7 features.*Pass at least"),
        ({"checkpoint_every": 0}, "`checkpoint_every`"),
        ({"cv": 5, "fold_rows": 600}, "fill only 2 folds"),
        ({"cv": 10**20}, f"`cv`={10**20}: the 1003 rows fill only 1003 folds"),
        ({"cv": 10**20, "fold_rows": 10}, "fill only 101 folds"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], message: str) -> None:
    rows = data()
    with pytest.raises(ValueError, match=message):
        stream_moments(open_rows(rows.X, target=rows.y), **options)


def test_bad_rows_are_refused() -> None:
    rows = data(1000)
    with pytest.raises(ValueError, match="have no targets"):
        stream_moments(open_rows(rows.X))
    with pytest.raises(ValueError, match="brings its own fold already"):
        stream_moments(open_rows(rows.X, target=rows.y, fold=rows.fold), cv=5)
    with pytest.raises(ValueError, match="`rows` is empty"):
        stream_moments([])
    with pytest.raises(TypeError, match="`rows` should be what `open_rows` returns"):
        stream_moments(rows.X)
    rows.X[777, 2] = torch.nan
    with pytest.raises(ValueError, match=r"rows from 700 to 799.*`X` holds NaN, first in row 77"):
        stream_moments(open_rows(rows.X, target=rows.y), batch_rows=100)
    used = iter([(rows.X[:5], rows.y[:5])])
    stream_moments(used)
    with pytest.raises(ValueError, match="is empty"):
        stream_moments(used)


def test_the_bound_on_memory_makes_batches_smaller_and_never_the_answer_other() -> None:
    rows = data()
    source = open_rows(rows.X, target=rows.y)
    least = int(np.ceil(11 * 8 * 7 * 8 + 40 * 2**20 + 4 * 64 * source.row_bytes))
    sizes: list[int] = []

    class Watched(Breaking):
        def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
            for batch in self.inner.batches(start, rows):
                sizes.append(len(batch.X))
                yield batch

    bounded = stream_moments(Watched(source, 0), cv=5, max_bytes=least)
    assert max(sizes) <= 80, "64 rows and what rounding of the estimate leaves"
    assert_same(bounded, stream_moments(source, cv=5))
    with pytest.raises(ValueError, match="too small"):
        stream_moments(source, cv=5, max_bytes=least - 20_000)


def test_a_first_batch_beyond_the_bound_is_refused_before_anything_is_summed() -> None:
    rows = data()
    with pytest.raises(ValueError, match=r"`max_bytes`=42000000 is too small"):
        stream_moments(iter([rows[:2]]), max_bytes=42_000_000)


def test_reading_runs_two_batches_ahead_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    stream = prefetch.ahead(numbers())
    assert next(stream) == 0
    stream.close()
    assert len(made) <= prefetch.HELD
    assert not any(t.name == "torchridge-rows" for t in threading.enumerate())


def test_batches_are_cut_and_joined_exactly() -> None:
    rows = data(100)
    stream = [Batch(rows.X[a:b], rows.y[a:b]) for a, b in ((0, 10), (10, 11), (11, 80), (80, 100))]
    cut = list(prefetch.regrouped(stream, 30))
    assert [len(b.X) for b in cut] == [30, 30, 30, 10]
    assert torch.cat([b.X for b in cut]).equal(rows.X)
    assert [len(b.X) for b in prefetch.regrouped(stream, None)] == [10, 1, 69, 20]


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    rows = data()
    stream_moments(open_rows(rows.X, target=rows.y), batch_rows=100, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "1.00k/1.00k" in err and "rows/s" in err


def test_a_vector_target_is_known_after_a_pass() -> None:
    rows = data()
    assert stream_moments(open_rows(rows.X, target=rows.y)).vector_target
    assert not stream_moments(open_rows(rows.X, target=rows.y[:, None])).vector_target
    single = stream_moments(open_rows(rows.X.float(), target=rows.y.float()))
    assert single.result_dtype is torch.float32 and single.gram.dtype is torch.float64


def test_a_row_with_nan_is_named_by_its_number_whatever_the_fold() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 5))
    rows[903, 2] = np.nan
    for fold in (None, 5):
        with pytest.raises(ValueError, match="`X` holds NaN, first in row") as caught:
            stream_moments(open_rows(rows, target=-1), cv=fold)
        first, inside = (int(n) for n in re.findall(r"from (\d+) to .* in row (\d+)", str(caught.value))[0])
        assert first + inside == 903
