"""A path of 20 strengths against scikit-learn's lbfgs, all stopped at a relative objective gap of 1e-6.

scikit-learn gets, for each strength, the loosest tol of a ladder that reaches the gap, and only that fit is timed.

    python benchmarks/logistic.py --classes 10 --spectrum flat
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from torchridge.logistic import logistic

GAP = 1e-6
LADDER = [10 ** (-e / 2) for e in range(2, 17)]


def planted(n: int, d: int, k: int, spectrum: str) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian rows, flat or with eigenvalues falling as 1/j in a random basis; labels drawn from a softmax."""
    rng = np.random.default_rng(0)
    sd = np.ones(d) if spectrum == "flat" else np.arange(1, d + 1) ** -0.5
    X = rng.standard_normal((n, d)) * sd
    logits = X @ rng.standard_normal((d, k)) * 4 / np.sqrt(np.sum(sd**2))
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return X @ rotation, (logits + rng.gumbel(size=(n, k))).argmax(1)


def objective(X: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, C: float) -> float:
    logits = X @ weight.T.astype(np.float64) + bias
    loss = (logsumexp(logits, 1) - logits[np.arange(len(y)), y]).sum()
    return float(C * loss + 0.5 * np.sum(weight.astype(np.float64) ** 2))


def fit_to_gap(
    model: LogisticRegression, X: np.ndarray, X64: np.ndarray, y: np.ndarray, best: float
) -> tuple[float, float, float]:
    """Return seconds, relative gap and tol of the fit with the loosest tol that reaches the gap."""
    start = {name: getattr(model, name).copy() for name in ("coef_", "intercept_") if hasattr(model, name)}
    for tol in LADDER:
        for name, value in start.items():
            setattr(model, name, value.copy())
        model.set_params(tol=tol)
        begin = time.perf_counter()
        model.fit(X, y)
        seconds = time.perf_counter() - begin
        gap = objective(X64, y, model.coef_, model.intercept_, model.C) / best - 1
        if gap <= GAP:
            break
    return seconds, gap, tol


def scikit_learn(X: np.ndarray, y: np.ndarray, strengths: np.ndarray, best: list[float], warm: bool) -> dict:
    model = LogisticRegression(max_iter=5000, warm_start=warm)
    rows = X.astype(np.float32) if warm else X
    found = []
    for C, value in zip(strengths, best, strict=True):
        model.set_params(C=C)
        found.append(fit_to_gap(model, rows, X, y, value))
        print(
            "  scikit-learn",
            "warm float32" if warm else "cold float64",
            f"C={C:.1e}",
            *map("{:.2g}".format, found[-1]),
            flush=True,
        )
    seconds, gaps, tols = zip(*found, strict=True)
    return {"seconds": sum(seconds), "gap": max(gaps), "tol": list(tols), "each": list(seconds)}


def ours(X: np.ndarray, y: np.ndarray, strengths: np.ndarray, best: list[float], repeat: int) -> dict:
    rows, labels, C = torch.from_numpy(X), torch.from_numpy(y), torch.from_numpy(strengths)
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        path = logistic(rows, labels, C, tol=GAP)
        seconds.append(time.perf_counter() - begin)
    gaps = [
        objective(X, y, path.weight[i].numpy(), path.bias[i].numpy(), c) / best[i] - 1 for i, c in enumerate(strengths)
    ]
    return {"seconds": statistics.median(seconds), "gap": max(gaps), "n_iter": path.n_iter.tolist(), "each": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=2, default=(16000, 512))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--spectrum", choices=("flat", "falling"), default="flat")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    strengths = np.logspace(-5, 3, 20)
    X, y = planted(*arguments.shape, arguments.classes, arguments.spectrum)
    exact = logistic(
        torch.from_numpy(X), torch.from_numpy(y), torch.from_numpy(strengths), tol=2e-8, dtype=torch.float64
    )
    best = [objective(X, y, exact.weight[i].numpy(), exact.bias[i].numpy(), C) for i, C in enumerate(strengths)]
    result = {"ours": ours(X, y, strengths, best, arguments.repeat)}
    print(arguments.classes, arguments.spectrum, "ours", result["ours"], flush=True)
    assert result["ours"]["gap"] <= GAP, "we stop short of the gap"
    with threadpool_limits(arguments.threads):
        for name, warm in (("lbfgs_warm_float32", True), ("lbfgs", False)):
            result[name] = scikit_learn(X, y, strengths, best, warm)
            result[name]["ratio"] = result[name]["seconds"] / result["ours"]["seconds"]
            print(name, f"{result[name]['seconds']:.2f} s, {result[name]['ratio']:.1f} times ours", flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
    target = Path(__file__).parent / "results" / f"logistic_{arguments.classes}_{arguments.spectrum}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"arguments": vars(arguments), "machine": machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
