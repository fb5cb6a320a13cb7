"""The steps of `cuda.py`: the device's tests, then the costs of the closed form on it.

Every figure stands beside one measured in the same run: the rate of a plain matrix product, the same work written by
hand, the bare forward pass. Agreement is asserted before anything is timed. Results go to `results/device-cuda.json`
after every step, so that a run cut short keeps what it found.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn

from torchridge import Moments, TorchridgeWarning, logistic, probe_layers, ridge, ridge_cv

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
sys.path.append(str(TESTS))

from pretended_cuda import host_waits  # noqa: E402
from pretended_cuda.install import installed  # noqa: E402

DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Sizes:
    """How large each step is."""

    runs: int
    tests: tuple[str, ...]
    test_seconds: float
    product: tuple[int, int]
    factors: tuple[int, ...]
    folds: tuple[int, int, int]
    strengths: int
    tasks: tuple[tuple[int, int, int], ...]
    logistic: tuple[int, int, int]
    tokens: tuple[int, int, int]  # examples, length, width
    targets: tuple[tuple[int, int, int], ...]


FULL = Sizes(
    runs=5,
    tests=("tests",),
    test_seconds=300,
    product=(65_536, 4096),
    factors=(512, 1024, 2048, 4096),
    folds=(1_000_000, 4096, 1000),
    strengths=100,
    tasks=((64, 25, 64), (64, 25, 640), (256, 5, 640), (4096, 25, 64)),
    logistic=(100_000, 1024, 10),
    tokens=(4096, 128, 768),
    targets=((600, 20_000, 2_000), (600, 40_000, 8_000), (2_000, 40_000, 40_000)),
)
SMALL = Sizes(
    runs=1,
    tests=("tests/test_ridge_single_row.py",),
    test_seconds=120,
    product=(400, 24),
    factors=(8, 16),
    folds=(300, 12, 4),
    strengths=10,
    tasks=((4, 5, 8), (4, 8, 5)),
    logistic=(120, 6, 3),
    tokens=(40, 6, 8),
    targets=((40, 60, 5),),
)

Step = Callable[[Sizes], dict[str, Any]]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    error = float(torch.linalg.vector_norm(got.double() - want.double()) / torch.linalg.vector_norm(want.double()))
    assert error <= tolerance, f"{what}: disagreement of {error:.1e}, above {tolerance:.0e}"


def timed(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    return harness.alternate(calls, runs)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Draw on the device, a piece at a time: torch.randn offers no bfloat16 without a float32 copy of it all."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    out = torch.empty(shape, dtype=dtype, device=DEVICE)
    for piece in out.split(max(1, 2**26 // math.prod(shape[1:]))):
        piece.copy_(torch.randn(piece.shape, generator=generator, dtype=torch.float32, device=DEVICE))
    return out


def planted(n: int, d: int, t: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    X, weight = normal(n, d, dtype=dtype), normal(d, t, dtype=torch.float32, seed=1)
    y = 10 * normal(n, t, dtype=torch.float32, seed=2)
    for part in torch.arange(n).split(2**16):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        y[rows] += X[rows].float() @ weight
    return X, y


def alphas(count: int) -> Tensor:
    return torch.logspace(-2, 6, count, dtype=torch.float64, device=DEVICE)


# ---------------------------------------------------------------- steps


@step
def tests(sizes: Sizes) -> dict[str, Any]:
    """The tests that take a device, on this one."""
    launcher, device = (["pretended_cuda", "pytest"], "pretended") if installed() else (["pytest"], "cuda")
    command = [sys.executable, "-m", *launcher, *sizes.tests, "--device", device, "-rf", "-p", "no:cacheprovider"]
    environment = {"PYTHONPATH": f"{TESTS}:{ROOT}"}
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=harness.environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, finished = process.communicate(timeout=sizes.test_seconds)[0], True
        except subprocess.TimeoutExpired:
            process.kill()
            output, finished = process.communicate()[0], False
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error|deselected)", output)}
    failed = re.findall(r"^FAILED (.*)$", output, flags=re.MULTILINE)
    print(f"    {counts}, finished: {finished}", *failed, sep="\n    ")
    if not counts and finished:
        print(output[-2000:])
    return {"seconds": time.perf_counter() - start, "finished": finished, "counts": counts, "failed": failed}


@step
def products(sizes: Sizes) -> dict[str, Any]:
    """The symmetric product of moments, against one plain product of the same rows."""
    n, d = sizes.product
    found = {}
    for rows in (torch.float64, torch.float32, torch.bfloat16):
        X, y = normal(n, d, dtype=rows), normal(n, 1, dtype=torch.float32)
        wide = X.double()
        close(Moments().update(X[:4096], y[:4096]).gram, centred_gram(wide[:4096]), 1e-6, f"gram of {rows}")
        calls: dict[str, Callable[[], Any]] = {
            "Moments().update, summed in float64": lambda X=X, y=y: Moments().update(X, y),
            "one product, float64": lambda wide=wide: wide.T @ wide,
        }
        if rows is not torch.float64:
            calls[f"one product, {name(rows)}"] = lambda X=X: X.T @ X
        if rows is torch.float32:
            calls["Moments(float32).update"] = lambda X=X, y=y: Moments(dtype=torch.float32).update(X, y)
        found[name(rows)] = with_rates(f"({n}, {d}) {name(rows)} rows", timed(calls, sizes.runs), 2 * n * d**2)
    return found


def centred_gram(X: Tensor) -> Tensor:
    X = X - X.mean(0)
    return X.T @ X


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def with_rates(title: str, times: dict[str, float], flops: float) -> dict[str, Any]:
    """Report times, with the rate that each would be of a plain product's work."""
    result = harness.report(title, times, next(iter(times)))
    return result | {"tflops_of_a_product": {key: flops / value / 1e12 for key, value in times.items()}}


@step
def factorizations(sizes: Sizes) -> dict[str, Any]:
    """`eigh` and Cholesky of a Gram matrix, in products of its size; the strengths at which `eigh` pays follow."""
    found = {}
    for d in sizes.factors:
        X = normal(4 * d, d)
        gram = X.T @ X
        eigvals, eigvecs = torch.linalg.eigh(gram)
        close((eigvecs * eigvals) @ eigvecs.T, gram, 1e-10, "eigh")
        factor = torch.linalg.cholesky_ex(gram)[0]
        close(factor @ factor.T, gram, 1e-12, "Cholesky")
        calls: dict[str, Callable[[], Any]] = {
            "one product, float64": lambda a=gram: a @ a,
            "eigh, float64": lambda a=gram: torch.linalg.eigh(a),
            "Cholesky, float64": lambda a=gram: torch.linalg.cholesky_ex(a),
            "Cholesky and its inverse, float64": lambda a=gram: torch.cholesky_inverse(torch.linalg.cholesky_ex(a)[0]),
        }
        times = timed(calls, sizes.runs)
        found[str(d)] = harness.report(f"({d}, {d}) float64", times, "one product, float64", "product")
        found[str(d)]["cholesky_factors_an_eigh_costs"] = times["eigh, float64"] / times["Cholesky, float64"]
    return found


@step
def batches(sizes: Sizes) -> dict[str, Any]:
    """Many small problems, forward and backward, against the smaller system written by hand."""
    found = {}
    for tasks, n, d in sizes.tasks:
        X, y = normal(tasks, n, d).requires_grad_(), normal(tasks, n, 5, seed=1).requires_grad_()
        plain = X.detach(), y.detach()
        mine, theirs = ridge(X, y, 1.0).predict(X), by_hand(X, y, 1.0)
        close(mine.detach(), theirs.detach(), 1e-9, "batch")
        ours, hand = (torch.autograd.grad(out.square().sum(), [X, y]) for out in (mine, theirs))
        for a, b in zip(ours, hand, strict=True):
            close(a, b, 1e-8, "its gradient")
        calls = {
            "ridge, forward and backward": lambda X=X, y=y: ridge(X, y, 1.0).predict(X).square().sum().backward(),
            "by hand, forward and backward": lambda X=X, y=y: by_hand(X, y, 1.0).square().sum().backward(),
            "ridge, forward": lambda plain=plain: ridge(*plain, 1.0),
        }
        title = f"{tasks} tasks of ({n}, {d}), 5 targets, float64"
        found[f"{tasks}x{n}x{d}"] = harness.report(title, timed(calls, sizes.runs), next(iter(calls)))
    return found


def by_hand(X: Tensor, y: Tensor, alpha: float) -> Tensor:
    """Predictions of the rows, from the smaller of both systems of normal equations."""
    center, middle = X.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    A, b = X - center, y - middle
    n, d = X.shape[-2:]
    eye = alpha * torch.eye(min(n, d), dtype=X.dtype, device=X.device)
    if n < d:
        return A @ (A.mT @ torch.linalg.solve(A @ A.mT + eye, b)) + middle
    return A @ torch.linalg.solve(A.mT @ A + eye, A.mT @ b) + middle


@step
def logistic_path(sizes: Sizes) -> dict[str, Any]:
    """A path of 20 strengths, against the products of its evaluations done one by one."""
    n, d, k = sizes.logistic
    X = normal(n, d, dtype=torch.float32)
    logits = X @ normal(d, k, dtype=torch.float32, seed=1) * (4 / math.sqrt(d))
    labels = (logits - torch.log(-torch.log(torch.rand(n, k, device=DEVICE)))).argmax(1)
    Cs = torch.logspace(-4, 0, 20, dtype=torch.float64) / n * 1000
    solution = logistic(X, labels, Cs)
    assert bool(solution.converged.all()), "a strength did not converge"
    assert_stationary(X, labels, solution, float(Cs[10]), 10)
    evaluations, weight = int(solution.n_iter.sum()), normal(d, k, dtype=torch.float32)

    def bare() -> None:
        for _ in range(evaluations):
            X.T @ (X @ weight)

    calls = {"logistic, 20 strengths": lambda: logistic(X, labels, Cs), "its products, one by one": bare}
    result = harness.report(f"({n}, {d}), {k} classes, float32", timed(calls, min(sizes.runs, 3)), next(iter(calls)))
    return result | {"evaluations": evaluations}


def assert_stationary(X: Tensor, labels: Tensor, solution: Any, C: float, index: int) -> None:
    """The gradient of the objective vanishes at the weights, next to what it is at zero."""

    def gradient(weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
        loss = nn.functional.cross_entropy(X.double() @ weight.mT + bias, labels, reduction="sum")
        return torch.autograd.grad(C * loss + 0.5 * weight.square().sum(), weight)[0]

    one = solution.at(index)
    left, whole = gradient(one.weight, one.bias), gradient(0 * one.weight, 0 * one.bias)
    assert float(left.norm() / whole.norm()) <= 1e-2, "not stationary"


class Encoder(nn.Module):
    """An embedding and four pre-norm transformer layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        heads = max(1, width // 64)
        options: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.layer = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)
        for layer in self.layer:
            x = layer(x)
        return x


@step
def probes(sizes: Sizes) -> dict[str, Any]:
    """Probes of four layers in one pass, against that pass alone."""
    n, length, width = sizes.tokens
    torch.manual_seed(0)
    tokens, labels = torch.randint(1000, (n, length)), torch.arange(n) % 4
    tokens[:, 0] = labels  # which a probe can read
    model = Encoder(width).to(DEVICE).eval()
    size = max(8, min(64, n // 4))
    steps = [(tokens[i : i + size].to(DEVICE), labels[i : i + size]) for i in range(0, n, size)]

    def forward() -> None:
        with torch.no_grad():
            for rows, _ in steps:
                model(rows)

    def probed(readout: list[str]) -> Any:
        return probe_layers(model, steps, "layer.*", task="classification", readout=readout, cv=5)

    report = probed(["ridge"])
    assert len(list(report)) == 4 and all(p.weight.isfinite().all() for p in report)
    calls: dict[str, Callable[[], Any]] = {
        "probe_layers, ridge": lambda: probed(["ridge"]),
        "probe_layers, ridge and LDA": lambda: probed(["ridge", "lda"]),
        "forward pass alone": forward,
    }
    times = timed(calls, min(sizes.runs, 3))
    return harness.report(f"4 layers of width {width}, {n} examples of {length} tokens", times, next(iter(calls)))


@step
def targets(sizes: Sizes) -> dict[str, Any]:
    """Many targets of few rows, a strength for each, against himalaya on the same device."""
    try:
        from himalaya.backend import set_backend
        from himalaya.kernel_ridge import KernelRidgeCV
    except ImportError:
        print("    needs himalaya: pip install himalaya")
        return {"not_run": "himalaya is not installed"}
    from sklearn.model_selection import KFold

    grid = torch.logspace(2, 7, 15, dtype=torch.float64, device=DEVICE)

    def ours(X: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        solution = ridge_cv(X, y, grid, cv=5, alpha_per_target=True, **options)
        return solution.alpha, solution.predict(X[:100])

    def theirs(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        set_backend("torch_cuda")
        model = KernelRidgeCV(alphas=grid.float(), cv=KFold(5), fit_intercept=True).fit(X, y)
        return model.best_alphas_.to(DEVICE), model.predict(X[:100]).to(DEVICE)

    found = {}
    for n, d, t in sizes.targets:
        X, y = planted(n, d, t, torch.float32)
        (strengths, predicted), (other, other_predicted) = ours(X, y), theirs(X, y)
        same = torch.isclose(strengths.double(), other.double(), rtol=1e-3)
        assert float(same.double().mean()) >= 0.9, "the strengths differ"
        close(predicted[:, same], other_predicted[:, same], 1e-3, "predictions")
        calls = {
            "ridge_cv and predict": lambda X=X, y=y: ours(X, y),
            "ridge_cv and predict, float32": lambda X=X, y=y: ours(X, y, moments_dtype=torch.float32),
            "himalaya KernelRidgeCV": lambda X=X, y=y: theirs(X, y),
        }
        title = f"({n}, {d}, {t}) float32, 5 folds, {len(grid)} strengths"
        found[f"{n}x{d}x{t}"] = harness.report(title, timed(calls, min(sizes.runs, 3)), next(iter(calls)))
        found[f"{n}x{d}x{t}"]["same_strengths"] = float(same.double().mean())
    return found


@step
def waits(sizes: Sizes) -> dict[str, Any]:
    """How often each call makes the host wait, and where."""
    X, y = planted(2000 if sizes is FULL else 200, 16, 3, torch.float32)
    labels, grid, held = (y[:, 0] > 0).long(), alphas(sizes.strengths), Moments().update(X, y)
    s = torch.ones(len(X), device=DEVICE)
    tasks = X.reshape(len(X) // 20, 20, 16), y.reshape(len(X) // 20, 20, 3)
    calls: dict[str, Callable[[], Any]] = {
        "Moments.update": lambda: held.update(X, y),
        "Moments.update with weights": lambda: Moments().update(X, y, s),
        "ridge": lambda: ridge(X, y, 1.0),
        "ridge of a batch": lambda: ridge(*tasks, 1.0),
        f"ridge_cv(cv=5), {sizes.strengths} strengths": lambda: ridge_cv(X, y, grid, cv=5),
        f"ridge_cv(cv=10), {sizes.strengths} strengths": lambda: ridge_cv(X, y, grid, cv=10),
        "logistic": lambda: logistic(X, labels, 0.01),
    }
    found = {}
    for key, call in calls.items():
        call()
        with host_waits() as counted:
            call()
        found[key] = {"waits": counted.count, "places": sorted({str(wait) for wait in counted.waits})}
        print(f"    {key:48s} {counted.count:4d} host waits")
    return found


def folds(rows: torch.dtype, sizes: Sizes) -> dict[str, Any]:
    n, d, t = fitting(sizes.folds, rows)
    X, y = planted(n, d, t, rows)
    grid = alphas(sizes.strengths)
    some = min(n, 4 * d)
    assert_fold_scores(X[:some], y[:some], grid)
    ours, product = f"ridge_cv(cv=5), {sizes.strengths} strengths", f"one product, {name(rows)}"
    calls = {ours: lambda: ridge_cv(X, y, grid, cv=5), product: lambda: X.T @ X}
    times = timed(calls, {ours: min(sizes.runs, 2), product: sizes.runs})
    result = with_rates(f"({n}, {d}, {t}) {name(rows)}, 5 folds", times, 2 * n * d**2)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return result | {"shape": [n, d, t], "peak_gib": peak}


def fitting(shape: tuple[int, int, int], rows: torch.dtype) -> tuple[int, int, int]:
    """Halve the rows until they and what the solver takes beside them fit into the device's memory."""
    n, d, t = shape
    free = torch.cuda.mem_get_info()[0]
    while n * (d * rows.itemsize + 8 * t) + 100 * d**2 * 8 > 0.8 * free and n > 8 * d:
        n //= 2
    return n, d, t


def assert_fold_scores(X: Tensor, y: Tensor, grid: Tensor) -> None:
    """Hold the first fold at the middle strength against normal equations of its rows in float64."""
    solution, i = ridge_cv(X, y, grid, cv=5), len(grid) // 2
    held = slice(0, -(-len(X) // 5))
    A, b = X[held.stop :].double(), y[held.stop :].double()
    center, middle = A.mean(0), b.mean(0)
    A, b = A - center, b - middle
    weight = torch.linalg.solve(A.T @ A + grid[i] * torch.eye(A.shape[1], dtype=A.dtype, device=A.device), A.T @ b)
    error = (y[held].double() - (X[held].double() - center) @ weight - middle).square().mean(0)
    assert solution.fold_scores is not None
    close(-solution.fold_scores[0, i], error, 1e-6, "scores of a fold")


@step
def folds_bfloat16(sizes: Sizes) -> dict[str, Any]:
    """K folds × many strengths of many targets, from bfloat16 rows."""
    return folds(torch.bfloat16, sizes)


@step
def folds_float32(sizes: Sizes) -> dict[str, Any]:
    """The same from float32 rows."""
    return folds(torch.float32, sizes)


# ---------------------------------------------------------------- the run


def run(chosen: list[str], sizes: Sizes, minutes: float) -> dict[str, Any]:
    """Take the steps in turn until the time is up; save after each."""
    end, found = time.monotonic() + 60 * minutes, dict[str, Any]()
    for key in chosen:
        left = end - time.monotonic()
        if left <= 0:
            found[key] = {"not_reached": f"after {minutes:g} minutes"}
            print(f"{key}: not reached in {minutes:g} minutes")
        else:
            print(f"{key}: {STEPS[key].__doc__}", flush=True)
            start = time.perf_counter()
            limited = replace(sizes, test_seconds=min(sizes.test_seconds, left))
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TorchridgeWarning)
                found[key] = STEPS[key](limited) | {"step_seconds": time.perf_counter() - start}
        harness.save("device", {key: found[key]})
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="cuda.py", description="Test and measure one CUDA device.")
    parser.add_argument("steps", nargs="*", metavar="step", help=f"any of {', '.join(STEPS)}; by default all")
    parser.add_argument("--minutes", type=float, default=9.5, help="when to start no further step (default: 9.5)")
    parser.add_argument("--small", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args(arguments)
    if unknown := [key for key in options.steps if key not in STEPS]:
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    if not torch.cuda.is_available():
        print("benchmarks/cuda.py needs a CUDA device: torch.cuda.is_available() is False here.", file=sys.stderr)
        print(f"torch {torch.__version__}, CUDA of this build: {torch.version.cuda}.", file=sys.stderr)
        return 2
    print(harness.machine())
    found = run(options.steps or list(STEPS), SMALL if options.small else FULL, options.minutes)
    print(harness.RESULTS / "device-cuda.json")
    return int(bool(found.get("tests", {}).get("failed")))
