"""How cost grows: seconds against rows, features, targets, strengths, folds and ranks, and the exponents they follow.

python benchmarks/scale.py            every axis
python benchmarks/scale.py d L        some of them

The exponent of an axis is the slope of a line through log seconds against log size, fitted to the largest sizes (the
upper half, three at least), the fastest of some rounds at each; the one beside it is what the operation counts in the
docstrings predict. A table, `results/scale-*.json`, and `results/scale.png` come of it. On CPU it counts the seconds of
one core, which neighbours on the machine change least; over ranks (see `over_ranks.py`), seconds on the wall.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import harness
import numpy as np
import over_ranks
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from torchridge import Moments, ridge, ridge_cv, ridge_path
from torchridge.exceptions import GridEdgeWarning

warnings.simplefilter("ignore", GridEdgeWarning)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Axis(NamedTuple):
    """One size that grows, the others held."""

    what: str
    predicted: float
    law: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Callable[[], Any]]


def seconds(call: Callable[[], Any]) -> float:
    """Time a call: on the wall with CUDA, of the one core without."""
    if DEVICE == "cuda":
        return harness.seconds(call)
    start = time.process_time()
    call()
    return time.process_time() - start


def rows(n: int, d: int, t: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=g)
    y = X[:, :1] + torch.randn(n, t, generator=g)
    return X.to(DEVICE), y.to(DEVICE)


def folded(d: int, t: int, k: int) -> Moments:
    X, y = rows(max(4 * d, 64 * k), d, t)
    return Moments().update(X, y, fold=torch.arange(len(X), device=X.device) % k)


def grid(size: int) -> Tensor:
    return torch.logspace(-2, 5, size, dtype=torch.float64)


def of_rows(n: int) -> Callable[[], Any]:
    X, y = rows(n, 256)
    return lambda: Moments().update(X, y)


def of_features(d: int) -> Callable[[], Any]:
    X, y = rows(20_000, d)
    return lambda: Moments().update(X, y)


def of_eigenvectors(d: int) -> Callable[[], Any]:
    moments = Moments().update(*rows(4 * d, d))
    return lambda: ridge_path(moments, alphas=grid(10))


def of_cholesky(d: int) -> Callable[[], Any]:
    moments = Moments().update(*rows(4 * d, d))
    return lambda: ridge(moments, alpha=1.0, solver="cholesky")


def of_targets(t: int) -> Callable[[], Any]:
    moments = folded(256, t, 2)
    return lambda: ridge_cv(moments, alphas=grid(100))


def of_strengths(size: int) -> Callable[[], Any]:
    moments = Moments().update(*rows(1024, 256, 200))
    return lambda: ridge_path(moments, alphas=grid(size))


def of_scored_strengths(size: int) -> Callable[[], Any]:
    moments = folded(256, 200, 2)
    return lambda: ridge_cv(moments, alphas=grid(size))


def of_folds(k: int) -> Callable[[], Any]:
    moments = folded(384, 1, k)
    return lambda: ridge_cv(moments, alphas=grid(100))


AXES = {
    "n": Axis("moments of n rows, d = 256", 1, "n d²/2", (10_000, 20_000, 40_000, 80_000), of_rows),
    "d": Axis("moments of 20,000 rows of d features", 2, "n d²/2", (128, 256, 512, 1024), of_features),
    "d_eigh": Axis("10 strengths, by eigenvectors", 3, "9 d³", (128, 256, 512, 1024), of_eigenvectors),
    "d_cholesky": Axis("one strength, by Cholesky", 3, "d³", (256, 512, 1024, 2048), of_cholesky),
    "t": Axis("2 folds × 100 strengths of t targets, d = 256", 1, "K d² r t", (500, 1000, 2000, 4000), of_targets),
    "L": Axis("weights of L strengths, d = 256, t = 200", 1, "d² L t", (16, 32, 64, 128, 256), of_strengths),
    "L_cv": Axis("scores of L strengths, 2 folds, t = 200", 0, "K d² r t", (32, 64, 128, 256), of_scored_strengths),
    "K": Axis("K folds × 100 strengths, d = 384", 1, "9 K d³", (2, 4, 8, 16, 32), of_folds),
}


def measure(axis: Axis, rounds: int = 3) -> dict[str, Any]:
    calls = [axis.prepare(size) for size in axis.sizes]
    for call in calls[:2]:  # warm
        call()
    times = [[seconds(call) for call in calls] for _ in range(rounds)]
    fastest = [min(column) for column in zip(*times, strict=True)]
    return fitted(axis.what, axis.law, axis.sizes, fastest, [size**axis.predicted for size in axis.sizes])


def measure_ranks(name: str) -> dict[str, Any]:
    axis, sizes = over_ranks.AXES[name], over_ranks.SIZES
    result = fitted(axis.what, axis.law, sizes, over_ranks.measured(name), [axis.curve(ranks) for ranks in sizes])
    return result | {"cores": over_ranks.CORES}


def fitted(what: str, law: str, sizes: Sequence[int], times: list[float], curve: list[float]) -> dict[str, Any]:
    """Put the slope of the measured times beside that of the curve which the law predicts, over the same sizes."""
    kept = max(3, (len(sizes) + 1) // 2)
    slopes = [float(np.polyfit(np.log(sizes[-kept:]), np.log(values[-kept:]), 1)[0]) for values in (curve, times)]
    return {
        "what": what,
        "law": law,
        "sizes": sizes,
        "seconds": times,
        "predicted": round(slopes[0], 6),
        "fitted": slopes[1],
        "curve": [value / curve[-1] * times[-1] for value in curve],
    }


def line(name: str, result: dict[str, Any]) -> str:
    first, last = (f"{result['sizes'][i]:,}: {result['seconds'][i] * 1e3:.3g} ms" for i in (0, -1))
    what = f"{name:11s} {result['what']:48s} {result['law']:9s}"
    return f"{what} {result['predicted']:9.2f} {result['fitted']:7.2f}   {first:>18s} … {last}"


def draw(results: dict[str, dict[str, Any]]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = min(4, len(results))
    figure, axes = pyplot.subplots(
        -(-len(results) // across),
        across,
        figsize=(3.6 * across, 3.2 * -(-len(results) // across)),
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(results) :]:
        ax.remove()
    for ax, (name, result) in zip(axes.flat, results.items(), strict=False):
        sizes, seconds = np.array(result["sizes"]), np.array(result["seconds"])
        ax.loglog(sizes, seconds, "o-", color="#21497f", label=f"measured, exponent {result['fitted']:.2f}")
        ax.loglog(sizes, result["curve"], "--", color="#d98c3f", label=f"predicted, {result['predicted']:g}")
        ax.set_title(result["what"], fontsize=8)
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        ax.set_xticks([], minor=True)
        ax.set_xlabel(name.split("_")[0])
        ax.set_ylabel("seconds")
        ax.legend(fontsize=7, frameon=False)
    harness.RESULTS.mkdir(exist_ok=True)
    path = harness.RESULTS / "scale.png"
    figure.savefig(path, dpi=110)
    return str(path)


if __name__ == "__main__":
    chosen = sys.argv[1:] or [*AXES, *over_ranks.AXES]
    print(f"{'axis':11s} {'what':48s} {'law':9s} {'predicted':>9s} {'fitted':>7s}   smallest … largest")
    found = {}
    torch.set_num_threads(1)
    print(harness.machine())
    with threadpool_limits(1):
        for name in chosen:
            found[name] = measure(AXES[name]) if name in AXES else measure_ranks(name)
            print(line(name, found[name]), flush=True)
    saved = harness.save("scale", found)
    print(saved, draw(json.loads(saved.read_text())["results"]))
