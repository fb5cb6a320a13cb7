"""Data frames and streams of named columns, against the tensors that they hold."""

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from files_of_rows import NAMES, D, data, table
from oracles import relative
from tolerances import SAME_SUMS

from torchridge import Moments, open_rows, ridge, ridge_cv, stream_moments

ROWS = data(301)
COLUMNS = dict(zip(NAMES, table(ROWS).T, strict=True))
ROLES = {"target": "y", "sample_weight": "w", "fold": "fold"}
CUTS = (0, 100, 101, 301)
MADE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "pandas": pd.DataFrame,
    "pandas nullable": lambda c: pd.DataFrame(c).convert_dtypes(),
    "polars": pl.DataFrame,
    "pyarrow": pa.table,
    "mapping": dict,
}


def parts(make: Callable[[dict[str, Any]], Any]) -> list[Any]:
    return [make({n: c[a:b] for n, c in COLUMNS.items()}) for a, b in itertools.pairwise(CUTS)]


SOURCES: dict[str, Callable[[], Any]] = {
    **{name: lambda make=make: make(COLUMNS) for name, make in MADE.items()},
    **{f"a list of {name}": lambda make=make: parts(make) for name, make in MADE.items()},
    **{f"a stream of {name}": lambda make=make: iter(parts(make)) for name, make in MADE.items()},
    "record batches": lambda: iter(pa.table(COLUMNS).to_batches(max_chunksize=70)),
    "chunks of a CSV": lambda: pd.read_csv(io.StringIO(pd.DataFrame(COLUMNS).to_csv(index=False)), chunksize=90),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_columns_are_found_by_their_names(kind: str) -> None:
    got, want = stream_moments(open_rows(SOURCES[kind](), **ROLES)), Moments().update(*ROWS)
    assert got.folds == want.folds and got.vector_target
    for k in want.folds:
        for a, b in zip(got.block(k)[1:], want.block(k)[1:], strict=True):
            assert relative(a, b) <= SAME_SUMS
    some = stream_moments(open_rows(SOURCES[kind](), target=["y"], features=["x2", "x0"]))
    assert relative(some.gram, Moments().update(ROWS.X[:, [2, 0]], ROWS.y).gram) <= SAME_SUMS


def test_a_frame_knows_its_rows_and_names() -> None:
    source = open_rows(pd.DataFrame(COLUMNS), **ROLES)
    assert (source.n_rows, source.n_features, source.feature_names) == (301, D, tuple(NAMES[:D]))
    assert torch.cat([b.X for b in source.batches(10, 50)]).equal(ROWS.X[10:])
    singles = pl.DataFrame({"a": np.ones(3, np.float32), "e": np.ones((3, 4), np.float32), "y": np.ones(3)})
    batch = next(iter(open_rows(singles, target="y")))
    assert batch.X.dtype is torch.float32 and batch.X.shape == (3, 5)


def test_mappings_of_X_and_y_need_no_names() -> None:
    whole = {"X": ROWS.X, "y": ROWS.y, "sample_weight": ROWS.weight, "fold": ROWS.fold}
    got = stream_moments([{k: v[a:b] for k, v in whole.items()} for a, b in itertools.pairwise(CUTS)])
    assert relative(got.gram, Moments().update(*ROWS).gram) <= SAME_SUMS


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("streamed", [False, True])
def test_text_and_missing_cells_are_refused_by_name(make: Callable[[Any], Any], streamed: bool) -> None:
    for cells, message in (
        (["a", "b", "c"], "column 'bad' holds .*; expected numbers"),
        ([1.0, None, 2.0], "column 'bad': row 1 has no"),
        ([1.0, 2.0, float("inf")], "column 'bad': row 2 h"),
    ):
        frame = make({"x": [1.0, 2.0, 3.0], "bad": cells, "y": [1.0, 2.0, 4.0]})
        with pytest.raises(ValueError, match=message):
            stream_moments(open_rows(iter([frame]) if streamed else frame, target="y"))
        stream_moments(open_rows(iter([frame]) if streamed else frame, target="y", features=["x"]))


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_columns_without_a_role_are_refused_with_what_to_do(make: Callable[[Any], Any]) -> None:
    frame = make({"u": [1.0], "v": [2.0]})
    with pytest.raises(ValueError, match=r"nothing says which are targets.*open_rows"):
        stream_moments([frame])
    with pytest.raises(ValueError, match="has no column 'z'; its columns are 'u', 'v'"):
        stream_moments(open_rows(iter([frame]), target="z"))


def test_tensors_in_a_stream_have_no_names() -> None:
    with pytest.raises(ValueError, match="`target` has no use for an iterable of batches, which bring their own"):
        stream_moments(open_rows(iter([(ROWS.X, ROWS.y)]), target="y"))


@pytest.mark.parametrize(("make", "convert"), [(pd.DataFrame, "pandas"), (pl.DataFrame, "polars")])
def test_solvers_of_tensors_say_where_frames_go_and_the_advice_works(make: Any, convert: str) -> None:
    frame = make({"a": [1.0, 2.0, 3.0, 5.0], "y": [1.0, 2.0, 3.0, 4.0]})
    for call in (lambda: ridge_cv(frame[["a"]], frame["y"]), lambda: ridge(frame[["a"]], frame["y"], 1.0)):
        with pytest.raises(
            TypeError, match=rf"`X` should be a torch.Tensor, got a {convert} DataFrame.*estimators"
        ) as e:
            call()
    advice = str(e.value).rpartition("e.g. `")[2].removesuffix("`.")
    X = eval(advice, {"torch": torch, "X": frame[["a"]]})
    assert X.dtype is torch.float64 and X.shape == (4, 1)
