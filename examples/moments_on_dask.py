"""Moments gathered by Dask's workers, each from its own Parquet files, and merged: the answer of one process.

`Moments` add, so that any engine that runs functions and sums what they return will do; Ray's
`ray.remote(gathered).remote(file)` takes the place of `dask.delayed(gathered)(file)`. Needs dask and pyarrow.
"""

import tempfile
from pathlib import Path

import dask
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from torchridge import Moments, open_rows, ridge_cv, stream_moments

FOLDS = 5


def write_table(folder: Path) -> list[Path]:
    """Four files, as a job of Spark or Dask leaves them; every row has a fold of its own, whatever file it is in."""
    g = torch.Generator().manual_seed(0)
    files = [folder / f"part-{i}.parquet" for i in range(4)]
    for file in files:
        X = torch.randn(5000, 8, generator=g, dtype=torch.float64) + 100
        y = X @ torch.arange(8.0, dtype=torch.float64) + 5 * torch.randn(5000, generator=g, dtype=torch.float64)
        columns = {f"x{j}": X[:, j].numpy() for j in range(8)} | {"y": y.numpy()}
        columns["fold"] = torch.randint(FOLDS, (5000,), generator=g).numpy()
        pq.write_table(pa.table(columns), file)
    return files


def gathered(file: Path) -> Moments:
    """Return the moments of one file, d × d numbers a fold: all that a worker sends."""
    torch.set_num_threads(1)  # a worker to a core
    return stream_moments(open_rows(file, target="y", fold="fold"))


def merged(parts: list[Moments]) -> Moments:
    """Return the moments of all rows."""
    return sum(parts[1:], parts[0])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        files = write_table(Path(name))
        tasks = [dask.delayed(gathered)(file) for file in files]
        whole = dask.delayed(merged)(tasks).compute(scheduler="processes", num_workers=2)  # or a cluster's client
        alone = stream_moments(open_rows(name, target="y", fold="fold"))

    error = max(
        float((a - b).norm() / b.norm())
        for k in range(FOLDS)
        for a, b in zip(whole.block(k)[1:], alone.block(k)[1:], strict=True)
    )
    print(f"{whole.n_samples} rows; the moments of the workers differ from those of one process by {error:.0e}")
    # 20000 rows; the moments of the workers differ from those of one process by 8e-16
    assert error <= 1e-12

    ours, theirs = ridge_cv(whole), ridge_cv(alone)
    print(f"alpha {float(ours.alpha):.4g} and {float(theirs.alpha):.4g}")
    # alpha 15.52 and 15.52
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-10)


if __name__ == "__main__":
    main()
