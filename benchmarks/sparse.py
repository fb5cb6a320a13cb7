"""Sparse rows against scikit-learn: agreement first, then medians of interleaved rounds, and what memory grows by.

    python benchmarks/sparse.py                    every case on one thread and on two
    python benchmarks/sparse.py one --only Ridge   cases of which the name holds a word
    python benchmarks/sparse.py memory             growth of peak memory, each call in a process of its own

The rows are TF-IDF of words drawn from a Zipf law that the class tilts, of lengths as short texts have them. On one
thread processor seconds are compared, which other work on the machine disturbs little; on two the wall clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from scipy import sparse
from scipy.special import logsumexp
from sklearn import linear_model
from sklearn.feature_extraction.text import TfidfTransformer
from threadpoolctl import threadpool_limits

from torchridge import estimators

GAP = 1e-6  # of the objective, that both sides have to reach
GRID = np.logspace(-2, 2, 20)
Fit = Callable[[Any, Any], Any]


@cache
def texts(n: int, d: int, classes: int) -> tuple[Any, Any]:
    """TF-IDF rows (n, d) in float64, and labels."""
    rng = np.random.default_rng(0)
    common = 1 / (np.arange(1, d + 1) + 2.7)
    y = rng.integers(classes, size=n)
    y[:classes] = np.arange(classes)
    lengths = np.clip(rng.lognormal(4.5, 0.7, n).astype(int), 5, 2000)
    rows, columns = np.repeat(np.arange(n), lengths), np.empty(lengths.sum(), dtype=np.int64)
    for k in range(classes):
        tilted = common * np.exp(rng.standard_normal(d) * 0.6)
        inside = y[rows] == k
        columns[inside] = rng.choice(d, size=int(inside.sum()), p=tilted / tilted.sum())
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, d))
    return TfidfTransformer().fit_transform(counts), y


def ridge_objective(model: Any, X: Any, y: Any, alpha: float) -> float:
    signs = np.where(y[:, None] == np.unique(y), 1.0, -1.0)
    left = signs - X @ model.coef_.T - model.intercept_
    return float((left**2).sum() + alpha * (model.coef_**2).sum())


def logistic_objective(model: Any, X: Any, y: Any, C: float) -> float:
    logits = X @ model.coef_.T + model.intercept_
    logits = np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    loss = (logsumexp(logits, 1) - logits[np.arange(len(y)), np.searchsorted(np.unique(y), y)]).sum()
    return float(C * loss + 0.5 * (model.coef_**2).sum())


class Case(NamedTuple):
    """Two models to fit to the same rows; `strength` reads off the fitted peer what its objective is taken at."""

    shape: tuple[int, int, int]
    ours: Any
    peer: Any
    objective: Callable[[Any, Any, Any, float], float]
    strength: Callable[[Any], float]
    rounds: int = 7


def ridge(shape: tuple[int, int, int], peer_tol: float, rounds: int = 7) -> Case:
    ours = estimators.RidgeClassifier()
    return Case(
        shape, ours, linear_model.RidgeClassifier(tol=peer_tol), ridge_objective, lambda model: model.alpha, rounds
    )


def choice(shape: tuple[int, int, int], rounds: int = 3, **options: Any) -> Case:
    ours, peer = estimators.RidgeClassifierCV(**options), linear_model.RidgeClassifierCV(**options)
    return Case(shape, ours, peer, ridge_objective, lambda model: model.alpha_, rounds)


def logistic(shape: tuple[int, int, int], rounds: int = 5, **options: Any) -> Case:
    """Both at their defaults, but for a peer that then misses the gap."""
    ours, peer = estimators.LogisticRegression(**options), linear_model.LogisticRegression(max_iter=1000, **options)
    return Case(shape, ours, peer, logistic_objective, lambda model: model.C, rounds)


def logistic_choice(shape: tuple[int, int, int], rounds: int = 3) -> Case:
    """Folds over 20 strengths, where the peer starts each from the last as well."""
    peer = linear_model.LogisticRegressionCV(
        Cs=GRID, cv=5, scoring="neg_log_loss", max_iter=1000, l1_ratios=(0,), use_legacy_attributes=False
    )
    ours = estimators.LogisticRegressionCV(Cs=GRID, cv=5, scoring="neg_log_loss")
    return Case(shape, ours, peer, logistic_objective, lambda model: float(np.ravel(model.C_)[0]), rounds)


CASES: dict[str, Callable[[], Case]] = {
    "RidgeClassifier (2000, 15000)": lambda: ridge((2000, 15000, 10), 1e-8, 15),
    "RidgeClassifier (2000, 15000), peer at tol 1e-4": lambda: ridge((2000, 15000, 10), 1e-4, 15),
    "RidgeClassifier (8000, 16000)": lambda: ridge((8000, 16000, 10), 1e-8),
    "RidgeClassifier (8000, 20000)": lambda: ridge((8000, 20000, 10), 1e-8),
    "RidgeClassifier (40000, 80000), 20 classes": lambda: ridge((40000, 80000, 20), 1e-8, 3),
    "LogisticRegression (2000, 8000)": lambda: logistic((2000, 8000, 10)),
    "LogisticRegression (2000, 8000), binary": lambda: logistic((2000, 8000, 2), 11),
    "LogisticRegression (40000, 80000), 20 classes": lambda: logistic((40000, 80000, 20), 3),
    "LogisticRegressionCV (2000, 8000), binary, 20 strengths": lambda: logistic_choice((2000, 8000, 2)),
    "LogisticRegressionCV (2000, 8000), 20 strengths": lambda: logistic_choice((2000, 8000, 10), 1),
    "RidgeClassifierCV(cv=5) (2000, 8000)": lambda: choice((2000, 8000, 10), cv=5),
    "RidgeClassifierCV(cv=5) (2000, 8000), 20 strengths": lambda: choice((2000, 8000, 10), cv=5, alphas=GRID),
    "RidgeClassifierCV(cv=5) (8000, 20000), 20 classes": lambda: choice((8000, 20000, 20), cv=5),
    "RidgeClassifierCV() (3700, 16500)": lambda: choice((3700, 16500, 10)),
    "RidgeClassifierCV() (3700, 16500), 20 strengths": lambda: choice((3700, 16500, 10), alphas=GRID),
    "RidgeClassifierCV() (2000, 8000)": lambda: choice((2000, 8000, 10)),
}


def agree(case: Case, X: Any, y: Any) -> dict[str, Any]:
    """Fit both, lower the peer's `tol` until its gap is small enough, raise unless they agree, and return the gaps."""
    ours, found = case.ours.fit(X, y), {"ours": np.inf, "peer": np.inf}
    while found["peer"] > GAP:
        peer = case.peer.fit(X, y)
        assert case.strength(ours) == case.strength(peer), (case.strength(ours), case.strength(peer))
        values = [case.objective(model, X, y, case.strength(peer)) for model in (ours, peer)]
        found = {"ours": values[0] / min(values) - 1, "peer": values[1] / min(values) - 1}
        assert found["ours"] <= GAP, found
        if found["peer"] > GAP:
            print(f"    at tol {peer.tol:.0e} the peer stops at a gap of {found['peer']:.1e}; tol {peer.tol / 4:.1e}")
            case.peer.set_params(tol=peer.tol / 4)
    spread = np.abs(ours.coef_ - peer.coef_).max() / np.abs(peer.coef_).max()
    return {**found, "coefficients": float(spread), "peer_tol": getattr(case.peer, "tol", None)}


def measure(name: str, threads: int, rounds: int | None) -> dict[str, Any]:
    case = CASES[name]()
    X, y = texts(*case.shape)
    found = agree(case, X, y)
    clock = time.process_time if threads == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds or case.rounds):
        for model, kept in zip((case.ours, case.peer), times, strict=True):
            start = clock()
            model.fit(X, y)
            kept.append(clock() - start)
    ours, peer = statistics.median(times[0]), statistics.median(times[1])
    print(f"    {name:52s} {ours:8.4f} s   scikit-learn {peer:8.4f} s   {ours / peer:5.2f} ×", flush=True)
    return {"ours_s": ours, "peer_s": peer, "ratio": ours / peer, "gaps": found}


def growth(name: str, side: str) -> float:
    """Return by how many MiB the peak of this process rises in one fit after a warm-up on a few rows."""
    case = CASES[name]()
    X, y = texts(*case.shape)
    model = getattr(case, side)
    few = np.concatenate([np.flatnonzero(y == k)[:10] for k in np.unique(y)])
    model.fit(X[few][:, :500], y[few])
    before = harness.resident(reset=True)
    model.fit(X, y)
    return harness.resident() - before


def memory(name: str) -> dict[str, Any]:
    grown = {
        side: float(subprocess.check_output([sys.executable, __file__, "growth", "--only", name, "--side", side]))
        for side in ("ours", "peer")
    }
    within = grown["ours"] <= 2 * grown["peer"] + 64
    print(
        f"    {name:52s} {grown['ours']:8.0f} MiB scikit-learn {grown['peer']:8.0f} MiB   within: {within}", flush=True
    )
    return {"ours_mib": grown["ours"], "peer_mib": grown["peer"], "within": within}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["one", "two", "memory"])
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--side", default="ours")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.what == ["growth"]:
        torch.set_num_threads(1)
        print(growth(options.only, options.side))
        return
    print(json.dumps(harness.machine()))
    chosen = [name for name in CASES if options.only in name]
    for what in options.what:
        print(what)
        if what == "memory":
            found = {name: memory(name) for name in chosen}
        else:
            threads = {"one": 1, "two": 2}[what]
            torch.set_num_threads(threads)
            with threadpool_limits(threads):
                found = {name: measure(name, threads, options.rounds) for name in chosen}
        for name, result in found.items():
            harness.save("sparse", {f"{name}, {what}": result})


if __name__ == "__main__":
    main()
