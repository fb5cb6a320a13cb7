"""A folder of Parquet files is one table; over ranks, its row groups are those of one process."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from files_of_rows import NAMES, D, data, table
from oracles import relative
from ranks import outcomes
from tolerances import SAME_SUMS

from torchridge import Moments, open_rows, ridge_cv, stream_moments
from torchridge.distributed import all_reduce
from torchridge.exceptions import RankError
from torchridge.solvers.moments.folds import contiguous_folds

N, SIZES, GROUP = 1003, (400, 1, 350, 252), 90


def write_folder(folder: Path) -> Path:
    """Four files of uneven length, in row groups, with what other tools leave beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows, at = table(data(N)), 0
    for i, size in enumerate(SIZES):
        part = rows[at : at + size]
        columns = dict(zip(NAMES, part.T, strict=True))
        pq.write_table(pa.table(columns), folder / f"part-{i}.parquet", row_group_size=GROUP)
        at += size
    (folder / "_SUCCESS").touch()
    (folder / "_metadata.parquet").write_bytes(b"not rows")
    return folder


@pytest.mark.parametrize("pattern", ["", "part-*.parquet", "*.parquet"])
def test_a_folder_or_a_pattern_is_the_files_one_after_the_other(pattern: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rows")
    if pattern == "*.parquet":
        (folder / "_metadata.parquet").unlink()
    source = open_rows(folder / pattern, target="y", sample_weight="w", fold="fold")
    rows = data(N)
    assert (source.n_rows, source.n_features, source.feature_names) == (N, D, tuple(NAMES[:D]))
    for start, size in ((0, None), (0, 100), (399, 7), (400, 1), (401, None), (1002, None), (1003, None)):
        got = list(source.batches(start, size))
        assert sum(len(b.X) for b in got) == N - start
        for name in ("X", "y", "sample_weight", "fold") if got else ():
            want = rows.weight if name == "sample_weight" else getattr(rows, name)
            assert torch.cat([getattr(b, name) for b in got]).equal(want[start:])


def test_what_the_folders_say_is_a_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.dataset as ds

    whole = pa.table({"year": [2020, 2020, 2021], "x": [1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0]})
    partitioning = ds.partitioning(pa.schema([("year", pa.int32())]), flavor="hive")
    ds.write_dataset(whole, tmp_path / "by_year", format="parquet", partitioning=partitioning)
    batches = list(open_rows(tmp_path / "by_year", target="y", features=["year", "x"]))
    assert np.concatenate([b.X for b in batches]).tolist() == [[2020, 1], [2020, 2], [2021, 3]]


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "rows"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"rows' holds no \.parquet file"):
        open_rows(folder, target="y")
    with pytest.raises(FileNotFoundError, match=r"no file matches .*none-\*"):
        open_rows(folder / "none-*.parquet", target="y")
    pq.write_table(pa.table({"a": [1.0], "y": [1.0]}), folder / "1.parquet")
    pq.write_table(pa.table({"a": [1.0, None], "y": [1.0, 2.0]}), folder / "2.parquet")
    with pytest.raises(ValueError, match=r"2.parquet, column 'a': row 1 has no value"):
        list(open_rows(folder, target="y"))
    pq.write_table(pa.table({"b": [1.0], "y": [1.0]}), folder / "2.parquet")
    with pytest.raises(ValueError, match=r"2.parquet has no column 'a', which 1.parquet has"):
        open_rows(folder, target="y")
    (folder / "2.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ValueError, match=r"2.parquet is truncated"):
        open_rows(folder, target="y")


def over_ranks() -> None:
    folder, rows = Path(os.environ["TORCHRIDGE_TEST_FOLDER"]) / "rows", data(N)
    columns = {"target": "y", "features": NAMES[:D]}
    for ranks in (1, 2, 3):
        group = dist.new_group(list(range(ranks)))
        if dist.get_rank() >= ranks:
            continue
        mine = open_rows(folder, **columns, process_group=group)
        assert ranks == 1 or 0 < (mine.n_rows or 0) < N
        for fold, ids in ((None, None), (5, contiguous_folds(N, 5))):
            moments = stream_moments(mine, cv=fold, batch_rows=64)
            got, want = all_reduce(moments, group), Moments().update(rows.X, rows.y, fold=ids)
            assert got.n_samples == N and got.folds == want.folds
            for k in want.folds or (None,):
                for a, b in zip(got.block(k)[1:], want.block(k)[1:], strict=True):
                    assert relative(a, b) <= SAME_SUMS
        ours, whole = ridge_cv(moments, process_group=group), ridge_cv(rows.X, rows.y, cv=5)
        assert relative(ours.weight, whole.weight) <= 1e-10
    single = open_rows(folder / "part-1.parquet", **columns, process_group="world")  # one row: two ranks have none
    assert all_reduce(stream_moments(single)).n_samples == 1
    with pytest.raises(
        ValueError if dist.get_rank() == 0 else RankError, match="`process_group` spreads the row groups"
    ):
        open_rows(np.ones((3, 2)) if dist.get_rank() == 0 else folder, target=0, process_group="world")
    name = "part-0.parquet" if dist.get_rank() else "missing.parquet"
    with pytest.raises(RankError if dist.get_rank() else FileNotFoundError, match="no file"):
        open_rows(folder / name, **columns, process_group="world")


@pytest.mark.slow
def test_row_groups_over_one_two_and_three_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHRIDGE_TEST_FOLDER", str(tmp_path))
    write_folder(tmp_path / "rows")
    assert outcomes(over_ranks, tmp_path, 3, seconds=60) == [(r, None) for r in range(3)]
