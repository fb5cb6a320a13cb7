"""CSV: fast and careful parsing agree, blocks do not show, and what is wrong is named by line and column."""

import csv
import io
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from files_of_rows import NAMES, D, data, table, write_csv

from torchridge import open_rows, stream_moments
from torchridge.streams.delimited import lines

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


def test_rows_and_cells_are_those_of_pythons_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(0)
    for _ in range(5000):
        text = "".join(random.choice('"",,\nab1') for _ in range(random.randint(0, 40)))
        text = text.replace("\n", "\r\n") if random.random() < 0.3 else text
        monkeypatch.setattr(lines, "_BLOCK_BYTES", random.choice([1, 2, 3, 5, 1000]))
        blocks = list(lines.blocks(io.BytesIO(text.encode()), ",", "text"))
        got = [[c.decode() for c in cells] for block in blocks for _, cells in lines.rows(block, ",")]
        assert got == [row for row in csv.reader(io.StringIO(text, newline="")) if row], text
        assert sum(lines.count(block, ",") for block in blocks) == len(got), text


@pytest.mark.parametrize(
    "text",
    [
        'x,t,y\n1,5" pipe,2\n' + "i,abc,i\n" * 3000,
        "x,t,y\n" + '1,5" pipe,2\n' * 3000,
        "x,t,y\n" + '"1","a, ""b""\n",2\n' * 1500,
        'x,t,y\n1,"' + 'a ""b"" \n' * 3000 + '",2\n',
        "x,t,y\n1," + "a" * 30_000 + ",2\n",
        'x,t,y\n1,"never closed\n' + "1,2,3\n" * 5000,
    ],
)
def test_every_byte_is_looked_at_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, sizes = lines._last_end, []
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(lines, "_last_end", lambda data, *rest: sizes.append(len(data)) or kept(data, *rest))
    assert b"".join(lines.blocks(io.BytesIO(text.encode()), ",", "text")) == text.encode()
    assert sum(sizes) == len(text) and max(sizes) == 64


@pytest.mark.parametrize("text", ['5" pipe', 'a"b"c', '6"4""', '""', "a" * 200_000, '"' + "a\n" * 100_000 + '"'])
def test_quotes_in_text_and_long_cells_do_no_harm_to_the_numbers(parser: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"x,t,y\n1,{text},2\n3,c,4\n")
    assert read(tmp_path / "a.csv", features="x").tolist() == [[1, 2], [3, 4]]
    assert open_rows(tmp_path / "a.csv", target="y", features="x").n_rows == 2


def test_a_quote_that_is_never_closed_is_named(parser: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,t,y\n1,"a,2\n3,c,4\n')
    with pytest.raises(ValueError, match=r"a\.csv, line 2: expected 3 cells, got 2"):
        read(tmp_path / "a.csv", features="x")


def test_a_wide_table(parser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 5000)
    matrix = np.arange(20 * 700.0).reshape(20, 700)
    names = [f"c{i}" for i in range(700)]
    path = write_csv(tmp_path / "a.csv", matrix, names)
    batches = list(open_rows(path, target="c9"))
    assert np.array_equal(np.concatenate([b.X for b in batches]), np.delete(matrix, 9, 1))
    path.write_text(path.read_text().replace("13999", "", 1))  # the last cell
    with pytest.raises(ValueError, match=r"a.csv, line 21, column 700 \('c699'\).*an empty cell"):
        list(open_rows(path, target="c9"))


def test_a_fold_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,g,y\n1,0,1\n2,0.9,3\n3,1,2\n")
    with pytest.raises(ValueError, match=r"`fold` should be a column of whole numbers, got 0\.9"):
        stream_moments(open_rows(file, target="y", fold="g"))
