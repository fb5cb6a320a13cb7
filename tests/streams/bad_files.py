"""Files that are damaged, cut, crafted or of another kind, under the name of every kind that is read."""

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

CSV = b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (i, i * i % 7, i) for i in range(50))


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_header(text: str, body: bytes = b"\0" * 480) -> bytes:
    head = text.encode("latin1") + b" " * (118 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


def safetensors(header: Any, body: bytes = b"\0" * 128) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(start: Any, stop: Any, shape: Any = (4, 2), dtype: Any = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def arrow_bytes(kind: str, **columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    columns = columns or {"a": np.arange(500.0), "b": np.arange(500.0), "y": np.arange(500.0)}
    file = io.BytesIO()
    if kind == "parquet":
        pa.parquet.write_table(pa.table(columns), file)
    else:
        pa.feather.write_feather(pa.table(columns), file, compression="uncompressed")
    return file.getvalue()


def flipped(content: bytes, at: int, to: bytes = b"\xff\xff\xff\xff") -> bytes:
    at %= len(content)
    return content[:at] + to + content[at + len(to) :]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", CSV)
    return file.getvalue()


GOOD = b'{"X": 1}'
TWO = {"X": entry(0, 64), "y": entry(64, 128)}
DEEP = b'{"X":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GZ = gzip.compress(CSV)
HEAD = "{'descr': '<f8', 'fortran_order': False, 'shape': (20, 3), }"

# Under the file's name: its bytes, and what the error says after the name of the file.
CASES: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n\n\n", "is empty or starts with an empty line"),
    "gzip.csv": (GZ, "is not CSV, but gzip"),
    "utf16.csv": (CSV.decode().encode("utf-16"), "is not CSV, but UTF-16"),
    "utf16be.csv": (b"\xfe\xff" + CSV.decode().encode("utf-16-be"), "is not CSV, but UTF-16"),
    "zip.csv": (zipped(), "is not CSV, but a zip archive"),
    "npy.csv": (npy(np.ones((3, 2))), "is not CSV, but an array"),
    "parquet.csv": (lambda: arrow_bytes("parquet"), "is not CSV, but Parquet"),
    "returns.csv": (CSV.replace(b"\n", b"\r"), "line 1: a carriage return"),
    "return.csv": (CSV + b"1,2\r3\n", "line 52: a carriage return"),
    "nul.csv": (CSV + b"1,\0,3\n", "line 52, column 2"),
    "nul_header.csv": (b"a\0,b,y\n\0,1,2\n" * 3, "line 2, column 1"),
    "binary.csv": (b"a,b,y\n" + (bytes(range(14, 256)) * 3 + b"\n") * 3, "line 2"),
    "text.csv": (CSV + b"x,2,3\n", "line 52, column 1 ('a'): expected a finite number, got 'x'"),
    "hole.csv": (CSV + b"1,,3\n", "line 52, column 2 ('b'): expected a finite number, got an empty cell"),
    "nan.csv": (CSV + b"1,nan,3\n", "line 52, column 2"),
    "inf.csv": (CSV + b"1,2,1e999\n", "line 52, column 3"),
    "short.csv": (CSV + b"1,2\n", "line 52: expected 3 cells, got 2"),
    "long.csv": (CSV + b"1,2,3,4\n", "line 52: expected 3 cells, got 4"),
    "open_quote.csv": (CSV + b'1,"2,3\n4,5,6\n', "line 52: expected 3 cells, got 2"),
    "long_cell.csv": (CSV + b"1," + b"z" * 200_000 + b",3\n", "line 52, column 2"),
    "long_quoted_cell.csv": (CSV + b'1,"' + b"z\n" * 100_000 + b'",3\n', "line 52, column 2"),
    "after_a_quote.csv": (CSV + b'1,"2\n",3\n1,x,3\n', "line 54, column 2"),
    "twins.csv": (b"a,a,y\n1,2,3\n", "names 'a' twice"),
    "no_y.csv": (b"a,b,z\n1,2,3\n", "has no column 'y'"),
    "semicolons.csv": (CSV.replace(b",", b";"), "has no column 'y'"),
    "hole.tsv": (CSV.replace(b",", b"\t") + b"1\t\t3\n", "line 52, column 2"),
    "hole.txt": (CSV + b"1,,3\n", "line 52, column 2"),
    "empty.csv.gz": (b"", "is empty"),
    "cut.csv.gz": (GZ[:-12], "is truncated or damaged gzip"),
    "cut_head.csv.gz": (GZ[:5], "is truncated or damaged gzip"),
    "plain.csv.gz": (CSV, "is truncated or damaged gzip"),
    "flipped.csv.gz": (flipped(GZ, 40), "is truncated or damaged gzip"),
    "checksum.csv.gz": (flipped(GZ, -8), "is truncated or damaged gzip"),
    "length.csv.gz": (flipped(GZ, -4), "is truncated or damaged gzip"),
    "trailing.csv.gz": (GZ + b"rubbish", "is truncated or damaged gzip"),
    "text.csv.gz": (gzip.compress(CSV + b"x,2,3\n"), "line 52, column 1"),
    "empty.npy": (b"", "is not a .npy file"),
    "magic.npy": (b"\x93NUMPY", "is not a .npy file"),
    "csv.npy": (CSV, "is not a .npy file"),
    "npz.npy": (npz(), "is an archive of arrays"),
    "version.npy": (flipped(npy(np.ones((20, 3))), 6, b"\x09"), "is not a .npy file"),
    "cut_head.npy": (npy(np.ones((20, 3)))[:50], "is not a .npy file"),
    "cut.npy": (npy(np.ones((20, 3)))[:-8], "is not a .npy file"),
    "mangled.npy": (npy_header(HEAD.replace("'shape'", "'shape")), "is not a .npy file"),
    "open_bracket.npy": (npy_header(HEAD.replace("(20, 3)", "((20, 3")), "is not a .npy file"),
    "brackets.npy": (npy_header("(" * 110), "is not a .npy file"),
    "code.npy": (npy_header("__import__('os').getcwd()"), "is not a .npy file"),
    "keys.npy": (npy_header("{'descr': '<f8'}"), "is not a .npy file"),
    "list.npy": (npy_header("[1, 2, 3]"), "is not a .npy file"),
    "huge.npy": (npy_header(HEAD.replace("20", "2" * 15)), "is not a .npy file"),
    "negative.npy": (npy_header(HEAD.replace("20", "-20")), "is not a .npy file"),
    "descr.npy": (npy_header(HEAD.replace("<f8", "zz")), "is not a .npy file"),
    "utf8.npy": (npy_header(HEAD + "\xff\xfe"), "is not a .npy file"),
    "object.npy": (npy(np.array([{}], dtype=object), allow_pickle=True), "is not a .npy file"),
    "text.npy": (npy(np.array([["a", "b"]])), "should hold real numbers"),
    "complex.npy": (npy(np.ones((4, 3), complex)), "should hold real numbers"),
    "structured.npy": (npy(np.zeros(4, [("a", "f8"), ("b", "f8")])), "should hold real numbers"),
    "dates.npy": (npy(np.zeros((4, 3), "M8[s]")), "should hold real numbers"),
    "scalar.npy": (npy(np.float64(3)), "should have one or two dimensions"),
    "vector.npy": (npy(np.ones(9)), "should have shape"),
    "cube.npy": (npy(np.ones((2, 3, 4))), "should have one or two dimensions"),
    "nan.npy": (npy(np.where(np.arange(60).reshape(20, 3) == 31, np.nan, 1.0)), "numbered from there: `X` holds NaN"),
    "empty.safetensors": (b"", "is truncated or not a safetensors"),
    "cut_length.safetensors": (b"\x10\0\0", "is truncated or not a safetensors"),
    "csv.safetensors": (CSV, "is truncated or not a safetensors"),
    "huge_length.safetensors": (b"\xff" * 8 + b"{}", "is truncated or not a safetensors"),
    "no_json.safetensors": (safetensors(b"{'X': 1}"), "is truncated or not a safetensors"),
    "list.safetensors": (safetensors([1, 2]), "is truncated or not a safetensors"),
    "number.safetensors": (safetensors(GOOD), "is truncated or not a safetensors"),
    "deep.safetensors": (safetensors(DEEP), "is truncated or not a safetensors"),
    "utf8.safetensors": (safetensors(b'{"\xff": 1}'), "is truncated or not a safetensors"),
    "cut.safetensors": (safetensors(TWO)[:-1], "is truncated or not a safetensors"),
    "trailing.safetensors": (safetensors(TWO, b"\0" * 129), "is truncated or not a safetensors"),
    "overlap.safetensors": (safetensors({"X": entry(0, 64), "y": entry(32, 96)}), "is truncated or not a safetensors"),
    "same.safetensors": (safetensors({"X": entry(0, 64), "y": entry(0, 64)}), "is truncated or not a safetensors"),
    "gap.safetensors": (safetensors({"X": entry(0, 64), "y": entry(72, 136)}, b"\0" * 136), "is truncated or no"),
    "late.safetensors": (safetensors({"X": entry(8, 72)}, b"\0" * 72), "is truncated or not a safetensors"),
    "negative.safetensors": (safetensors({"X": entry(-64, 0), "y": entry(0, 64)}), "is truncated or not a safetensors"),
    "backward.safetensors": (safetensors({"X": entry(64, 0)}), "is truncated or not a safetensors"),
    "float.safetensors": (safetensors({"X": entry(0.0, 64.0)}), "is truncated or not a safetensors"),
    "true.safetensors": (safetensors({"X": entry(0, 64, [True, 8])}), "is truncated or not a safetensors"),
    "text.safetensors": (safetensors({"X": entry("0", "64")}), "is truncated or not a safetensors"),
    "shape.safetensors": (safetensors({"X": entry(0, 64, (5, 2)), "y": entry(64, 128)}), "is truncated or no"),
    "minus_shape.safetensors": (safetensors({"X": entry(0, 64, (-4, -2))}), "is truncated or not a safetensors"),
    "no_offsets.safetensors": (safetensors({"X": {"dtype": "F64", "shape": [4, 2]}}), "is truncated or no"),
    "three_offsets.safetensors": (
        safetensors({"X": {"dtype": "F64", "shape": [4, 2], "data_offsets": [0, 1, 2]}}),
        "is truncated or not a safetensors",
    ),
    "twice.safetensors": (safetensors(b'{"X": 1, "X": 2}'), "is truncated or not a safetensors"),
    "f8.safetensors": (safetensors({"X": entry(0, 128, (16, 8), "F8_E5M2")}), "`features` should name one of"),
    "empty.parquet": (b"", "is truncated, damaged"),
    "csv.parquet": (CSV, "is truncated, damaged"),
    "magic.parquet": (b"PAR1PAR1", "is truncated, damaged"),
    "cut.parquet": (lambda: arrow_bytes("parquet")[:-20], "is truncated, damaged"),
    "footer.parquet": (lambda: flipped(arrow_bytes("parquet"), -60), "is truncated, damaged"),
    "footer_size.parquet": (lambda: flipped(arrow_bytes("parquet"), -8), "is truncated, damaged"),
    "pages.parquet": (lambda: flipped(arrow_bytes("parquet"), 4, b"\xff" * 60), "is truncated, damaged"),
    "text.parquet": (lambda: arrow_bytes("parquet", a=["x"], y=[1.0]), "column 'a' holds string"),
    "hole.parquet": (lambda: arrow_bytes("parquet", a=[1.0, None], y=[1.0, 2.0]), "column 'a': row 1 has no value"),
    "nan.parquet": (lambda: arrow_bytes("parquet", a=[1.0, np.nan], y=[1.0, 2.0]), "column 'a': row 1 holds nan"),
    "lists.parquet": (lambda: arrow_bytes("parquet", a=[[1.0], [1.0, 2.0]], y=[1.0, 2.0]), "differ in length"),
    "nested.parquet": (lambda: arrow_bytes("parquet", a=[[[1.0]]], y=[1.0]), "expected numbers"),
    "no_rows.parquet": (lambda: arrow_bytes("parquet", a=np.ones(0), y=np.ones(0)), "holds no rows"),
    "no_y.parquet": (lambda: arrow_bytes("parquet", a=[1.0], z=[1.0]), "has no column 'y'"),
    "empty.feather": (b"", "is truncated, damaged"),
    "csv.feather": (CSV, "is truncated, damaged"),
    "magic.feather": (b"ARROW1\0\0ARROW1", "is truncated, damaged"),
    "cut.feather": (lambda: arrow_bytes("feather")[:-30], "is truncated, damaged"),
    "half.arrow": (lambda: arrow_bytes("feather")[:4000], "is truncated, damaged"),
    "footer.arrow": (lambda: flipped(arrow_bytes("feather"), -40), "is truncated, damaged"),
    "footer_size.arrow": (lambda: flipped(arrow_bytes("feather"), -10), "is truncated, damaged"),
    "text.feather": (lambda: arrow_bytes("feather", a=["x"], y=[1.0]), "column 'a' holds string"),
    "hole.feather": (lambda: arrow_bytes("feather", a=[1.0, None], y=[1.0, 2.0]), "column 'a': row 1 has no value"),
}
