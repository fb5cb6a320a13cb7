"""Cross-validated ridge beside its peers: the same data, one process, agreement asserted before anything is timed.

python benchmarks/ridge_cv.py            every case; himalaya takes minutes on some
python benchmarks/ridge_cv.py gram loo   some of them
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold

from torchridge import estimators, ridge, ridge_cv
from torchridge.exceptions import GridEdgeWarning

warnings.simplefilter("ignore", GridEdgeWarning)
warnings.filterwarnings("ignore", module="himalaya")
CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


def planted(n: int, d: int, t: int, dtype: torch.dtype, noise: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=g, dtype=dtype)
    y = X @ torch.randn(d, t, generator=g, dtype=dtype) + noise * torch.randn(n, t, generator=g, dtype=dtype)
    return X, y


def close(got: Any, want: Any, tolerance: float) -> None:
    got, want = np.asarray(got), np.asarray(want)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error <= tolerance, f"disagreement: {error:.1e} > {tolerance:.0e}"


def assert_fold_scores(
    X: torch.Tensor, y: torch.Tensor, scores: torch.Tensor, alphas: torch.Tensor, some: list[int]
) -> None:
    """Hold the scores of some strengths against refitting each fold in float64."""
    A, b = X.numpy(), y.double().numpy()
    for k, (train, test) in enumerate(KFold(len(scores)).split(A)):
        for i in some:
            model = Ridge(alpha=float(alphas[i]), solver="cholesky").fit(A[train].astype(np.float64), b[train])
            error = (b[test] - model.predict(A[test].astype(np.float64)).reshape(len(test), -1)) ** 2
            close(-scores[k, i], error.mean(0), 1e-8)


@case
def gram() -> dict[str, Any]:
    X, y = planted(100_000, 1024, 10, torch.float32)
    Xd, alphas = X.double(), torch.logspace(-2, 6, 100)
    solution = ridge_cv(X, y, alphas, cv=5)
    assert_fold_scores(X, y, solution.fold_scores, alphas, [0, 50])
    times = harness.alternate(
        {"ridge_cv(cv=5), 100 strengths": lambda: ridge_cv(X, y, alphas, cv=5), "X.T @ X, float64": lambda: Xd.T @ Xd}
    )
    names = list(times)
    result = harness.report(
        "(100000, 1024, 10) float32, 5 folds, 100 strengths, against one product of torch", times, names[0]
    )
    print(f"    ours / product = {times[names[0]] / times[names[1]]:.2f}")
    return result


@case
def folds() -> dict[str, Any]:
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV as HimalayaRidgeCV

    set_backend("torch")
    X, y = planted(20_000, 512, 1, torch.float64)
    A, b, a20, a100 = X.numpy(), y[:, 0].numpy(), np.logspace(-2, 5, 20), np.logspace(-2, 5, 100)
    theirs = RidgeCV(alphas=a20, cv=5, scoring="neg_mean_squared_error").fit(A, b)
    ours = ridge_cv(X, y, torch.from_numpy(a20), cv=5, scoring="mse")
    assert float(ours.alpha) == theirs.alpha_
    close(ours.best_score, theirs.best_score_, 1e-8)
    # Agreement with himalaya on fewer rows: it takes minutes on all of them.
    himalaya = HimalayaRidgeCV(alphas=a20, cv=5, fit_intercept=True).fit(X[:2000], y[:2000])
    close(himalaya.coef_.T, ridge(X[:2000], y[:2000], float(himalaya.best_alphas_[0])).weight, 1e-6)
    mine, his = "ridge_cv(cv=5), 20 strengths", "himalaya RidgeCV(cv=5), torch, 20 strengths"
    first = harness.alternate(
        {
            mine: lambda: ridge_cv(X, y, torch.from_numpy(a20), cv=5),
            his: lambda: HimalayaRidgeCV(alphas=a20, cv=5, fit_intercept=True).fit(X, y),
        },
        {mine: 5, his: 1},
    )
    second = harness.alternate(
        {
            "ridge_cv(cv=5), 100 strengths": lambda: ridge_cv(X, y, torch.from_numpy(a100), cv=5),
            "scikit-learn RidgeCV(cv=5), 100 strengths": lambda: RidgeCV(alphas=a100, cv=5).fit(A, b),
        },
        {"ridge_cv(cv=5), 100 strengths": 5, "scikit-learn RidgeCV(cv=5), 100 strengths": 1},
    )
    return {
        "20": harness.report("(20000, 512, 1) float64, 5 folds", first, next(iter(first))),
        "100": harness.report("(20000, 512, 1) float64, 5 folds", second, next(iter(second))),
    }


@case
def loo() -> dict[str, Any]:
    X, y = planted(20_000, 512, 1, torch.float64)
    A, b, alphas = X.numpy(), y[:, 0].numpy(), np.logspace(-2, 5, 20)
    theirs = RidgeCV(alphas=alphas).fit(A, b)
    ours = ridge_cv(X, y, torch.from_numpy(alphas), cv="loo")
    assert float(ours.alpha) == theirs.alpha_
    close(ours.best_score, theirs.best_score_, 1e-8)
    times = harness.alternate(
        {
            "ridge_cv(cv='loo'), 20 strengths": lambda: ridge_cv(X, y, torch.from_numpy(alphas), cv="loo"),
            "scikit-learn RidgeCV(), 20 strengths": lambda: RidgeCV(alphas=alphas).fit(A, b),
        }
    )
    return harness.report("(20000, 512, 1) float64, leave-one-out", times, next(iter(times)))


@case
def wide() -> dict[str, Any]:
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import KernelRidgeCV

    set_backend("torch")
    X, y = planted(1_000, 8_000, 10, torch.float64)
    A, b, alphas = X.numpy(), y.numpy(), np.logspace(0, 6, 20)
    theirs = RidgeCV(alphas=alphas, cv=5, scoring="neg_mean_squared_error").fit(A, b)
    ours = ridge_cv(X, y, torch.from_numpy(alphas), cv=5)
    assert float(ours.alpha) == theirs.alpha_
    close(ours.best_score, theirs.best_score_, 1e-8)
    calls = {
        "ridge_cv(cv=5), 20 strengths": lambda: ridge_cv(X, y, torch.from_numpy(alphas), cv=5),
        "himalaya KernelRidgeCV(cv=5), torch": lambda: KernelRidgeCV(
            alphas=alphas, cv=5, kernel="linear", fit_intercept=True
        ).fit(X, y),
        "scikit-learn RidgeCV(cv=5), 20 strengths": lambda: RidgeCV(alphas=alphas, cv=5).fit(A, b),
    }
    names = list(calls)
    times = harness.alternate(calls, {names[0]: 5, names[1]: 5, names[2]: 1})
    return harness.report("(1000, 8000, 10) float64, 5 folds", times, next(iter(times)))


@case
def estimator() -> dict[str, Any]:
    X, y = planted(50_000, 512, 1, torch.float32)
    A, b, alphas = X.numpy(), y.numpy(), torch.logspace(-1, 6, 50, dtype=torch.float64)
    model = estimators.RidgeCV(alphas.numpy(), cv=5, scoring="neg_mean_squared_error").fit(A, b)
    ours = ridge_cv(X, y, alphas, cv=5)
    assert float(ours.alpha) == model.alpha_
    close(ours.best_score, model.best_score_, 1e-12)
    calls = {
        "ridge_cv(cv=5)": lambda: ridge_cv(X, y, alphas, cv=5),
        "estimators.RidgeCV(cv=5).fit": lambda: model.fit(A, b),
    }
    return harness.report(
        "(50000, 512, 1) float32, 5 folds, 50 strengths", harness.alternate(calls, 9), next(iter(calls))
    )


@case
def plain() -> dict[str, Any]:
    X, y = planted(100_000, 1024, 10, torch.float64)
    Xf, yf = X.float(), y.float()
    A, b, Af, bf = X.numpy(), y.numpy(), Xf.numpy(), yf.numpy()
    close(ridge(X, y, 10.0).weight, Ridge(alpha=10.0, solver="cholesky").fit(A, b).coef_, 1e-9)
    close(ridge(Xf, yf, 10.0).weight, ridge(Xf.double(), yf.double(), 10.0).weight, 1e-6)
    close(
        ridge(Xf, yf, 10.0, moments_dtype=torch.float32).weight,
        Ridge(alpha=10.0, solver="cholesky").fit(Af, bf).coef_,
        1e-4,
    )
    double = harness.alternate(
        {
            "ridge, float64": lambda: ridge(X, y, 10.0),
            "scikit-learn Ridge(solver='cholesky'), float64": lambda: Ridge(alpha=10.0, solver="cholesky").fit(A, b),
        }
    )
    single = harness.alternate(
        {
            "ridge, float32 data": lambda: ridge(Xf, yf, 10.0),
            "ridge, float32 data and moments": lambda: ridge(Xf, yf, 10.0, moments_dtype=torch.float32),
            "scikit-learn Ridge(solver='cholesky'), float32": lambda: Ridge(alpha=10.0, solver="cholesky").fit(Af, bf),
        }
    )
    return {
        "float64": harness.report("(100000, 1024, 10), one strength", double, next(iter(double))),
        "float32": harness.report("(100000, 1024, 10), one strength", single, next(iter(single))),
    }


@case
def targets() -> dict[str, Any]:
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV as HimalayaRidgeCV

    set_backend("torch")
    X, y = planted(10_000, 512, 10_000, torch.float64)
    alphas = torch.logspace(-2, 6, 100, dtype=torch.float64)
    solution = ridge_cv(X, y, alphas, cv=5, alpha_per_target=True)
    assert_fold_scores(X, y, solution.fold_scores, alphas, [50])
    # A tenth of the strengths bounds his time from below; all 100 take most of an hour. Batches keep him in memory.
    ours, theirs = "ridge_cv(cv=5), 100 strengths", "himalaya RidgeCV(cv=5), torch, 10 of the 100 strengths"
    batches = {"n_targets_batch": 1000, "n_targets_batch_refit": 1000, "n_alphas_batch": 5}
    calls = {
        ours: lambda: ridge_cv(X, y, alphas, cv=5, alpha_per_target=True),
        theirs: lambda: HimalayaRidgeCV(
            alphas=alphas[::10].numpy(), cv=5, fit_intercept=True, solver_params=batches
        ).fit(X, y),
    }
    times = harness.alternate(calls, {ours: 3, theirs: 1})
    return harness.report("(10000, 512, 10000) float64, 5 folds, a strength for each target", times, ours)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(CASES)
    print(harness.machine())
    for name in chosen:
        print(harness.save("ridge_cv", {name: CASES[name]()}))
