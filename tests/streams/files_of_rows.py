"""The same rows in every kind of file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

D = 7
NAMES = [*(f"x{i}" for i in range(D)), "y", "w", "fold"]
KINDS = ("csv", "tsv", "csv.gz", "parquet", "feather", "lists.parquet", "npy", "matrix.npy", "safetensors", "memmap")


class Data(NamedTuple):
    X: Tensor
    y: Tensor
    weight: Tensor
    fold: Tensor


def data(n: int = 1003) -> Data:
    g = torch.Generator().manual_seed(4)
    X = torch.randn(n, D, generator=g, dtype=torch.float64) + 3
    y = X.sum(1) + torch.randn(n, generator=g, dtype=torch.float64)
    return Data(X, y, torch.rand(n, generator=g, dtype=torch.float64) + 0.1, torch.randint(4, (n,), generator=g))


def table(rows: Data) -> np.ndarray:
    return np.column_stack([a.numpy() for a in rows])


def write_csv(path: Path, matrix: np.ndarray, names: list[str] | None = None, delimiter: str = ",") -> Path:
    header = delimiter.join(NAMES if names is None else names)
    np.savetxt(path, matrix, delimiter=delimiter, header=header, comments="", fmt="%.17g")
    return path


def named(kind: str, folder: Path, rows: Data) -> dict[str, object]:
    """Write the rows and return what `open_rows` takes; weights and folds are columns beside y."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet
    from safetensors.torch import save_file

    columns = {"target": "y", "sample_weight": "w", "fold": "fold"}
    path = folder / f"rows.{kind}"
    if kind in ("csv", "tsv", "csv.gz"):
        write_csv(path, table(rows), delimiter="\t" if kind == "tsv" else ",")
    elif kind == "safetensors":
        save_file({"X": rows.X, "y": rows.y, "w": rows.weight, "fold": rows.fold}, path)
    elif kind == "matrix.npy":
        np.save(path, table(rows))
        columns = {"target": D, "sample_weight": D + 1, "fold": D + 2}
    elif kind in ("npy", "memmap"):
        files = dict(zip(("X", "target", "sample_weight", "fold"), rows, strict=True))
        for name, values in files.items():
            np.save(folder / f"{name}.npy", values.numpy())
        path, columns = folder / "X.npy", {name: folder / f"{name}.npy" for name in list(files)[1:]}
        if kind == "memmap":
            return {"source": np.load(path, mmap_mode="r"), **columns}
    else:
        every = {n: pa.array(c) for n, c in zip(NAMES, table(rows).T, strict=True)}
        if kind == "lists.parquet":
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.X.reshape(-1).numpy()), D)
            every = {"embedding": lists} | {n: every[n] for n in NAMES[D:]}
        if kind == "feather":
            pyarrow.feather.write_feather(pa.table(every), path, chunksize=300, compression="uncompressed")
        else:
            pyarrow.parquet.write_table(pa.table(every), path, row_group_size=300)
    return {"source": path, **columns}
