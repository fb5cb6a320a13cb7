"""Times along a size, across the borders where one route takes over from another: no step may cost a cliff.

    python benchmarks/borders.py               every walk, one thread
    python benchmarks/borders.py --only dense

A walk fits the same kind of rows at sizes that grow by a fifth or less. Between two sizes the time may grow as the
work does, n·d·min(n, d) at the most; a jump of more than twice that, or a fall of more than a half, is a cliff.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from torchridge import estimators, logistic, ridge

CLIFF = 2.0
ROUNDS = 5
Call = Callable[[], Any]


def rows(n: int, d: int, classes: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    y = (X @ rng.standard_normal((d, classes)) * 2 / np.sqrt(d) + rng.gumbel(size=(n, classes))).argmax(1)
    y[:classes] = np.arange(classes)
    return X, y


def counts(n: int, d: int, classes: int, density: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = sparse.random_array((n, d), density=density, rng=rng, format="csr")
    y = rng.integers(classes, size=n)
    y[:classes] = np.arange(classes)
    return X, y


class Size(NamedTuple):
    """One step of a walk."""

    label: str
    work: float
    call: Call


def dense_logistic(n: int, classes: int) -> Iterator[Size]:
    for d in (20, 24, 29, 35, 42, 50, 60, 72, 86, 100, 120, 144, 172):
        X, y = (torch.from_numpy(a) for a in rows(n, d, classes))
        yield Size(f"({n}, {d})", float(n) * d * min(n, d), lambda X=X, y=y: logistic(X, y, tol=1e-6))  # type: ignore[misc]


def few_rows_logistic() -> Iterator[Size]:
    for n in (180, 215, 255, 260, 310, 370, 440, 530):  # the dual has up to 256 rows
        X, y = (torch.from_numpy(a) for a in rows(n, 700, 2))
        yield Size(f"({n}, 700)", float(n) * n * 700, lambda X=X, y=y: logistic(X, y, tol=1e-6))  # type: ignore[misc]


def wide_and_tall_ridge() -> Iterator[Size]:
    for n in (300, 360, 400, 410, 450, 540):  # rows fewer than features, then more
        X, y = (torch.from_numpy(a) for a in rows(n, 400, 2))
        # At a strength that decides: at 1 the square of random rows is ill-conditioned, and solved with care (4 ×).
        yield Size(f"({n}, 400)", float(n) * 400 * min(n, 400), lambda X=X, y=y: ridge(X, y.double(), 100.0))  # type: ignore[misc]


def sparse_models(kind: str) -> Iterator[Size]:
    make = {
        "ridge": estimators.RidgeClassifier,
        "logistic": estimators.LogisticRegression,
        "loo": estimators.RidgeClassifierCV,
        "folds": lambda: estimators.RidgeClassifierCV(cv=3),
    }[kind]
    for d in (120, 150, 180, 220, 260, 320, 380, 460, 550, 660, 800, 1000, 1200):  # filled, then multiplied with
        X, y = counts(600, d, 4, 0.02)
        yield Size(f"(600, {d})", 600.0 * d * min(600, d), lambda X=X, y=y: make().fit(X, y))  # type: ignore[misc]


def denser(kind: str) -> Iterator[Size]:
    make = estimators.RidgeClassifier if kind == "ridge" else estimators.LogisticRegression
    for density in (0.02, 0.024, 0.03, 0.036, 0.045, 0.055, 0.07, 0.085, 0.1, 0.12, 0.15, 0.18):
        X, y = counts(800, 600, 4, density)
        yield Size(f"{density:.1%} of (800, 600)", density, lambda X=X, y=y: make().fit(X, y))  # type: ignore[misc]


WALKS: dict[str, Callable[[], Iterator[Size]]] = {
    "dense logistic, binary": lambda: dense_logistic(1000, 2),
    "dense logistic, 5 classes": lambda: dense_logistic(300, 5),
    "dense logistic of few rows": few_rows_logistic,
    "dense ridge": wide_and_tall_ridge,
    "sparse ridge": lambda: sparse_models("ridge"),
    "sparse logistic": lambda: sparse_models("logistic"),
    "sparse leave-one-out": lambda: sparse_models("loo"),
    "sparse folds": lambda: sparse_models("folds"),
    "sparse ridge, denser and denser": lambda: denser("ridge"),
    "sparse logistic, denser and denser": lambda: denser("logistic"),
}


def walk(name: str) -> dict[str, Any]:
    sizes = list(WALKS[name]())
    times: list[list[float]] = [[] for _ in sizes]
    for i in range(ROUNDS + 1):
        for size, kept in zip(sizes, times, strict=True):
            start = time.process_time()
            size.call()
            if i:
                kept.append(time.process_time() - start)
    medians = [statistics.median(kept) for kept in times]
    print(name)
    worst = 0.0
    for k, (size, seconds) in enumerate(zip(sizes, medians, strict=True)):
        jump = 0.0
        if k:
            grown = size.work / sizes[k - 1].work
            jump = max(seconds / medians[k - 1] / grown, medians[k - 1] / seconds)
        worst = max(worst, jump)
        print(f"    {size.label:22s} {seconds * 1e3:9.2f} ms{'   a cliff' if jump > CLIFF else ''}", flush=True)
    print(f"    largest jump {worst:.2f}")
    return {"sizes": [s.label for s in sizes], "seconds": medians, "largest_jump": worst}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with threadpool_limits(1):
        found = {name: walk(name) for name in WALKS if options.only in name}
    harness.save("borders", found)


if __name__ == "__main__":
    main()
