"""Ridge by products with X, where a Gram matrix is out of reach, beside scikit-learn's two solvers of that kind.

python benchmarks/large.py                 dense and sparse: 8 GB for scikit-learn's dense side, some ten minutes
python benchmarks/large.py sparse flat     some of them
python benchmarks/large.py dense --scale 10  a tenth of the rows and features
python benchmarks/large.py dense --sides lsqr  one side, beside what the others took before

The residual of every answer is taken here, in float64, from the data and the weights alone:
‖Xᵀ(y − Xw) − αw‖ / ‖Xᵀy‖. Every side runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from scipy import sparse as scipy_sparse
from sklearn.linear_model import Ridge

from torchridge import ridge

TOLERANCE = 1e-8
SIDES = ("ours", "plain", "sparse_cg", "lsqr")
NAMES = {
    "ours": "ridge(solver='cg')",
    "plain": "ridge(solver='cg', rank=0), plain conjugate gradients",
    "sparse_cg": "scikit-learn Ridge(solver='sparse_cg')",
    "lsqr": "scikit-learn Ridge(solver='lsqr')",
}


class Case(NamedTuple):
    n: int
    d: int
    alpha: float
    decay: float  # feature j is scaled by j^−decay
    spectrum: str


CASES = {
    "dense": Case(20_000, 50_000, 0.1, 1.0, "independent normal features, feature j scaled by 1/j"),
    "sparse": Case(200_000, 200_000, 1e-3, 1.0, "200 normal entries a row, features scaled by 1/j in random order"),
    "flat": Case(200_000, 200_000, 10.0, 0.0, "200 normal entries a row, all features alike: no preconditioner helps"),
}


def dense(case: Case, dtype: Any) -> Any:
    generator = np.random.default_rng(0)
    scale = (np.arange(1, case.d + 1) ** -case.decay).astype(np.float32)
    X = np.empty((case.n, case.d), dtype)
    for start in range(0, case.n, 500):
        rows = slice(start, min(start + 500, case.n))
        X[rows] = generator.standard_normal((rows.stop - start, case.d), dtype=np.float32) * scale
    return X


def sparse(case: Case) -> Any:
    generator, each = np.random.default_rng(0), case.d // 1000
    width = case.d // each
    scale = generator.permutation(np.arange(1, case.d + 1) ** -case.decay)
    indices = np.empty((case.n, each), np.int32)
    data = np.empty((case.n, each))
    for start in range(0, case.n, 5000):
        rows = slice(start, min(start + 5000, case.n))
        shape = (rows.stop - start, each)
        indices[rows] = np.arange(each) * width + generator.integers(0, width, shape)
        data[rows] = generator.standard_normal(shape) * scale[indices[rows]]
    starts = np.arange(case.n + 1, dtype=np.int32) * each
    return scipy_sparse.csr_matrix((data.reshape(-1), indices.reshape(-1), starts), shape=(case.n, case.d))


def target(X: Any, case: Case) -> Any:
    generator = np.random.default_rng(1)
    w = generator.standard_normal(case.d)
    signal = np.concatenate([X[i : i + 500] @ w for i in range(0, case.n, 500)]) if isinstance(X, np.ndarray) else X @ w
    return signal + 0.1 * signal.std() * generator.standard_normal(case.n)


def residual(X: Any, y: Any, w: Any, alpha: float) -> float:
    w = w.astype(np.float64)
    gradient, right = -alpha * w, np.zeros_like(w)
    for start in range(0, X.shape[0], 500):
        rows = X[start : start + 500].astype(np.float64)
        some = y[start : start + 500]
        gradient += rows.T @ (some - rows @ w)
        right += rows.T @ some
    return float(np.linalg.norm(gradient) / np.linalg.norm(right))


def memory(what: str) -> float:
    """Return this process's memory in MB: "VmRSS" as it is, "VmHWM" at its largest since `forget_peak` (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def solve_ours(X: Any, y: Any, alpha: float, rank: int | None) -> dict[str, Any]:
    rows = torch.from_numpy(X) if isinstance(X, np.ndarray) else X
    start, cpu = time.perf_counter(), time.process_time()
    solution = ridge(rows, torch.from_numpy(y), alpha, solver="cg", fit_intercept=False, tol=TOLERANCE, rank=rank)
    seconds = {"seconds": time.perf_counter() - start, "cpu seconds": time.process_time() - cpu}
    return {**seconds, "steps": solution.n_iter, "note": solution.reason, "w": solution.weight[0].numpy()}


def solve_theirs(X: Any, y: Any, alpha: float, solver: str, tol: float) -> dict[str, Any]:
    model = Ridge(alpha=alpha, solver=solver, fit_intercept=False, tol=tol, copy_X=False, max_iter=100_000)
    start, cpu = time.perf_counter(), time.process_time()
    model.fit(X, y)
    seconds = {"seconds": time.perf_counter() - start, "cpu seconds": time.process_time() - cpu}
    steps = None if model.n_iter_ is None else int(model.n_iter_[0])
    return {**seconds, "steps": steps, "note": f"tol={tol:g}", "w": model.coef_}


def run(name: str, side: str, tol: float, scale: int) -> dict[str, Any]:
    """Solve one case on one side, in this process."""
    case = scaled(CASES[name], scale)
    ours = side in ("ours", "plain")
    X = dense(case, np.float32 if ours else np.float64) if name == "dense" else sparse(case)
    y = target(X, case)
    forget_peak()
    before = memory("VmRSS")
    warnings.simplefilter("error")
    found = (
        solve_ours(X, y, case.alpha, None if side == "ours" else 0)
        if ours
        else solve_theirs(X, y, case.alpha, side, tol)
    )
    found["MB above the data"] = memory("VmHWM") - before
    found["data, MB"] = (X.nbytes if name == "dense" else X.data.nbytes + X.indices.nbytes + X.indptr.nbytes) / 2**20
    found["residual"] = residual(X, y, found.pop("w"), case.alpha)
    return found


def scaled(case: Case, scale: int) -> Case:
    return case._replace(n=case.n // scale, d=case.d // scale)


def beside(name: str, side: str, tol: float, scale: int) -> dict[str, Any]:
    """Solve in a process of its own."""
    command = [sys.executable, __file__, name, "--side", side, "--tol", repr(tol), "--scale", str(scale)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    return json.loads(out.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def tolerance_for(name: str, side: str, scale: int) -> float:
    """Return the loosest of their tolerances that reaches our residual on a tenth of the rows and features.

    Theirs is of another residual: of the dual for sparse_cg where n < d, of A's norm for lsqr.
    """
    for exponent in range(6, 13):
        for factor in (3.0, 1.0):
            tol = factor * 10.0**-exponent
            if beside(name, side, tol, 10 * scale)["residual"] <= TOLERANCE:
                return tol
    raise AssertionError(f"{side} does not reach {TOLERANCE}")


def compare(name: str, scale: int, sides: list[str], first: float | None) -> dict[str, dict[str, Any]]:
    case, results = scaled(CASES[name], scale), {}
    print(f"{name}: ({case.n}, {case.d}), alpha {case.alpha}; {case.spectrum}")
    for side in sides:
        tol = TOLERANCE if side in ("ours", "plain") else first or tolerance_for(name, side, scale)
        found = beside(name, side, tol, scale)
        while found["residual"] > TOLERANCE and side not in ("ours", "plain"):
            tol /= 3
            found = beside(name, side, tol, scale)
        assert found["residual"] <= TOLERANCE, (side, found)
        results[side] = found
        print(f"    {NAMES[side]:56s} {json.dumps(found, ensure_ascii=False)}", flush=True)
    return {NAMES[side]: found for side, found in results.items()}


def summary(name: str, key: str, sides: dict[str, Any], scale: int) -> dict[str, Any]:
    """Print what the sides took, those of earlier runs of this case among them, and return it."""
    path = harness.RESULTS / "large-cpu.json"
    before = json.loads(path.read_text())["results"].get(key, {}).get("sides", {}) if path.exists() else {}
    sides = {side: {**before, **sides}[side] for side in NAMES.values() if side in {**before, **sides}}
    ours, plain = NAMES["ours"], NAMES["plain"]
    if ours not in sides:
        return {"case": scaled(CASES[name], scale)._asdict(), "sides": sides}
    if plain in sides:
        print(f"    steps of plain conjugate gradients / ours: {sides[plain]['steps'] / sides[ours]['steps']:.1f}")
    times = {side: found["seconds"] for side, found in sides.items()}
    result = harness.report(f"{name}, relative residual ≤ {TOLERANCE:g}", times, ours)
    busy = {side: found["cpu seconds"] for side, found in sides.items()}
    harness.report("the same in processor seconds, which a busy machine does not stretch", busy, ours)
    return {**result, "case": scaled(CASES[name], scale)._asdict(), "sides": sides}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--tol", type=float, help="of scikit-learn to begin with, lowered until the residual is reached"
    )
    parser.add_argument("--scale", type=int, default=1)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run(given.cases[0], given.side, given.tol or TOLERANCE, given.scale)))
    else:
        print(harness.machine())
        for name in given.cases or list(CASES):
            sides = compare(name, given.scale, given.sides, given.tol)
            key = name if given.scale == 1 else f"{name}, a {given.scale}th of the rows and features"
            print(harness.save("large", {key: summary(name, key, sides, given.scale)}))
