"""A path of 20 strengths against scikit-learn's lbfgs, all stopped at a relative objective gap of 1e-6.

scikit-learn stops, for each strength, at the very iteration that reaches the gap: `max_iter` is counted beforehand.
Rounds take turns, so that a busy machine slows all alike.
OpenMP threads sleep while they wait, for both: where others share the cores, spinning costs either one up to ten times
its work, at random.

    python benchmarks/logistic.py --classes 10 --spectrum flat
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import platform
import statistics
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.optimize
import sklearn.linear_model._logistic
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from torchridge.logistic import logistic

GAP = 1e-6


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


def fit_path(
    X: np.ndarray, y: np.ndarray, strengths: np.ndarray, iterations: list[int], warm: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    model = LogisticRegression(tol=1e-15, warm_start=warm)
    found = []
    for C, count in zip(strengths, iterations, strict=True):
        model.set_params(C=C, max_iter=count).fit(X, y)
        found.append((model.coef_.copy(), model.intercept_.copy()))
    return found


class Stop:
    """Stands in for scipy's `minimize` inside scikit-learn: stops at the gap and counts the iterations."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.X, self.y, self.C, self.best, self.count = X, y, 1.0, 0.0, 0

    def __call__(self, *args, **options):
        def callback(x: np.ndarray) -> None:
            self.count += 1
            theta = np.asarray(x, np.float64).reshape(-1, self.X.shape[1] + 1, order="F")
            if objective(self.X, self.y, theta[:, :-1], theta[:, -1], self.C) <= self.best * (1 + GAP):
                raise StopIteration

        return scipy.optimize.minimize(*args, **options, callback=callback)


def count_iterations(
    X: np.ndarray, X64: np.ndarray, y: np.ndarray, strengths: np.ndarray, best: list[float], warm: bool
) -> list[int]:
    """Return for each strength the iterations that scikit-learn takes to the gap."""
    stop = Stop(X64, y)
    model = LogisticRegression(tol=1e-15, max_iter=5000, warm_start=warm)
    counts = []
    with mock.patch.object(sklearn.linear_model._logistic.optimize, "minimize", stop):
        for stop.C, stop.best in zip(strengths, best, strict=True):
            stop.count = 0
            model.set_params(C=stop.C).fit(X, y)
            counts.append(stop.count)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=2, default=(16000, 512))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--spectrum", choices=("flat", "falling"), default="flat")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    strengths = np.logspace(-5, 3, 20)
    X, y = planted(*arguments.shape, arguments.classes, arguments.spectrum)
    X32 = X.astype(np.float32)
    rows, labels, C = torch.from_numpy(X), torch.from_numpy(y), torch.from_numpy(strengths)
    exact = logistic(rows, labels, C, tol=2e-8, dtype=torch.float64)
    best = [objective(X, y, exact.weight[i].numpy(), exact.bias[i].numpy(), c) for i, c in enumerate(strengths)]

    def ours() -> list[tuple[np.ndarray, np.ndarray]]:
        path = logistic(rows, labels, C, tol=GAP)
        return list(zip(path.weight.numpy(), path.bias.numpy(), strict=True))

    with threadpool_limits(arguments.threads, user_api="blas"):
        counts = {
            "lbfgs": count_iterations(X, X, y, strengths, best, warm=False),
            "lbfgs_warm_float32": count_iterations(X32, X, y, strengths, best, warm=True),
        }
        print({name: sum(each) for name, each in counts.items()}, "iterations", flush=True)
        runs = {
            "ours": ours,
            "lbfgs": lambda: fit_path(X, y, strengths, counts["lbfgs"], warm=False),
            "lbfgs_warm_float32": lambda: fit_path(X32, y, strengths, counts["lbfgs_warm_float32"], warm=True),
        }
        result: dict[str, dict] = {name: {"each": []} for name in runs}
        for name, run in runs.items():
            gaps = [
                objective(X, y, *found, c) / best[i] - 1
                for i, (c, found) in enumerate(zip(strengths, run(), strict=True))
            ]
            result[name]["gap"] = max(gaps)
            print(name, f"largest gap {max(gaps):.1e}", flush=True)
            assert max(gaps) <= GAP, f"{name} stops short of the gap"
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                result[name]["each"].append(time.perf_counter() - begin)
                print(name, f"{result[name]['each'][-1]:.2f} s", flush=True)
    for name in runs:
        each = result[name]["each"]
        result[name] |= {"median": statistics.median(each), "least": min(each), "iterations": counts.get(name)}
        ratios = {k: result[name][k] / result["ours"][k] for k in ("median", "least")}
        result[name] |= {f"ratio_{k}": ratio for k, ratio in ratios.items()}
        print(name, f"median {result[name]['median']:.2f} s, times ours {ratios['median']:.1f}; least", end=" ")
        print(f"{result[name]['least']:.2f} s, times ours {ratios['least']:.1f}")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "load": os.getloadavg(),
        "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
    target = Path(__file__).parent / "results" / f"logistic_{arguments.classes}_{arguments.spectrum}.json"
    target.parent.mkdir(exist_ok=True)
    said = {"shape": arguments.shape, "classes": arguments.classes, "spectrum": arguments.spectrum}
    target.write_text(json.dumps({"arguments": said, "machine": machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
