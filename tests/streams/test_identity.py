"""A checkpoint belongs to the rows that it was written for: what is read, in which role, from which content."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files_of_rows import D, data, table, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader, TensorDataset

from torchridge import open_rows, stream_moments
from torchridge.streams import RowSource
from torchridge.streams.source import Batch

Make = Callable[[], Any]


def content(source: RowSource) -> list[Any]:
    """What a source gives, to the bit, in the batches it gives it in."""
    return [
        [None if a is None else (tuple(a.shape), str(a.dtype), a.contiguous().numpy().tobytes()) for a in batch]
        for batch in source.batches()
    ]


def variants(folder: Path) -> list[Make]:
    """Sources that differ in a cell, a column, a role, a dtype, a shape or a cut, by several readers."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    base = np.arange(60.0).reshape(12, 5)
    changed, one_less = base.copy(), base[:-1]
    changed[7, 3] += 1
    made: list[Make] = []
    roles: tuple[dict[str, Any], ...] = (
        {"target": 4},
        {"target": [4]},
        {"target": 0},
        {"target": 4, "features": [0, 1]},
        {"target": 4, "features": [1, 0]},
        {"target": 4, "sample_weight": 3},
        {"target": 4, "fold": 3},
        {"target": 3, "sample_weight": 4},
        {"target": [3, 4]},
        {},
    )
    for i, matrix in enumerate((base, changed, one_less, base[:, ::-1], base.astype(np.float32))):
        csv, npy, parquet = folder / f"{i}.csv", folder / f"{i}.npy", folder / f"{i}.parquet"
        write_csv(csv, matrix, list("abcde"))
        np.save(npy, matrix)
        pq.write_table(pa.table(dict(zip("abcde", matrix.T, strict=True))), parquet)
        tensors = folder / f"{i}.safetensors"
        whole = torch.from_numpy(matrix.copy())
        save_file({"X": whole, "Z": whole[:, :2].clone(), "y": whole[:, 4].clone(), "w": whole[:, 3].clone()}, tensors)
        for role in roles:
            for source in (csv, npy, parquet, matrix):
                made.append(lambda source=source, role=role: open_rows(source, **role))
        for role in (
            {"target": "y", "features": "X"},
            {"target": "w", "features": "X"},
            {"target": "y", "features": "Z"},
        ):
            made.append(lambda source=tensors, role=role: open_rows(source, **role))
        made.append(lambda source=tensors: open_rows(source, target="y", features="X", sample_weight="w"))
        for cut in (12, 5):
            parts = [(matrix[:cut], matrix[:cut, 0]), (matrix[cut:], matrix[cut:, 0])][: 1 + (cut < 12)]
            made.append(lambda parts=parts: open_rows(parts))
            made.append(lambda parts=parts: open_rows([(*p, np.ones(len(p[0]))) for p in parts]))
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Make]:
    return variants(tmp_path_factory.mktemp("sources"))


def told(source: RowSource) -> str:
    return json.dumps(source.identity(), sort_keys=True)


def test_other_batches_have_another_identity_and_the_same_source_keeps_its_own(sources: list[Make]) -> None:
    by_identity: dict[str, Any] = {}
    for make in sources:
        assert told(make()) == told(make())
        assert by_identity.setdefault(told(make()), content(make())) == content(make())
    assert len(by_identity) > 150


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_arrays_of_any_values_and_roles(data: st.DataObject) -> None:
    cells = st.floats(width=32, allow_nan=False, allow_infinity=False)
    shapes = st.tuples(st.integers(1, 4), st.just(4))
    matrices = [data.draw(arrays(np.float64, shapes, elements=cells)) for _ in range(2)]
    columns = st.permutations(range(4))
    drawn = [data.draw(columns) for _ in range(2)]
    one, other = (open_rows(m, target=c[0], features=c[1:]) for m, c in zip(matrices, drawn, strict=True))
    if told(one) == told(other):
        assert content(one) == content(other)
    assert told(one) == told(open_rows(matrices[0].copy(), target=drawn[0][0], features=drawn[0][1:]))


def npy(folder: Path, matrix: np.ndarray, name: str = "r.npy") -> Path:
    np.save(folder / name, matrix)
    return folder / name


MATRIX = table(data(300))


def rewritten(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file anew with the time of the old one."""
    before = path.stat()
    write(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


class Fresh:
    """An iterable that begins anew each time, and is no list."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class OfUsers(RowSource):
    """A source that says nothing of its content."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = torch.from_numpy(matrix)

    @property
    def n_rows(self) -> int:
        return len(self.matrix)

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        yield from (Batch(part[:, :-1], part[:, -1]) for part in self.matrix[start:].split(rows or 100))


def loader(seed: int) -> Any:
    rows = data(300)
    shuffled = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(rows.X, rows.y), batch_size=50, shuffle=True, generator=shuffled)


def pairs(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Rows, and others that are not to be taken for them."""
    from safetensors.torch import save_file

    r, other = npy(folder, MATRIX), MATRIX.copy()
    other[150, 2] += 1
    save_file({"X": torch.ones(50, 2), "Z": torch.rand(50, 2), "y": torch.rand(50)}, folder / "t.safetensors")
    csv = write_csv(folder / "r.csv", MATRIX)
    X, y = MATRIX[:, :3], MATRIX[:, 3]
    return {
        "target": (lambda: open_rows(r, target=7), lambda: open_rows(r, target=0)),
        "features": (
            lambda: open_rows(csv, target="y", features="x0"),
            lambda: open_rows(csv, target="y", features="x1"),
        ),
        "tensors": (
            lambda: open_rows(folder / "t.safetensors", features="X", target="y"),
            lambda: open_rows(folder / "t.safetensors", features="Z", target="y"),
        ),
        "weight": (lambda: open_rows(X, target=y), lambda: open_rows(X, target=y, sample_weight=MATRIX[:, 8])),
        "array": (lambda: open_rows(X, target=y), lambda: open_rows(X + 1, target=y)),
        "list": (lambda: [(X, y)], lambda: [(X, y + 1)]),
        "list of another d": (lambda: [(X, y)], lambda: [(X[:, :2], y)]),
        "generator": (lambda: iter([(X, y)]), lambda: iter([(X + 1, y)])),
        "generator of another d": (lambda: iter([(X, y)]), lambda: iter([(X[:, :2], y)])),
        "shorter generator": (lambda: iter([(X, y)]), lambda: iter([(X[:9], y[:9])])),
        "other cuts": (lambda: Fresh((X, y)), lambda: Fresh((X[:9], y[:9]), (X[9:], y[9:]))),
        "iterable": (lambda: Fresh((X, y)), lambda: Fresh((X, y + 1))),
        "loader": (lambda: loader(0), lambda: loader(1)),
        "of a user": (lambda: OfUsers(MATRIX), lambda: OfUsers(other)),
        "rewritten npy": (
            lambda: open_rows(npy(folder, MATRIX, "w.npy"), target=7),
            lambda: open_rows(rewritten(folder / "w.npy", lambda p: np.save(p, other)), target=7),
        ),
        "rewritten csv": (
            lambda: open_rows(write_csv(folder / "w.csv", MATRIX), target="y"),
            lambda: open_rows(rewritten(folder / "w.csv", lambda p: write_csv(p, other)), target="y"),
        ),
    }


CASES = [
    *("target", "features", "tensors", "weight", "array", "list", "list of another d", "generator"),
    *("generator of another d", "shorter generator", "other cuts", "iterable", "loader", "of a user"),
    *("rewritten npy", "rewritten csv"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_other_data_is_refused_and_of_the_same_is_taken(case: str, tmp_path: Path) -> None:
    one, other = pairs(tmp_path)[case]
    first = stream_moments(one(), checkpoint=tmp_path / "c.st")
    again = stream_moments(one(), checkpoint=tmp_path / "c.st")
    assert first.gram.equal(again.gram) and first.n_samples == again.n_samples
    before = (tmp_path / "c.st").read_bytes()
    with pytest.raises(ValueError, match=r"`checkpoint`: c.st was written for other rows or options"):
        stream_moments(other(), checkpoint=tmp_path / "c.st")
    assert (tmp_path / "c.st").read_bytes() == before


def pipe(text: bytes, monkeypatch: pytest.MonkeyPatch) -> RowSource:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    return open_rows("-", target="y")


def test_a_pipe_is_known_by_the_rows_that_came_out_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{i},{i * i % 7}\n" for i in range(200)]
    text, other = ("a,y\n" + "".join(lines)).encode(), ("a,y\n9,9\n" + "".join(lines[1:])).encode()
    path, options = tmp_path / "c.st", {"batch_rows": 30, "checkpoint_every": 1}
    whole = stream_moments(pipe(text, monkeypatch), **options)
    monkeypatch.setattr("torchridge.streams.checkpoint.write", interrupt_after(3))
    with pytest.raises(KeyboardInterrupt):
        stream_moments(pipe(text, monkeypatch), checkpoint=path, **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="rows that it holds differ"):
        stream_moments(pipe(other, monkeypatch), checkpoint=path, **options)
    assert stream_moments(pipe(text, monkeypatch), checkpoint=path, **options).gram.equal(whole.gram)


def interrupt_after(writes: int) -> Callable[..., None]:
    from torchridge.streams import checkpoint

    kept, left = checkpoint.write, [writes]

    def write(*arguments: Any) -> None:
        kept(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return write


def test_a_large_file_is_known_by_a_sample_and_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchridge._files.content._WHOLE_BYTES", 1000)
    path = npy(tmp_path, MATRIX)
    known = open_rows(path, target=7).identity()
    assert open_rows(path, target=7).identity() == known and known["changed"]
    last = MATRIX.copy()
    last[-1, 0] += 1  # the last row is in every sample
    rewritten(path, lambda p: np.save(p, last))
    assert open_rows(path, target=7).identity() != known


def test_a_file_under_another_name_is_the_same_rows(tmp_path: Path) -> None:
    one, other = npy(tmp_path, MATRIX), npy(tmp_path, MATRIX, "moved.npy")
    want = stream_moments(open_rows(one, target=D), checkpoint=tmp_path / "c.st")
    got = stream_moments(open_rows(other, target=D), checkpoint=tmp_path / "c.st")
    assert got.gram.equal(want.gram)
