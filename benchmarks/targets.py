"""Thousands of targets beside himalaya: cross-validated ridge of few rows, a strength for each target, and bands.

python benchmarks/targets.py                 every case
python benchmarks/targets.py small bands50   some of them

Each side of a comparison of memory runs in a process of its own, whose peak is read from the kernel: what the peak
rises by from the moment at which the data are there. Times are medians of alternating runs in one process, one thread.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from torchridge import banded_ridge_cv, ridge_cv
from torchridge.exceptions import GridEdgeWarning

warnings.simplefilter("ignore", GridEdgeWarning)
warnings.filterwarnings("ignore", module="himalaya")
torch.set_num_threads(1)

CASES: dict[str, Callable[[], dict[str, Any]]] = {}
SHAPES = {"small": (600, 20_000, 2_000), "large": (600, 40_000, 8_000), "square": (1_000, 1_200, 4_000)}
ALPHAS = torch.logspace(2, 7, 15, dtype=torch.float64)


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


def encoding(n: int, d: int, t: int, new: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, targets of very different signal, and new rows, float32."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n + new, d, generator=g)
    signal = X[:n, :50] @ torch.randn(50, t, generator=g)
    y = signal * torch.rand(t, generator=g) + 5 * torch.randn(n, t, generator=g)
    return X[:n], y, X[n:]


def runs_of(n: int) -> torch.Tensor:
    """Ten runs of rows, as of a scanner."""
    return torch.arange(n) * 10 // n


def ours(X: torch.Tensor, y: torch.Tensor, new: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    solution = ridge_cv(X, y, ALPHAS, cv=5, groups=runs_of(len(X)), alpha_per_target=True, **options)
    return solution.alpha, solution.predict(new)


def himalaya(X: torch.Tensor, y: torch.Tensor, new: torch.Tensor, batch: Any = None) -> tuple[Any, Any]:
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV
    from sklearn.model_selection import GroupKFold

    set_backend("torch")
    folds = list(GroupKFold(5).split(np.zeros(len(X)), groups=runs_of(len(X)).numpy()))
    params = {"n_targets_batch": batch, "n_targets_batch_refit": batch}
    model = KernelRidgeCV(alphas=ALPHAS.float(), cv=folds, fit_intercept=True, solver_params=params).fit(X, y)
    return model.best_alphas_, model.predict(new)


def agree(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[float, float]:
    """Return the share of equal strengths and the distance of predictions there; raise if they are not the same."""
    same = torch.isclose(a[0].double(), b[0].double(), rtol=1e-3)
    share = float(same.double().mean())
    apart = float((a[1] - b[1])[:, same].norm() / b[1][:, same].norm())
    assert share >= 0.99 and apart <= 1e-4, (share, apart)
    print(f"    the same strength for {share:.2%} of the targets, predictions apart by {apart:.1e}")
    return share, apart


def peak(name: str, side: str) -> float:
    """Return by how many MiB the peak of a process rises over its data."""
    found = subprocess.run(
        [sys.executable, __file__, "--peak", name, side], capture_output=True, text=True, check=True,
        env=harness.environment({"OMP_NUM_THREADS": "1"}),
    )  # fmt: skip
    return float(found.stdout.split()[-1])


def print_peak(name: str, side: str) -> None:
    data = encoding(*SHAPES[name])
    data = tuple(a.clone() for a in data)  # type: ignore[assignment]
    small = tuple(a[:60, :200] for a in data)
    call = ours if side == "ours" else lambda *a: himalaya(*a, batch=1000)
    call(small[0], small[1], small[2])  # libraries are loaded
    gc.collect()
    before = harness.resident(reset=True)
    call(*data)
    print(harness.resident() - before)


def against_himalaya(name: str) -> dict[str, Any]:
    data = encoding(*SHAPES[name])
    share, apart = agree(ours(*data), himalaya(*data))
    calls = {
        "ridge_cv and predict": lambda: ours(*data),
        "ridge_cv and predict, float32": lambda: ours(*data, moments_dtype=torch.float32),
        "himalaya KernelRidgeCV": lambda: himalaya(*data),
        "himalaya in batches of 1000": lambda: himalaya(*data, batch=1000),
    }
    times = harness.alternate(calls, 5)
    result = harness.report(f"{SHAPES[name]} float32, 5 grouped folds, 15 strengths", times, next(iter(times)))
    memory = {side: peak(name, side) for side in ("ours", "himalaya")}
    print("    MiB above the data:", memory)
    return {**result, "same_strengths": share, "predictions_apart": apart, "mib_above_data": memory}


@case
def small() -> dict[str, Any]:
    return against_himalaya("small")


@case
def large() -> dict[str, Any]:
    return against_himalaya("large")


@case
def mapped() -> dict[str, Any]:
    """Fit, predict and score rows and targets of mapped files within 6 GiB."""
    n, d, t = 500, 148_000, 52_000
    with tempfile.TemporaryDirectory() as folder:
        files = {"X": (n, d), "y": (n, t), "new": (100, d), "seen": (100, t)}
        rng = np.random.default_rng(0)
        for name, shape in files.items():
            mapped = np.lib.format.open_memmap(Path(folder) / f"{name}.npy", "w+", np.float32, shape)
            for i in range(shape[0]):
                mapped[i] = rng.standard_normal(shape[1], dtype=np.float32)
            if name in ("y", "seen"):
                X = np.load(Path(folder) / f"{'X' if name == 'y' else 'new'}.npy", mmap_mode="r")
                mapped[:, ::2] += 0.5 * X[:, :20] @ np.random.default_rng(1).standard_normal((20, t // 2), np.float32)
            del mapped
        X, y, new, seen = (torch.from_numpy(np.load(Path(folder) / f"{f}.npy", mmap_mode="c")) for f in files)
        before, start = harness.resident(reset=True), time.perf_counter()
        solution = ridge_cv(X, y, ALPHAS, cv=5, groups=runs_of(n), alpha_per_target=True, scoring="correlation")
        fitted = time.perf_counter()
        predictions = solution.predict(new)
        predicted = time.perf_counter()
        scores = solution.score(new, seen, scoring="correlation")
        assert torch.isfinite(predictions).all() and float(scores[::2].mean()) > float(scores[1::2].mean())
        times = {"fit": fitted - start, "predict": predicted - fitted, "score": time.perf_counter() - predicted}
        print(
            f"({n}, {d}, {t}) of mapped files: {times}, peak {harness.resident():.0f} MiB, {before:.0f} before the fit"
        )
        assert harness.resident() < 6 * 1024
    return {"seconds": times, "peak_mib": harness.resident(), "mib_before": before}


@case
def splitters() -> dict[str, Any]:
    """Standardized and shuffled folds against plain ones."""
    from sklearn.model_selection import KFold, ShuffleSplit

    def times_of(n: int, d: int, t: int) -> dict[str, Any]:
        X, y, _ = encoding(n, d, t)
        each: dict[str, Any] = {"alpha_per_target": True}
        shuffled, drawn = KFold(5, shuffle=True, random_state=0), ShuffleSplit(5, test_size=0.2, random_state=0)
        calls = {
            "plain folds": lambda: ridge_cv(X, y, ALPHAS, 5, **each),
            "standardize": lambda: ridge_cv(X, y, ALPHAS, 5, standardize=True, **each),
            "KFold(shuffle)": lambda: ridge_cv(X, y, ALPHAS, shuffled, **each),
            "ShuffleSplit": lambda: ridge_cv(X, y, ALPHAS, drawn, **each),
        }
        times = harness.alternate(calls, 5)
        return harness.report(f"{(n, d, t)} float32, 15 strengths", times, "plain folds", "plain")

    shapes = ((600, 20_000, 2_000), (1_000, 1_200, 4_000))
    result: dict[str, Any] = {str(shape): times_of(*shape) for shape in shapes}
    result["mib_above_data"] = peak("square", "ours")
    print("    (1000, 1200, 4000), MiB above the data:", result["mib_above_data"])
    return result


def banded(n: int, t: int, rounds: int) -> dict[str, Any]:
    """Strengths of three bands and each target against himalaya's random search of 100 candidates."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search

    set_backend("torch")
    g = torch.Generator().manual_seed(0)
    Xs = [torch.randn(n, d, generator=g) for d in (400, 800, 200)]
    y = torch.zeros(n, t)
    for X in Xs:
        loud = torch.exp(2 * torch.randn(t, generator=g) - 0.5)
        y += X @ (torch.randn(X.shape[1], t, generator=g) / X.shape[1] ** 0.5) * loud
    y = y / y.std(0) + torch.exp(0.7 * torch.randn(t, generator=g)) * torch.randn(n, t, generator=g)

    def theirs() -> Any:
        kernels = torch.stack([(X - X.mean(0)) @ (X - X.mean(0)).T for X in Xs])
        return solve_multiple_kernel_ridge_random_search(
            kernels, y, n_iter=100, alphas=torch.logspace(0, 5, 15), cv=5, fit_intercept=True, return_weights="dual",
            progress_bar=False, random_state=0, n_targets_batch=min(t, 2000), n_alphas_batch=5,
        )  # fmt: skip

    loss = -float(banded_ridge_cv(Xs, y, cv=5).scores.mean())
    searched = -float(theirs()[2].max(0).values.mean())
    times = harness.alternate(
        {"banded_ridge_cv": lambda: banded_ridge_cv(Xs, y, cv=5), "himalaya, 100 candidates": theirs},
        rounds,
        rounds > 1,
    )
    result = harness.report(f"({n}, {t}) float32, 3 bands, 5 folds", times, "banded_ridge_cv")
    print(f"    loss of the folds {loss:.5f}, himalaya {searched:.5f}")
    return {**result, "loss": loss, "himalaya_loss": searched}


@case
def bands50() -> dict[str, Any]:
    return banded(300, 50, 3)


@case
def bands600() -> dict[str, Any]:
    return banded(600, 600, 1)


@case
def bands20000() -> dict[str, Any]:
    return banded(300, 20_000, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(*sys.argv[2:])
    else:
        print(harness.machine())
        for name in sys.argv[1:] or list(CASES):
            print(harness.save("targets", {name: json.loads(json.dumps(CASES[name]()))}))
