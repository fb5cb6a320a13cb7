"""Small fits and batches of them beside their peers: medians of interleaved rounds, agreement asserted first.

python benchmarks/latency.py            on one thread, then on two with a torch product between the fits
python benchmarks/latency.py one        one of both
"""

import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from threadpoolctl import threadpool_limits
from torch import Tensor

from torchridge import logistic, ridge, ridge_cv
from torchridge.exceptions import GridEdgeWarning

warnings.simplefilter("ignore", GridEdgeWarning)
ROUNDS = 101
Call = Callable[[], Any]


def rows(n: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = X @ torch.randn(d, generator=generator, dtype=torch.float64)
    return X, y + 3 * torch.randn(n, generator=generator, dtype=torch.float64)


def close(got: Any, want: Any, tolerance: float = 1e-9) -> None:
    got, want = np.asarray(got).ravel(), np.asarray(want).ravel()
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error <= tolerance, f"disagreement: {error:.1e} > {tolerance:.0e}"


def single(n: int, d: int) -> tuple[Call, Call]:
    X, y = rows(n, d)
    A, b, model = X.numpy(), y.numpy(), Ridge(alpha=1.0)
    close(ridge(X, y, 1.0).weight, model.fit(A, b).coef_)
    return lambda: ridge(X, y, 1.0), lambda: model.fit(A, b)


def leave_one_out(n: int, d: int) -> tuple[Call, Call]:
    X, y = rows(n, d)
    alphas = torch.logspace(-2, 4, 20, dtype=torch.float64)
    A, b, model = X.numpy(), y.numpy(), RidgeCV(alphas=alphas.numpy())
    ours = ridge_cv(X, y, alphas, cv="loo")
    assert float(ours.alpha) == model.fit(A, b).alpha_
    close(ours.weight, model.coef_)
    return lambda: ridge_cv(X, y, alphas, cv="loo"), lambda: model.fit(A, b)


def objective(X: Any, y: Any, weight: Any, bias: Any) -> float:
    logits = X @ np.asarray(weight).T + np.asarray(bias)
    logits = np.concatenate([np.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    return float((logsumexp(logits, 1) - logits[np.arange(len(y)), y]).sum() + 0.5 * np.sum(np.asarray(weight) ** 2))


def single_logistic(n: int, d: int, classes: int) -> tuple[Call, Call]:
    """Both to a relative gap of the objective of 1e-6: the peer's `tol` is lowered until it is that exact."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, d))
    labels = (A @ rng.standard_normal((d, classes)) * 2 / np.sqrt(d) + rng.gumbel(size=(n, classes))).argmax(1)
    labels[:classes] = np.arange(classes)
    X, y = torch.from_numpy(A), torch.from_numpy(labels)
    exact, ours = logistic(X, y, tol=1e-12), logistic(X, y, tol=1e-6)
    best = objective(A, labels, exact.weight, exact.bias)
    assert objective(A, labels, ours.weight, ours.bias) <= best * (1 + 1e-6)
    model = LogisticRegression(max_iter=1000)
    while objective(A, labels, model.fit(A, labels).coef_, model.intercept_) > best * (1 + 1e-6):
        model.set_params(tol=model.tol / 4)
    return lambda: logistic(X, y, tol=1e-6), lambda: model.fit(A, labels)


def batch(tasks: int, n: int, d: int, dtype: torch.dtype, intercept: bool) -> tuple[Call, Call]:
    """Five targets, forward and backward, beside the dual written by hand (centred if an intercept is fitted)."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(tasks, n, d, generator=generator, dtype=dtype, requires_grad=True)
    y = torch.randn(tasks, n, 5, generator=generator, dtype=dtype)
    eye = torch.eye(n, dtype=dtype)

    def by_hand() -> Tensor:
        x, z = X, y
        if intercept:
            x, z = X - X.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return (x.mT @ torch.linalg.solve(x @ x.mT + eye, z)).mT

    def both(weight: Callable[[], Tensor]) -> Call:
        def call() -> None:
            X.grad = None
            weight().square().sum().backward()

        return call

    def ours() -> Tensor:
        return ridge(X, y, 1.0, fit_intercept=intercept).weight

    close(ours().detach(), by_hand().detach(), 1e-9 if dtype is torch.float64 else 1e-4)
    return both(ours), both(by_hand)


CASES: dict[str, Callable[[], tuple[Call, Call]]] = {
    "ridge (100, 10)": lambda: single(100, 10),
    "ridge (1000, 50)": lambda: single(1000, 50),
    "ridge (200, 400)": lambda: single(200, 400),
    "leave-one-out × 20 (100, 10)": lambda: leave_one_out(100, 10),
    "leave-one-out × 20 (200, 400)": lambda: leave_one_out(200, 400),
    "logistic (100, 10), binary": lambda: single_logistic(100, 10, 2),
    "logistic (100, 10), 10 classes": lambda: single_logistic(100, 10, 10),
    "logistic (1000, 50), binary": lambda: single_logistic(1000, 50, 2),
    "logistic (1000, 50), 10 classes": lambda: single_logistic(1000, 50, 10),
    "logistic (200, 400), binary": lambda: single_logistic(200, 400, 2),
    "logistic (200, 400), 10 classes": lambda: single_logistic(200, 400, 10),
    "64 tasks (25, 64), forward and backward": lambda: batch(64, 25, 64, torch.float64, False),
    "64 tasks (25, 640), forward and backward": lambda: batch(64, 25, 640, torch.float64, False),
    "256 tasks (5, 64), forward and backward": lambda: batch(256, 5, 64, torch.float64, False),
    "64 tasks (25, 64), with intercept": lambda: batch(64, 25, 64, torch.float64, True),
    "64 tasks (25, 64) float32, solved in float64": lambda: batch(64, 25, 64, torch.float32, False),
}


def medians(ours: Call, peer: Call, between: Call) -> tuple[float, float]:
    """Time both in turn, with other work between them."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(ROUNDS + 10):
        for call, kept in zip((ours, peer), times, strict=True):
            between()
            start = time.perf_counter()
            call()
            if i >= 10:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def table(threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    a = torch.randn(300, 300)
    between: Call = (lambda: a @ a) if threads > 1 else (lambda: None)
    result = {}
    with threadpool_limits(threads):
        for name, make in CASES.items():
            ours, peer = medians(*make(), between)
            result[name] = {"ours_ms": ours * 1e3, "peer_ms": peer * 1e3, "ratio": ours / peer}
            print(f"    {name:48s} {ours * 1e3:8.3f} ms   peer {peer * 1e3:8.3f} ms   {ours / peer:5.2f} ×")
    return result


def import_seconds() -> dict[str, float]:
    """Return what imports take after torch's own, in fresh processes: names are found when they are asked for."""
    result = {}
    for what in ("import torchridge", "from torchridge import ridge", "from torchridge import ridge_cv, logistic_cv"):
        code = f"import time, torch; s = time.perf_counter(); {what}; print(time.perf_counter() - s)"
        times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)]
        result[what] = statistics.median(times)
        print(f"    {what}, after torch: {result[what]:.3f} s")
    return result


if __name__ == "__main__":
    print(harness.machine())
    threads = {"one": 1, "two": 2}
    for which in sys.argv[1:] or [*threads, "import"]:
        print(which)
        found = import_seconds() if which == "import" else table(threads[which])
        print(harness.save("latency", {which: found}))
