"""Ridge past memory: 5 folds × 100 strengths from a memory-mapped file, beside the same work on rows in memory.

python benchmarks/stream.py                 rate on 1 GB, then 12 GB in a process held to 2 GB above torch's own
python benchmarks/stream.py rate            the rate alone, in alternation with rows in memory
python benchmarks/stream.py memory --gb 12  the bound alone
python benchmarks/stream.py tables --gb 1   CSV and Parquet
python benchmarks/stream.py csv             stray quotes, long cells and 10^5 columns, beside Python's csv

A file lies in a temporary folder (`TMPDIR`) and is removed. The rows in memory are those of the 1 GB file: the rate of
a larger pass in memory is that of going over them again and again, which moments allow.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from torchridge import Moments, RidgeSolution, open_rows, ridge_cv, stream_moments
from torchridge.solvers.moments.folds import contiguous_folds

D, FOLDS, BOUND = 1024, 5, 2**31
ALPHAS = torch.logspace(-2, 6, 100, dtype=torch.float64)


@contextmanager
def mapped(gigabytes: float) -> Iterator[tuple[Path, Path]]:
    """Write float32 rows and their targets, and remove them."""
    n, block = int(gigabytes * 1e9) // (4 * D), 16_384
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((block, D), dtype=np.float32)
    weight = rng.standard_normal(D).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        X, y = Path(folder) / "X.npy", Path(folder) / "y.npy"
        rows = np.lib.format.open_memmap(X, "w+", np.float32, (n, D))
        targets = np.lib.format.open_memmap(y, "w+", np.float32, (n,))
        for start in range(0, n, block):
            part = np.roll(noise, start // block % D, axis=1)[: n - start]
            rows[start : start + block] = part
            targets[start : start + block] = part @ weight + 30 * rng.standard_normal(len(part), dtype=np.float32)
        del rows, targets
        os.sync()  # the disk would write it during what is timed
        yield X, y


def streamed(X: Path, y: Path) -> RidgeSolution:
    source = open_rows(np.load(X, mmap_mode="r"), target=np.load(y, mmap_mode="r"))
    return ridge_cv(stream_moments(source, cv=FOLDS, max_bytes=BOUND), alphas=ALPHAS)


def cost(call: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds on the wall, and of all cores."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def rate(options: argparse.Namespace) -> dict[str, Any]:
    with mapped(options.gb) as (X, y):
        rows, targets = torch.from_numpy(np.load(X)), torch.from_numpy(np.load(y))
        n = len(rows)
        here, there = streamed(X, y), ridge_cv(rows, targets, ALPHAS, cv=FOLDS)
        assert here.alpha == there.alpha
        error = float(torch.linalg.vector_norm(here.weight - there.weight) / torch.linalg.vector_norm(there.weight))
        assert error <= 1e-6, f"disagreement: {error:.1e}"
        calls = {"in memory": lambda: ridge_cv(rows, targets, ALPHAS, cv=FOLDS), "mapped file": lambda: streamed(X, y)}
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                costs[name].append(cost(call))
    wall = {name: statistics.median(w for w, _ in c) for name, c in costs.items()}
    cpu = {name: statistics.median(c for _, c in c_) for name, c_ in costs.items()}
    print(f"({n}, {D}) float32, 5 folds × 100 strengths, {options.rounds} rounds in alternation, medians")
    for name in calls:
        print(f"    {name:12s} {wall[name]:7.2f} s, {n / wall[name]:9.0f} rows/s; {cpu[name]:7.2f} s of all cores")
    fastest = {name: min(w for w, _ in c) for name, c in costs.items()}
    pairs = zip(costs["in memory"], costs["mapped file"], strict=True)
    speed = {
        "median of rounds": statistics.median(a / b for (a, _), (b, _) in pairs),
        "fastest": fastest["in memory"] / fastest["mapped file"],
        "cores": cpu["in memory"] / cpu["mapped file"],
    }
    print("    speed of the mapped file, rows in memory = 1: " + ", ".join(f"{k} {v:.2f}" for k, v in speed.items()))
    return {"rows": n, "seconds": wall, "core_seconds": cpu, "speed": speed}


def status(*names: str) -> dict[str, int]:
    """Return fields of /proc/self/status in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) * 1024 for name in names}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    with mapped(options.gb) as (X, y):
        # The same sums on rows in memory, the first 2 GB again and again: what a machine with the memory would do.
        rows = torch.from_numpy(np.load(X, mmap_mode="r")[: int(2e9) // (4 * D)].copy())
        targets = torch.from_numpy(np.load(y)[: len(rows)])
        ids = contiguous_folds(len(rows), FOLDS)
        runs = [(int((ids < k).sum()), int((ids <= k).sum())) for k in range(FOLDS)]

        def once() -> None:
            moments = Moments()
            for k, (a, b) in enumerate(runs):
                moments.update(rows[a:b], targets[a:b], fold=k)

        beside = [harness.seconds(once) for _ in range(3)][1:]
        command = [sys.executable, __file__, "child", "--X", str(X), "--y", str(y)]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        beside += [harness.seconds(once) for _ in range(3)][1:]  # both sides of the pass: machines change their speed
        again = statistics.median(beside) / len(rows) * report["rows"]
    report["in_memory_seconds"] = again + report["solve_seconds"]
    report["speed"] = report["in_memory_seconds"] / (report["pass_seconds"] + report["solve_seconds"])
    gigabytes = {k: v / 1e9 for k, v in report.items() if k.endswith("_bytes")}
    print(f"({report['rows']}, {D}) float32 mapped, {report['rows'] * D * 4 / 1e9:.1f} GB, 5 folds × 100 strengths")
    print(f"    pass {report['pass_seconds']:.1f} s ({report['rows'] / report['pass_seconds']:.0f} rows/s), ", end="")
    print(f"solve {report['solve_seconds']:.1f} s, speed against rows in memory {report['speed']:.2f}")
    print("    " + ", ".join(f"{k.removesuffix('_bytes')} {v:.2f} GB" for k, v in gigabytes.items()))
    assert report["peak_above_start_bytes"] <= BOUND
    return report


def child(options: argparse.Namespace) -> None:
    """Fit in a process that may take 2 GB of private memory beyond what torch, NumPy and this package took."""
    warnings.simplefilter("ignore")
    ridge_cv(torch.randn(256, 64), torch.randn(256), ALPHAS, cv=FOLDS)  # thread pools are there
    before = status("VmRSS", "RssAnon", "VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (before["VmData"] + BOUND,) * 2)
    peaks, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for name, value in status(*peaks).items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=watch)
    thread.start()
    source = open_rows(np.load(options.X, mmap_mode="r"), target=np.load(options.y, mmap_mode="r"))
    start = time.perf_counter()
    moments = stream_moments(source, cv=FOLDS, max_bytes=BOUND, progress=True)
    middle = time.perf_counter()
    solution = ridge_cv(moments, alphas=ALPHAS)
    end = time.perf_counter()
    done.set()
    thread.join()
    peak = status("VmHWM")["VmHWM"]
    report = {
        "rows": moments.n_samples,
        "alpha": float(solution.alpha),
        "pass_seconds": middle - start,
        "solve_seconds": end - middle,
        "start_bytes": before["VmRSS"],
        "peak_bytes": peak,
        "peak_above_start_bytes": peak - before["VmRSS"],
        "peak_anonymous_bytes": peaks["RssAnon"],
        "peak_mapped_bytes": peaks["RssFile"],
    }
    print(json.dumps(report))


def tables(options: argparse.Namespace) -> dict[str, Any]:
    """Fit a CSV and a Parquet file of one gigabyte each from the command line, and compare with the library."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    d, result = 20, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        names = [f"x{i}" for i in range(d)] + ["y"]
        weight = rng.standard_normal(d)
        for kind in ("csv", "parquet"):
            n = int(options.gb * 1e9 / (19.5 * (d + 1) if kind == "csv" else 8 * (d + 1)))
            path, rng = folder / f"rows.{kind}", np.random.default_rng(1)
            schema = pa.schema([(c, pa.float64()) for c in names])
            write = pa.csv.CSVWriter if kind == "csv" else pa.parquet.ParquetWriter
            parts = []
            with write(path, schema) as file:
                for start in range(0, n, 2**17):
                    X = rng.standard_normal((min(2**17, n - start), d))
                    y = X @ weight + 5 * rng.standard_normal(len(X))
                    parts.append((torch.from_numpy(X), torch.from_numpy(y)))
                    file.write_table(pa.table([*X.T, y], schema=schema))
            whole = ridge_cv(torch.cat([X for X, _ in parts]), torch.cat([y for _, y in parts]), ALPHAS, cv=FOLDS)
            result[kind] = _command(path, whole)
    return result


def _command(path: Path, whole: RidgeSolution) -> dict[str, Any]:
    model = path.with_suffix(".safetensors")
    # Not ru_maxrss, which a process inherits from the one that started it.
    code = "import sys, torchridge.cli as c; r = c.main(sys.argv[1:]); "
    code += "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')); "
    code += "print(int(peak.split()[1]) * 1024, file=sys.stderr); sys.exit(r)"
    grid = f"{ALPHAS[0]:.17g}:{ALPHAS[-1]:.17g}:{len(ALPHAS)}"
    call = [sys.executable, "-c", code, "fit", str(path), "--target", "y", "--alphas", grid, "-o", str(model), "--json"]
    start = time.perf_counter()
    run = subprocess.run([*call, "--progress"], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    report, peak = json.loads(run.stdout), int(run.stderr.splitlines()[-1])
    error = abs(report["best_score"] / float(whole.best_score) - 1)
    assert report["alpha"] == float(whole.alpha) and error <= 1e-12, (report["alpha"], float(whole.alpha), error)
    size = path.stat().st_size
    print(f"{path.name}: {size / 1e9:.2f} GB, {report['n_samples']} rows, {seconds:.1f} s, peak {peak / 1e9:.2f} GB, ")
    print(f"    alpha {report['alpha']:g}, error of the score against the library {error:.0e}")
    return {"bytes": size, "rows": report["n_samples"], "seconds": seconds, "peak_bytes": peak, "error": error}


def write_csv(path: Path, kind: str, size: int) -> None:
    """Write some bytes of CSV with columns x, t and y, or of 10^5 columns."""
    numbers = ",".join(f"{v:.6f}" for v in np.random.default_rng(0).standard_normal(10**5))
    blocks = {
        "stray quotes": "".join(f'{i}.5,{i % 9}" pipe,{i}\n' for i in range(20_000)),
        "one stray quote": "".join(f"{i},abc,{i}\n" for i in range(20_000)),
        "quoted cells": "".join(f'"{i}.5","a, ""b""\n",{i}\n' for i in range(20_000)),
        "long cells": "1.5," + "lorem ipsum " * 20_000 + ",2\n",
        "long quoted cells": '1.5,"' + 'lorem, ""ipsum""\n' * 600_000 + '",2\n',
        "100,000 columns": numbers + "\n",
    }
    block = blocks[kind]
    with path.open("w") as file:
        file.write(",".join(f"c{i}" for i in range(10**5)) + "\n" if "columns" in kind else 'x,t,y\n1,5" pipe,2\n')
        for _ in range(max(1, size // len(block))):
            file.write(block)


def read_csv(options: argparse.Namespace) -> dict[str, Any]:
    """Read files of 0.5 and 1 times the size, and the larger one with Python's csv, which parses no number."""
    csv.field_size_limit(2**30)
    result = {}
    for kind in (
        "one stray quote",
        "stray quotes",
        "quoted cells",
        "long cells",
        "long quoted cells",
        "100,000 columns",
    ):
        seconds: dict[str, list[float]] = {"half": [], "here": [], "csv": []}
        with tempfile.TemporaryDirectory() as name:
            half, whole = Path(name) / "half.csv", Path(name) / "whole.csv"
            write_csv(half, kind, int(options.gb * 5e8))
            write_csv(whole, kind, int(options.gb * 1e9))
            named = {"target": "c0"} if "columns" in kind else {"target": "y", "features": "x"}

            def here(path: Path, named: dict[str, str] = named) -> int:
                return sum(len(batch.X) for batch in open_rows(path, **named))

            def there(path: Path) -> int:
                with path.open(newline="") as file:
                    return sum(1 for _ in csv.reader(file)) - 1

            assert here(whole) == there(whole)
            for _ in range(options.rounds):
                seconds["half"].append(cost(partial(here, half))[0])
                seconds["here"].append(cost(partial(here, whole))[0])
                seconds["csv"].append(cost(partial(there, whole))[0])
        found = {k: statistics.median(v) for k, v in seconds.items()}
        ratio, growth = found["here"] / found["csv"], found["here"] / found["half"]
        print(
            f"{kind:18s} {found['here']:6.2f} s, csv {found['csv']:6.2f} s, ratio {ratio:.2f}, twice half {growth:.2f}"
        )
        result[kind] = found | {"ratio": ratio, "growth": growth}
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", default=["rate", "memory"])
    parser.add_argument("--gb", type=float, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="that compute; the reader has one of its own beside them")
    for name in ("--X", "--y"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case == ["child"]:
        child(options)
        sys.exit()
    if options.threads:
        torch.set_num_threads(options.threads)
        threadpool_limits(options.threads)
    sizes = {"memory": 12.0, "tables": 1.0, "rate": 1.0, "csv": 0.1}
    for case in options.case:
        gb = options.gb
        options.gb = gb or sizes[case]
        print(
            harness.save(
                "stream", {case: {"rate": rate, "memory": memory, "tables": tables, "csv": read_csv}[case](options)}
            )
        )
        options.gb = gb
