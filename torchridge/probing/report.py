"""What probing found: a linear readout for every layer, its held-out scores, and the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchridge import _files as files
from torchridge.probing import curves
from torchridge.probing.layer_probe import RANKING, Probe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchridge.tensorboard import ScalarWriter

KIND = "torchridge.probe-report/2"

# Errors and losses, which carry a minus sign.
_MINUS = ("mse", "log_loss", "control mse", "control log_loss")

_DIGITS = 12  # of scores; the rest is rounding, which differs between devices

_PRINTED = 12  # lines of a report; its table has all


@dataclass(frozen=True, eq=False, repr=False)
class ProbeReport:
    """Probes of all layers and readouts.

    Attributes:
        probes: in the order of the layers.
        task: "regression" or "classification".
        n_samples: rows that were fitted (tokens, for token-level probes).
        n_folds: K.
        passes: forward passes over the batches.
        source: where scores that need predictions come from: "" (there are none), "a second pass", "kept features".
        memory: bytes that were estimated before the moments were gathered.

    Example:
        >>> import torch
        >>> from torchridge.probing import LinearProbe
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10)
        >>> report = LinearProbe(metrics=()).fit({"one": X, "none": X * 0 + X.flip(0)}, X[:, 0])
        >>> report.best.layer, [probe.layer for probe in report], report.to_linear("one")
        ('one', ['one', 'none'], Linear(in_features=1, out_features=1, bias=True))
    """

    probes: tuple[Probe, ...]
    task: str
    n_samples: int
    n_folds: int
    passes: int
    source: str
    memory: int

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    @property
    def best(self) -> Probe:
        """The probe of the best score: accuracy if it was asked for, else R²; the earliest of equals.

        Log-likelihoods of different layers are of different data, and rank only if there is nothing else.
        """
        name = next(name for name in RANKING if any(name in p.fold_scores for p in self.probes))
        return max((p for p in self.probes if name in p.fold_scores), key=lambda p: round(p.scores[name], _DIGITS))

    def of(self, layer: str | None = None, readout: str | None = None) -> Probe:
        """Return the probe of a layer and readout; without either, the best of what is left.

        Raises:
            ValueError: if there is no such probe.
        """
        found = [p for p in self.probes if layer in (None, p.layer) and readout in (None, p.readout)]
        if not found:
            known = ", ".join(f"{p.layer!r} ({p.readout})" for p in self.probes)
            raise ValueError(f"`layer`={layer!r}, `readout`={readout!r}: no such probe. There are {known}.")
        return ProbeReport(tuple(found), self.task, self.n_samples, self.n_folds, 0, "", 0).best

    def to_linear(self, layer: str | None = None, readout: str | None = None) -> nn.Linear:
        """Return a probe as `nn.Linear`: by default the best."""
        return self.of(layer, readout).to_linear()

    def predict(self, X: Tensor, layer: str | None = None, readout: str | None = None) -> Tensor:
        """Return predictions of a probe for rows of its layer (n, d)."""
        return self.of(layer, readout).predict(X)

    def rows(self) -> list[dict[str, Any]]:
        """Return a plain record for every probe."""
        return [
            {
                "layer": p.layer,
                "readout": p.readout,
                "strength": p.strength,
                **p.scores,
                **{f"control {name}": value for name, value in p.control.items()},
                **({"low": p.interval[0], "high": p.interval[1]} if p.interval else {}),
            }
            for p in self.probes
        ]

    def table(self) -> str:
        """Return the records as a table, the best probe marked.

        Scores are means over folds ± their standard error. Larger is better: what carries a minus sign for it is headed
        by one.
        """
        records, best = self.rows(), self.best
        names = list(dict.fromkeys(name for r in records for name in r))
        lines = [[*(f"−{n}" if n in _MINUS else n for n in names), ""]]
        for record, probe in zip(records, self.probes, strict=True):
            cells = [_cell(record.get(name), probe.fold_scores.get(name)) for name in names]
            lines.append([*cells, "best" if probe is best else ""])
        widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)).rstrip() for x in lines)

    def __repr__(self) -> str:
        """The table; of many probes the best ones, in the order of the layers."""
        if len(lines := self.table().split("\n")) <= _PRINTED:
            return "\n".join(lines)
        first = next(name for name in RANKING if any(name in p.fold_scores for p in self.probes))
        ranked = sorted(range(len(self.probes)), key=lambda i: -self.probes[i].scores.get(first, -math.inf))
        kept = sorted(ranked[: _PRINTED - 2])
        rest = f"… and {len(ranked) - len(kept)} more; `table()` returns all {len(ranked)}"
        return "\n".join([lines[0], *(lines[i + 1] for i in kept), rest])

    def save(self, path: str | Path) -> None:
        """Write the report in safetensors, with a digest of all it holds. Needs safetensors.

        Raises:
            OSError: if the folder is not there or not ours to write in, or `path` is a folder itself.
        """
        tensors: dict[str, Tensor] = {}
        records = []
        for i, p in enumerate(self.probes):
            parts = {name: getattr(p, name) for name in ("weight", "bias", "strengths", "strength_scores", "classes")}
            parts |= {f"score/{name}": value for name, value in p.fold_scores.items()}
            tensors |= {f"{i}/{name}": value for name, value in parts.items() if value is not None}
            plain = ("layer", "readout", "strength", "criterion", "control", "interval", "vector_target")
            records.append(
                {**{name: getattr(p, name) for name in plain}, "dtype": str(p.dtype), "scores": list(p.fold_scores)}
            )
        head = {name: getattr(self, name) for name in ("task", "n_samples", "n_folds", "passes", "source", "memory")}
        files.write(path, KIND, tensors, {**head, "probes": records})

    @staticmethod
    def load(path: str | Path) -> ProbeReport:
        """Read a report. Nothing in the file is executed.

        Raises:
            ValueError: if the file is truncated, altered, or holds something else.
            FileNotFoundError: if there is none.
        """
        tensors, content = files.read(path, KIND)
        with files.understood(path, "path"):
            probes = tuple(_probe(i, record, tensors) for i, record in enumerate(content.pop("probes")))
            return ProbeReport(probes, **content)

    def add_to(self, writer: ScalarWriter, tag: str = "probe") -> None:
        """Write scores by depth, and the curve over strengths of every layer, to anything with `add_scalar`."""
        curves.add_scalars(writer, self.probes, tag)

    def plot(self, score: str | None = None, ax: Axes | None = None) -> Any:
        """Draw a score by layer, one line for each readout, and return the axes. Needs matplotlib."""
        return curves.plot(self.probes, score, ax)


def _probe(index: int, record: dict[str, Any], tensors: dict[str, Tensor]) -> Probe:
    mine = {k.removeprefix(f"{index}/"): v for k, v in tensors.items() if k.startswith(f"{index}/")}
    scores = {name: mine[f"score/{name}"] for name in record.pop("scores")}
    parts = {k: mine.get(k) for k in ("weight", "bias", "strengths", "strength_scores", "classes")}
    dtype = getattr(torch, str(record["dtype"]).removeprefix("torch."))
    interval = None if record["interval"] is None else (record["interval"][0], record["interval"][1])
    return Probe(**{**record, **parts, "fold_scores": scores, "dtype": dtype, "interval": interval})


def _cell(value: Any, folds: Tensor | None = None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if folds is None or len(folds) < 2:
        return f"{value:.4g}"
    return f"{value:.4g} ± {float(folds.std()) / len(folds) ** 0.5:.2g}"
