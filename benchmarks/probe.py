"""Probing every layer of a transformer encoder: beside the bare forward pass, and beside the usual way.

python benchmarks/probe.py            every case
python benchmarks/probe.py cost       some of them

The usual way caches the features of every layer and runs scikit-learn layer by layer. Peak memory is measured in a
process of its own for two numbers of rows. Glibc is told to keep freed memory: whether it gives the activations back
between two batches is luck, differs from run to run for the bare forward pass too, and costs up to a tenth of it.
"""

import ctypes
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from torch import Tensor, nn

from torchridge.probing import ProbeReport, probe_layers

LAYERS, WIDTH, LENGTH, BATCH, CLASSES, FOLDS, SIZE = 6, 384, 128, 32, 10, 5, 100
CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


class Block(nn.Module):
    """Pre-norm attention and a four times wider MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 6, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, WIDTH)
        self.layer = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)
        for layer in self.layer:
            x = layer(x)
        return x


def data(n: int, device: str) -> tuple[Encoder, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    tokens = torch.randint(1000, (n, LENGTH))
    labels = tokens[:, :8].float().mean(1).argsort().argsort() * CLASSES // n  # classes of one size
    model = Encoder().to(device).train()
    return model, [(tokens[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, n, BATCH)]


def keep_freed_memory() -> None:
    """Set M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, where the C library is glibc."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(-3, 2**25)
            mallopt(-1, 2**30)


def forward(model: Encoder, batches: list[tuple[Tensor, Tensor]]) -> None:
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for tokens, _ in batches:
            model(tokens.to(device))


def probed(model: Encoder, batches: list[tuple[Tensor, Tensor]]) -> ProbeReport:
    return probe_layers(model, batches, "layer.*", task="classification", readout=["ridge", "lda"], cv=FOLDS)


def cached(model: Encoder, batches: list[tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    kept: dict[str, list[Tensor]] = {f"layer.{i}": [] for i in range(LAYERS)}
    handles = [
        m.register_forward_hook(lambda _, __, out, i=i: kept[f"layer.{i}"].append(out.mean(1).cpu()))
        for i, m in enumerate(model.layer)
    ]
    forward(model, batches)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).double().numpy() for name, rows in kept.items()}


def in_turn(y: np.ndarray) -> np.ndarray:
    """The folds of `probe_layers`: example i of a class to fold i mod K, shifted by the number of the class."""
    number: dict[int, int] = {}
    for start in range(0, len(y), BATCH):
        for c in np.unique(y[start : start + BATCH]).tolist():
            number.setdefault(c, len(number))
    ids = np.zeros(len(y), dtype=int)
    for c, first in number.items():
        at = np.flatnonzero(y == c)
        ids[at] = (first + np.arange(len(at))) % FOLDS
    return ids


def usual(
    model: Encoder, batches: list[tuple[Tensor, Tensor]], report: ProbeReport, layers: int
) -> tuple[dict[str, np.ndarray], dict[str, GridSearchCV]]:
    """Cache the features, then search over strengths layer by layer; `layers` bounds how many, as it is slow."""
    features = cached(model, batches)
    y = torch.cat([labels for _, labels in batches]).numpy()
    split, codes = PredefinedSplit(in_turn(y)), signs(y)
    found = {}
    for name in list(features)[:layers]:
        grid = {"alpha": report.of(name, "ridge").strengths.tolist()}
        search = GridSearchCV(Ridge(), grid, cv=split, scoring="neg_mean_squared_error")
        found[name] = search.fit(features[name], codes)
        shrinkages = {"shrinkage": report.of(name, "lda").strengths.tolist()}
        GridSearchCV(LinearDiscriminantAnalysis(solver="eigen"), shrinkages, cv=split).fit(features[name], y)
    return features, found


def signs(y: np.ndarray) -> np.ndarray:
    """Return -1 and 1 for every class, the targets of RidgeClassifier."""
    codes: np.ndarray = 2.0 * (y[:, None] == np.unique(y)) - 1
    return codes


def agree(report: ProbeReport, features: dict[str, np.ndarray], found: dict[str, GridSearchCV], y: np.ndarray) -> None:
    """Assert equal curves and choices of ridge, and the same discriminant at the shrinkage that was chosen.

    The shrinkage itself is chosen by other criteria: the likelihood of held-out rows here, their accuracy there.
    """
    for name, search in found.items():
        probe = report.of(name, "ridge")
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"], probe.strength_scores.mean(0).cpu(), rtol=1e-6
        )
        assert search.best_params_["alpha"] == probe.strength
        probe = report.of(name, "lda")
        peer = LinearDiscriminantAnalysis(solver="eigen", shrinkage=probe.strength).fit(features[name], y)
        ours = features[name] @ probe.weight.cpu().numpy().T + probe.bias.cpu().numpy()
        theirs = peer.decision_function(features[name])
        gap = np.ptp((ours - ours[:, :1]) - (theirs - theirs[:, :1]), axis=0).max()
        assert gap <= 1e-6 * np.ptp(theirs), f"{name}: discriminants differ by {gap:.1e}"


@case
def cost() -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    n, runs = (65_536, 3) if cuda else (1792, 1)  # on CPU a round takes more than a minute
    model, batches = data(n, "cuda" if cuda else "cpu")
    forward(model, batches[:4])
    probed(model, batches[:4])
    calls = {"forward alone": lambda: forward(model, batches), "probe_layers": lambda: probed(model, batches)}
    # In both orders: clocks drift by more than what is measured.
    orders = [dict(calls), dict(reversed(calls.items()))] * runs
    rounds = [harness.alternate(order, 1) for order in orders]
    times = {name: statistics.median(r[name] for r in rounds) for name in calls}
    result = harness.report(f"{n} sequences of {LENGTH}, {LAYERS} × {WIDTH}, ridge and LDA", times, "forward alone")
    print(f"    probing costs {times['probe_layers'] / times['forward alone']:.3f} × the bare forward pass")
    return result


@case
def peer() -> dict[str, Any]:
    n, layers = 1024, 2
    model, batches = data(n, "cuda" if torch.cuda.is_available() else "cpu")
    report = probed(model, batches)
    start = time.perf_counter()
    features, found = usual(model, batches, report, layers)
    peers = time.perf_counter() - start
    agree(report, features, found, torch.cat([labels for _, labels in batches]).numpy())
    ours = harness.seconds(lambda: probed(model, batches))
    times = {f"probe_layers, all {LAYERS} layers": ours, f"cache, scikit-learn on {layers} of them": peers}
    return harness.report(f"{n} sequences, strength among {SIZE} by {FOLDS} folds", times, next(iter(times)))


@case
def memory() -> dict[str, Any]:
    peaks = {}
    for n in (512, 2048):
        out = subprocess.run([sys.executable, __file__, "--peak", str(n)], capture_output=True, text=True, check=True)
        peaks[n] = int(out.stdout.split()[-1]) / 1024
        print(f"    {n:6d} sequences: peak {peaks[n]:.0f} MiB")
    return {"peak_mib": peaks}


def peak(n: int) -> None:
    torch.manual_seed(0)
    model = Encoder()

    def stream() -> Any:
        for _ in range(0, n, BATCH):
            tokens = torch.randint(1000, (BATCH, 16))
            yield tokens, tokens[:, 0] % CLASSES

    probe_layers(model, stream(), "layer.*", task="classification", readout=["ridge", "lda"], cv=FOLDS, chunk_rows=256)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        peak(int(sys.argv[2]))
    else:
        chosen = sys.argv[1:] or list(CASES)
        keep_freed_memory()
        print(harness.machine())
        for name in chosen:
            harness.save("probe", {name: CASES[name]()})
