"""The tables of times, from the files that the benchmarks keep in `benchmarks/results/`; `compare.py` fills them in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


class Row(NamedTuple):
    """One comparison: what was done, the file and the place in it, our entry and the peer's."""

    work: str
    file: str
    place: tuple[str, ...]
    ours: str
    peer: str
    readme: bool = True  # whether README shows it


GRAM = "ridge_cv(cv=5), 100 strengths"
SK = "scikit-learn "
ROWS = [
    Row("5 folds × 100 strengths, (100000, 1024, 10) float32", "ridge_cv", ("gram",), GRAM, "X.T @ X, float64"),
    Row("5 folds × 20 strengths, (20000, 512, 1)", "ridge_cv", ("folds", "20"), "ridge_cv(cv=5), 20 strengths",
        "himalaya RidgeCV(cv=5), torch, 20 strengths", False),
    Row("5 folds × 100 strengths, (20000, 512, 1)", "ridge_cv", ("folds", "100"), GRAM,
        SK + "RidgeCV(cv=5), 100 strengths"),
    Row("5 folds, (10000, 512, 10000), peer at 10 of the 100 strengths", "ridge_cv", ("targets",), GRAM,
        "himalaya RidgeCV(cv=5), torch, 10 of the 100 strengths"),
    Row("one strength, (100000, 1024, 10) float64", "ridge_cv", ("plain", "float64"), "ridge, float64",
        SK + "Ridge(solver='cholesky'), float64"),
    Row("the same, float32 data summed in float64", "ridge_cv", ("plain", "float32"), "ridge, float32 data",
        SK + "Ridge(solver='cholesky'), float32"),
    Row("the same, float32 data summed in float32", "ridge_cv", ("plain", "float32"), "ridge, float32 data and moments",
        SK + "Ridge(solver='cholesky'), float32", False),
    Row("leave-one-out × 20 strengths, (20000, 512, 1)", "ridge_cv", ("loo",), "ridge_cv(cv='loo'), 20 strengths",
        SK + "RidgeCV(), 20 strengths"),
    Row("5 folds × 20 strengths, (1000, 8000, 10)", "ridge_cv", ("wide",), "ridge_cv(cv=5), 20 strengths",
        "himalaya KernelRidgeCV(cv=5), torch"),
    Row("5 folds × 20 strengths, (1000, 8000, 10)", "ridge_cv", ("wide",), "ridge_cv(cv=5), 20 strengths",
        SK + "RidgeCV(cv=5), 20 strengths", False),
    *(Row(f"logistic, 20 strengths, (16000, 512), {k} classes", "logistic", (f"{k} classes, flat",), "torchridge", peer,
          peer == "lbfgs" and k == 10)
      for k in (10, 100) for peer in ("lbfgs", "lbfgs, warm starts, float32")),
    Row("ridge and LDA probes of 6 layers, with the forward pass", "probe", ("cost",), "probe_layers", "forward alone"),
    Row("ridge probes of 6 layers, peer of 2", "probe", ("peer",), "probe_layers, all 6 layers",
        "cache, scikit-learn on 2 of them", False),
    Row("moments from a memory-mapped file", "stream", ("rate",), "mapped file", "in memory", False),
    Row("one strength, (20000, 50000) float32, residual 1e-8", "large", ("dense",), "ridge(solver='cg')",
        SK + "Ridge(solver='lsqr')"),
    Row("a strength for each of 2,000 targets, (600, 20000) float32, with predictions", "targets", ("small",),
        "ridge_cv and predict", "himalaya KernelRidgeCV"),
    Row("the same, solved in float32 as the peer does", "targets", ("small",), "ridge_cv and predict, float32",
        "himalaya KernelRidgeCV", False),
    Row("a strength for each of 8,000 targets, (600, 40000) float32, with predictions", "targets", ("large",),
        "ridge_cv and predict", "himalaya KernelRidgeCV", False),
    Row("strengths of 3 bands for each of 600 targets, 600 rows", "targets", ("bands600",), "banded_ridge_cv",
        "himalaya, 100 candidates", False),
    Row("one strength, sparse, by products", "large", ("sparse",), "ridge(solver='cg')",
        SK + "Ridge(solver='sparse_cg')", False),
]  # fmt: skip

# What `cuda.py` kept of a GPU: all in one file.
KERNEL = "himalaya KernelRidgeCV"
GPU = [
    *(Row(f"a strength for each target, {shape} float32, with predictions", "device", ("targets", key),
          "ridge_cv and predict", KERNEL)
      for shape, key in (("(600, 20000, 2000)", "600x20000x2000"), ("(600, 40000, 8000)", "600x40000x8000"),
                         ("(2000, 40000, 40000)", "2000x40000x40000"))),
    Row("the last, solved in float32 as the peer does", "device", ("targets", "2000x40000x40000"),
        "ridge_cv and predict, float32", KERNEL),
    *(Row(f"Gram matrix in float64, (65536, 4096) {rows}", "device", ("products", rows),
          "Moments().update, summed in float64", "one product, float64")
      for rows in ("float64", "float32", "bfloat16")),
    *(Row(f"5 folds × 100 strengths, (1000000, 4096, 1000) {rows}", "device", (f"folds_{rows}",), GRAM,
          f"one product, {rows}")
      for rows in ("float32", "bfloat16")),
    *(Row(f"{tasks} tasks of ({n}, {d}), 5 targets, forward and backward", "device", ("batches", f"{tasks}x{n}x{d}"),
          "ridge, forward and backward", "by hand, forward and backward")
      for tasks, n, d in ((64, 25, 64), (64, 25, 640), (256, 5, 640), (4096, 25, 64))),
    Row("logistic, 20 strengths, (100000, 1024), 10 classes", "device", ("logistic_path",), "logistic, 20 strengths",
        "its products, one by one"),
    Row("ridge probes of 4 layers of width 768, with the forward pass", "device", ("probes",), "probe_layers, ridge",
        "forward pass alone"),
]  # fmt: skip


@cache
def results(name: str) -> dict[str, Any]:
    """What a benchmark kept, on the CPU; of "device", on CUDA."""
    path = RESULTS / f"{name}-{'cuda' if name == 'device' else 'cpu'}.json"
    content: dict[str, Any] = json.loads((path if path.exists() else RESULTS / f"{name}.json").read_text())
    return content


def pairs() -> Iterator[tuple[Row, float, float]]:
    """Every row with our seconds and the peer's, of the benchmarks that have kept a file."""
    for row in ROWS:
        if (RESULTS / f"{row.file}-cpu.json").exists():
            yield row, *_pair(row)
    for key, label in (("default", "SGD"), ("foreach", "SGD(foreach=True)")):
        found = results("penalty")["once_per_step"][key]
        row = Row("penalty once per step, 27 M weights, what it adds", "penalty", (key,), "penalize_step",
                  f"{label}'s weight_decay", key == "foreach")  # fmt: skip
        yield row, found["step_hook_adds_ms"] / 1e3, found["weight_decay_adds_ms"] / 1e3
    found = results("penalty")["in_the_loss"]
    row = Row("penalty in the loss, 27 M weights, with its gradient", "penalty", (), "penalty", "plain sum of squares")
    yield row, found["penalty_ms"] / 1e3, found["plain_sum_of_squares_ms"] / 1e3


def _pair(row: Row) -> tuple[float, float]:
    found: Any = results(row.file)["results"]
    for key in row.place:
        found = found[key]
    return found["seconds"][row.ours], found["seconds"][row.peer]


def ratios() -> list[list[str]]:
    """The table of README: how many times faster, below 1 if the peer is."""
    rows = [["work", "peer", "times faster"]]
    return rows + [[row.work, f"`{row.peer}`", _times(b / a)] for row, a, b in pairs() if row.readme]


def measured() -> list[list[str]]:
    """The table of the page: every row, with its seconds and the command that prints it."""
    rows = [["work", "here, s", "peer", "peer, s", "times faster", "printed by"]]
    return rows + [
        [row.work, _seconds(a), f"`{row.peer}`", _seconds(b), _times(b / a), f"`benchmarks/{row.file}.py`"]
        for row, a, b in pairs()
    ]


def gpu() -> list[list[str]]:
    """The same on a GPU."""
    rows = [["work", "here, s", "peer", "peer, s", "times faster"]]
    for row in GPU:
        a, b = _pair(row)
        rows.append([row.work, _seconds(a), f"`{row.peer}`", _seconds(b), _times(b / a)])
    return rows


def machines() -> list[list[str]]:
    """What the files say they were measured on."""
    rows = [["file", "processor", "threads", "torch", "NumPy", "Python"]]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        m = content["machine"] if isinstance(content["machine"], dict) else {**content, "cpu": content["machine"]}
        values = [m.get("gpu") or m["cpu"], str(m["threads"]), m["torch"], m.get("numpy", ""), m["python"]]
        rows.append([f"`{path.name}`", *values])
    return rows


def _seconds(value: float) -> str:
    return f"{value:.3g}"


def _times(ratio: float) -> str:
    text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
    return text if ratio >= 1.05 else f"**{ratio:.2f}**"
