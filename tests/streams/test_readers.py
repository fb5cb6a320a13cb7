"""Readers against the rows that were written, from any row on."""

import errno
import fcntl
import io
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files_of_rows import KINDS, D, data, named

from torchridge import open_rows
from torchridge.streams import RowSource
from torchridge.streams.direct import Direct, direct_of


def gathered(source: RowSource, start: int = 0, rows: int | None = None) -> list[torch.Tensor]:
    batches = list(source.batches(start, rows))
    return [torch.cat([getattr(b, name) for b in batches]) for name in ("X", "y", "sample_weight", "fold")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gives_the_rows_again_and_from_any_row_on(kind: str, tmp_path: Path) -> None:
    rows = data()
    source = open_rows(**named(kind, tmp_path, rows))
    assert (source.n_rows, source.n_features, source.n_targets, source.has_folds) == (1003, D, 1, True)
    for start, size in ((0, None), (0, 100), (1, 7), (300, None), (777, 50), (1002, None)):
        for got, want in zip(gathered(source, start, size), rows, strict=True):
            assert got.equal(want[start:])
    assert list(source.batches(1003)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_safetensors_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    X = (torch.randn(50, 3) * 10).abs().to(dtype)
    save_file({"X": X, "y": X[:, 0].clone(), "scalar": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    batch = next(iter(open_rows(tmp_path / "a.safetensors", target="y")))
    assert batch.X.dtype is dtype and batch.X.equal(X) and batch.y.equal(X[:, 0])


def test_a_big_endian_file_and_a_column_major_one(tmp_path: Path) -> None:
    X = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "a.npy", X.astype(">f4"))
    np.save(tmp_path / "b.npy", np.asfortranarray(X))
    for name, dtype in (("a", torch.float32), ("b", torch.float64)):
        assert next(iter(open_rows(tmp_path / f"{name}.npy"))).X.equal(torch.from_numpy(X).to(dtype))


def resident(name: str) -> int:
    """Return the bytes of a mapped file that are in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(name))
    return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from /proc")
def test_mapped_pages_do_not_stay_resident(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.zeros((40_000, 100)))

    source = open_rows(tmp_path / "big.npy", target=0)
    most = max(resident("big.npy") for _ in source.batches(rows=1000))
    assert most < 2**20, "of 32 MB"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from /proc")
def test_rows_of_a_mapped_file_are_read_into_memory_that_is_used_again(tmp_path: Path) -> None:
    np.save(tmp_path / "seen.npy", np.ones((40_000, 100)))
    source = open_rows(tmp_path / "seen.npy", target=np.arange(40_000.0))
    assert source.in_place
    sizes = []
    for batch in source.views(0, 1000, 1):
        assert batch.X.sum() == 100_000
        sizes.append(resident("seen.npy"))
    assert max(sizes) < 2**16, "of 32 MB: pages of a mapping are not touched, since they may be cut off"


def test_views_are_the_batches_without_a_copy_or_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    rows = data()
    source = open_rows(**named("safetensors", tmp_path, rows))
    assert source.in_place
    for seen, batch in zip(source.views(10, 300, 2), source.batches(10, 300), strict=True):
        for a, b in zip(seen, batch, strict=True):
            assert a is not None and b is not None and a.equal(b) and a.data_ptr() != b.data_ptr()
    X = np.ones((5, 2), np.float32)
    X.flags.writeable = False
    assert next(iter(open_rows(X, target=X[:, 0].copy()).views(1, 2, 2))).X.data_ptr() == X[1:].ctypes.data
    assert not recwarn


class Uncached(Direct):
    """Direct reads of a file whose pages are taken to be on disk alone."""

    reads = 0

    def cached(self, low: int, high: int) -> bool:
        return False

    def read(self, low: int, high: int, slot: Any) -> Any:
        found = super().read(low, high, slot)
        type(self).reads += found is not None
        return found


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Uncached]:
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no direct reads; rows come by the mapping, which the other tests hold")
    (tmp_path / "probe").write_bytes(bytes(4096))
    try:
        handle = os.open(tmp_path / "probe", os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("this file system has no direct reads; rows come by the mapping, which the other tests hold")
    os.close(handle)
    monkeypatch.setattr("torchridge.streams.array._DIRECT_BYTES", 1)
    monkeypatch.setattr("torchridge.streams.direct.Direct", Uncached)
    Uncached.reads = 0
    return Uncached


@pytest.mark.parametrize("rows", [1, 37, 333, 1000, 5000])
@pytest.mark.parametrize("d", [1, 7, 1024])
def test_direct_reads_give_the_rows(rows: int, d: int, tmp_path: Path, uncached: type[Uncached]) -> None:
    X = np.random.default_rng(0).standard_normal((1003, d)).astype(np.float32)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    for part, want in ((mapped, X), (mapped[5:], X[5:]), (np.asarray(mapped)[:-3], X[:-3])):
        source = open_rows(part, target=np.zeros(len(want)))
        got = [batch.X.clone() for batch in source.views(2, rows, 2)]
        assert torch.cat(got).equal(torch.from_numpy(want[2:]))
    assert uncached.reads == sum(len(range(2, n, rows)) for n in (1003, 998, 1000))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
def test_direct_reads_keep_the_dtype(dtype: torch.dtype, tmp_path: Path, uncached: type[Uncached]) -> None:
    from safetensors.torch import save_file

    X = (torch.randn(500, 30) * 2).to(dtype)
    save_file({"before": torch.ones(3), "X": X, "y": X[:, :1].clone()}, tmp_path / "a.safetensors")
    source = open_rows(tmp_path / "a.safetensors", target="y", features="X")
    assert torch.cat([batch.X.clone() for batch in source.views(0, 64, 2)]).equal(X)
    assert uncached.reads > 0


def test_a_batch_stays_whole_until_as_many_as_are_held_follow(tmp_path: Path, uncached: type[Uncached]) -> None:
    X = np.arange(4000.0).reshape(1000, 4)
    np.save(tmp_path / "X.npy", X)
    stream = open_rows(tmp_path / "X.npy", target=X[:, 0]).views(0, 100, 2)
    first, second = next(stream), next(stream)
    assert first.X.equal(torch.from_numpy(X[:100])) and second.X.equal(torch.from_numpy(X[100:200]))


def test_two_passes_at_once_keep_out_of_each_others_memory(tmp_path: Path, uncached: type[Uncached]) -> None:
    X = np.arange(4000.0).reshape(1000, 4)
    np.save(tmp_path / "X.npy", X)
    source = open_rows(tmp_path / "X.npy", target=X[:, 0])
    one, other = source.views(0, 100, 2), source.views(500, 100, 2)
    for i in range(5):
        a, b = next(one), next(other)
        assert a.X.equal(torch.from_numpy(X[100 * i :][:100])) and b.X.equal(torch.from_numpy(X[500 + 100 * i :][:100]))


def test_a_file_that_took_the_name_of_a_mapped_one_is_not_read(tmp_path: Path, uncached: type[Uncached]) -> None:
    np.save(tmp_path / "X.npy", np.ones((1000, 4)))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.save(tmp_path / "new.npy", np.zeros((1000, 4)))
    (tmp_path / "new.npy").rename(tmp_path / "X.npy")
    assert all(batch.X.eq(1).all() for batch in open_rows(mapped, target=np.ones(1000)).views(0, 100, 2))
    assert uncached.reads == 0


def test_direct_reads_that_fail_leave_it_to_the_page_cache(
    tmp_path: Path, uncached: type[Uncached], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "X.npy", np.ones((1000, 4)))

    kept = os.preadv

    def fails(handle: int, *rest: Any) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError("no direct reads")
        return kept(handle, *rest)

    monkeypatch.setattr(os, "preadv", fails)
    source = open_rows(tmp_path / "X.npy", target=np.ones(1000))
    assert all(batch.X.eq(1).all() for batch in source.views(0, 100, 2))
    assert uncached.reads == 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the page cache is emptied by posix_fadvise")
def test_what_is_in_the_page_cache_is_known(tmp_path: Path, uncached: type[Uncached]) -> None:
    np.save(tmp_path / "X.npy", np.ones((100_000, 4)))
    with (tmp_path / "X.npy").open("rb") as file:
        os.fsync(file.fileno())
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        direct = direct_of(mapped, mapped._mmap, "X.npy")
        assert direct is not None and Direct.cached(direct, 0, mapped.nbytes)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert not Direct.cached(direct, 0, mapped.nbytes)


@pytest.mark.parametrize("kind", [">f4", "F", "columns", "long double"])
def test_rows_that_cannot_be_seen_where_they_lie_are_copied(kind: str) -> None:
    X = np.arange(12.0).reshape(4, 3)
    if kind == "columns":
        source = open_rows(X, target=0)
    else:
        changed = {">f4": X.astype(">f4"), "F": np.asfortranarray(X), "long double": X.astype(np.longdouble)}[kind]
        source = open_rows(changed, target=np.ones(4))
    assert not source.in_place
    with pytest.raises(TypeError) if kind == "long double" else nullcontext():
        assert next(source.views(0, 4, 2)).X[:, -1].tolist() == X[:, -1].tolist()


def test_changes_that_were_not_saved_survive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1000, 2)))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="c")
    mapped[:] = 1
    part = mapped[10:]
    for _ in range(2):
        assert next(iter(open_rows(part, target=1))).X.eq(1).all()


def test_matrix_targets_and_chosen_features(tmp_path: Path) -> None:
    X = np.arange(20.0).reshape(4, 5)
    batch = next(iter(open_rows(X, target=[0, 4], features=[3, 1])))
    assert batch.X.tolist() == X[:, [3, 1]].tolist()
    assert batch.y.tolist() == X[:, [0, 4]].tolist()
    assert next(iter(open_rows(X, target=[0]))).y.shape == (4, 1)
    assert next(iter(open_rows(X))).y is None
    assert next(iter(open_rows(X, target=X[:, 0], features=[1]))).X.tolist() == X[:, [1]].tolist()


def test_integer_columns_of_parquet_are_double_and_single_precision_stays(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    single, whole = np.array([0.1, 0.2], np.float32), np.array([2**53 - 1, 1])
    pq.write_table(pa.table({"a": single, "b": whole, "y": whole}), tmp_path / "a.parquet")
    both = next(iter(open_rows(tmp_path / "a.parquet", target="y")))
    assert both.X.dtype is torch.float64 and both.X[0, 1] == 2**53 - 1
    assert next(iter(open_rows(tmp_path / "a.parquet", target="y", features="a"))).X.dtype is torch.float32


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a,y\n1,2\n3,4\n")))
    source = open_rows("-", target="y")
    assert source.n_rows is None
    assert next(iter(source)).X.tolist() == [[1], [3]]
    with pytest.raises(ValueError, match="only once"):
        list(source)


def parquet(folder: Path, **columns: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), folder / "bad.parquet")
    return folder / "bad.parquet"


def safetensors(folder: Path, header: object, numbers: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    (folder / "bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return folder / "bad.safetensors"


def test_bad_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    beyond = {"X": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4_000_000]}}
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "a.xlsx").write_text("")
    (tmp_path / "cut.safetensors").write_bytes(b"\x01")
    (tmp_path / "empty.csv").write_text("")
    X, good = np.ones((4, 3)), parquet(tmp_path, a=[1.0, 2.0], y=[1.0, 2.0])
    for source, named_, error, message in (
        (tmp_path / "none.csv", {}, FileNotFoundError, "there is no file"),
        (tmp_path / "a.xlsx", {}, ValueError, r"should end in \.csv"),
        (tmp_path / "object.npy", {}, ValueError, r"not a \.npy file of numbers"),
        (tmp_path / "cut.safetensors", {}, ValueError, "truncated"),
        (tmp_path / "empty.csv", {}, ValueError, "is empty"),
        (safetensors(tmp_path, beyond, b"1234"), {}, ValueError, "within the file"),
        (good, {"target": "z"}, ValueError, "no column 'z'; its columns are 'a', 'y'"),
        (good, {"target": "y", "features": ["a", "y"]}, ValueError, "is target, weight or fold too"),
        (good, {"target": "y", "delimiter": ";"}, ValueError, "`delimiter` has no use"),
        (X, {"target": np.ones(3)}, ValueError, "differ in rows"),
        (X, {"target": 3}, ValueError, "has 3 columns"),
        (X.astype(complex), {}, TypeError, "real numbers"),
        ([(X, X)], {"target": 1}, ValueError, "bring their own"),
    ):
        with pytest.raises(error, match=message):
            open_rows(source, **named_)


def test_missing_values_text_and_twins_in_parquet_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(ValueError, match=r"column 'a': row 1 has no value"):
        list(open_rows(parquet(tmp_path, a=[1.0, None, 2.0], y=[1.0, 2.0, 3.0]), target="y"))
    with pytest.raises(ValueError, match="column 's' holds string; expected numbers"):
        open_rows(parquet(tmp_path, s=["1"], y=[1.0]), target="y")
    twins = pa.table([[1.0], [2.0], [3.0]], names=["a", "a", "y"])
    pq.write_table(twins, tmp_path / "twins.parquet")
    with pytest.raises(ValueError, match=r"names 'a' twice, columns 1 and 2.*Rename"):
        open_rows(tmp_path / "twins.parquet", target="y")
    with pytest.raises(ValueError, match="differ in length"):
        list(open_rows(parquet(tmp_path, e=[[1.0], [1.0, 2.0, 3.0]], y=[1.0, 2.0]), target="y"))
    with pytest.raises(ValueError, match="differ in length"):
        list(open_rows(parquet(tmp_path, e=[[1.0], [1.0, 2.0]], y=[1.0, 2.0]), target="y").batches(rows=1))
