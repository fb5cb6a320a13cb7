"""CSV: fast and careful parsing agree, blocks do not show, and what is wrong is named by line and column."""

import sys
from pathlib import Path

import numpy as np
import pytest
from files_of_rows import NAMES, D, data, table, write_csv

from torchridge import open_rows, stream_moments
from torchridge.streams import lines

TEXT = 'name,a,y\n"Doe, ""J""",1.5,2\n\n"two\nlines",-3e2, 4 \r\n\r\nx,.5,1\n'


def read(path: Path, **named: object) -> np.ndarray:
    batches = [np.column_stack([b.X, b.y]) for b in open_rows(path, target="y", **named)]
    return np.concatenate(batches)


def read_columns(path: Path, features: list[int], target: int) -> list[list[float]]:
    batches = [np.column_stack([b.X, b.y]) for b in open_rows(path, target=target, features=features)]
    return np.concatenate(batches).tolist()


@pytest.fixture(params=["pyarrow", "csv"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "csv":
        monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    return request.param


@pytest.mark.parametrize("block", [2**23, 64, 7])
def test_quotes_blank_lines_and_either_line_end(
    parser: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    (tmp_path / "a.csv").write_bytes(TEXT.encode())
    assert read(tmp_path / "a.csv", features="a").tolist() == [[1.5, 2], [-300, 4], [0.5, 1]]
    assert open_rows(tmp_path / "a.csv", target="y", features="a").n_rows == 3


@pytest.mark.parametrize("block", [2**23, 5000])
def test_both_parsers_give_the_numbers_that_were_written(
    parser: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    wanted = table(data(500))
    path = write_csv(tmp_path / "a.csv", wanted)
    assert np.array_equal(read(path, features=NAMES[:D]), wanted[:, : D + 1])


def test_a_file_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3\n4,5,6\n")
    source = open_rows(tmp_path / "a.csv", target=-1)
    assert source.feature_names == ("0", "1") and source.n_rows == 2
    assert open_rows(tmp_path / "a.csv", target=0, header=True).n_rows == 1


@pytest.mark.parametrize("cell", ["", " ", '""', "nan", "NaN", "NA", "n/a", "#N/A", "null", "None", "?"])
def test_a_first_row_with_a_missing_value_is_no_header(parser: str, cell: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{cell},2,3\n4,5,6\n7,8,9\n")
    source = open_rows(tmp_path / "a.csv", target=-1)
    assert source.n_rows == 3 and source.feature_names == ("0", "1")
    with pytest.raises(ValueError, match=r"line 1, column 1 \('0'\): expected a finite number"):
        list(source)
    assert read_columns(tmp_path / "a.csv", features=[1], target=2) == [[2, 3], [5, 6], [8, 9]]
    assert open_rows(tmp_path / "a.csv", target=-1, header=True).n_rows == 2


def test_an_index_without_a_name_beside_names_is_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",a,y\n0,1,2\n1,3,4\n")
    assert open_rows(tmp_path / "a.csv", target="y").feature_names == ("", "a")


@pytest.mark.parametrize(
    ("names", "message"),
    [("a,b,a,y", "'a' twice, columns 1 and 3"), ("a, b ,b,y", "'b' twice, columns 2"), (",,a,y", "'' twice")],
)
def test_names_that_stand_for_two_columns_are_refused(names: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{names}\n1,2,3,4\n")
    with pytest.raises(ValueError, match=f"a.csv names {message}.*Rename one"):
        open_rows(tmp_path / "a.csv", target="y")


BAD = {
    "1,x,3": r"line 7203, column 2 \('b'\): expected a finite number, got 'x'",
    "1,,3": r"line 7203, column 2 \('b'\): expected a finite number, got an empty cell",
    "1,nan,3": r"line 7203, column 2 \('b'\): expected a finite number, got 'nan'",
    "1,2,1_000": r"line 7203, column 3 \('y'\): expected a finite number, got '1_000'",
    "1,2": "line 7203: expected 3 cells, got 2",
    "1,2,3,4": "line 7203: expected 3 cells, got 4",
}


@pytest.mark.parametrize("line", BAD)
@pytest.mark.parametrize("block", [2**23, 1000])
def test_a_bad_line_is_named(
    parser: str, line: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    good = ["1,2,3"] * 9000
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(["a,b,y", "", *good[:7200], line, *good[7200:], ""]))
    with pytest.raises(ValueError, match=BAD[line]):
        list(open_rows(path, target="y"))


def test_columns_that_are_not_asked_for_may_hold_anything(parser: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,a,y\nfirst,1,2\n,3,4\n")
    assert read(tmp_path / "a.csv", features=["a"]).tolist() == [[1, 2], [3, 4]]


def test_a_file_with_other_line_ends_is_no_endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LONGEST_ROW", 1000)
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 100)
    (tmp_path / "a.csv").write_bytes(b"1,2\r" * 1000)
    with pytest.raises(ValueError, match=r"a.csv has no end of line"):
        open_rows(tmp_path / "a.csv", target=0)


def test_a_fold_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,g,y\n1,0,1\n2,0.9,3\n3,1,2\n")
    with pytest.raises(ValueError, match=r"`fold` should be a column of whole numbers, got 0\.9"):
        stream_moments(open_rows(file, target="y", fold="g"))
