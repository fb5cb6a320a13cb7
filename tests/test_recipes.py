"""A new solver, readout, pool, regularizer or file format is one class or function and one line of a table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchridge import (
    LinearProbe,
    Moments,
    OnlineProbe,
    open_rows,
    penalty,
    probe_layers,
    regularize,
    ridge,
    ridge_path,
    stream_moments,
)
from torchridge.linear.ridge.solve import fit_spectral
from torchridge.linear.ridge.table import SOLVERS, Solver
from torchridge.probing.features.pooling import POOLS, Way
from torchridge.probing.readouts import linear
from torchridge.probing.readouts.linear import Fitted
from torchridge.probing.readouts.table import READOUTS, Readout, Source
from torchridge.regularizers import Regularizer, deserialize, get, serialize
from torchridge.streams import RowSource
from torchridge.streams.opening import FORMATS, Format
from torchridge.streams.source import Batch
from torchridge.training.penalties.identifiers import CLASSES

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1) + torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def fit_toy(problem: Any, choice: Any) -> Any:
        taken.append(problem.strengths.alpha.tolist())
        return fit_spectral(problem, choice)

    with pytest.raises(ValueError, match="`solver` should be one of 'auto', 'cholesky'"):
        ridge(X, Y, 1.0, solver="toy")
    monkeypatch.setitem(SOLVERS, "toy", Solver(fit_toy, rows=True, shared=True))
    got = ridge_path(X, Y, [1.0, 2.0], solver="toy")
    assert got.solver == "toy" and taken == [[1.0, 2.0]]
    torch.testing.assert_close(got.at(0).weight, ridge(X, Y, 1.0).weight)
    with pytest.raises(ValueError, match="`solver`='toy' needs the rows themselves, got moments"):
        ridge(Moments().update(X, Y), alpha=1.0, solver="toy")
    with pytest.raises(ValueError, match="`solver`='toy' takes one strength at a time"):
        ridge(X, torch.stack([Y, Y], 1), torch.tensor([1.0, 2.0]), solver="toy")


def test_a_readout(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit_toy(source: Source) -> Fitted:
        return linear.ridge(source.parts, torch.tensor([3.0]), source.settings.standardize)

    monkeypatch.setitem(READOUTS, "toy", Readout(fit_toy, "τ", numbers=True, at=READOUTS["ridge"].at))
    probe = LinearProbe(readout=["ridge", "toy"], alphas=[3.0]).fit(X, Y).of(readout="toy")
    assert probe.strength == 3.0 and probe.curve().name == "τ"
    torch.testing.assert_close(probe.weight, ridge(X, Y, 3.0).weight)
    online = OnlineProbe("regression", "toy", decay=1.0).update(X, Y)
    assert online.probe is not None and online.probe.readout == "toy"


def test_a_readout_of_features_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def fit_toy(source: Source) -> Fitted:
        assert source.kept is not None
        seen.append(source.kept.layer(source.layer))
        return READOUTS["lda"].fit(source)

    monkeypatch.setitem(READOUTS, "toy", Readout(fit_toy, "τ", features=True))
    LinearProbe("classification", "toy").fit(X, (Y > 0).long())
    assert seen[0].shape == X.shape


def test_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLS, "median", Way(lambda hidden, mask: hidden.median(1).values, maps=True))
    tokens = torch.randn(40, 7, 5)
    report = probe_layers(nn.Sequential(nn.Identity()), [(tokens, Y)], pool="median")
    want = LinearProbe().fit(tokens.median(1).values, Y)
    folds = LinearProbe(cv=torch.arange(40) % 5).fit(tokens.median(1).values, Y).best
    torch.testing.assert_close(report.best.strength_scores, folds.strength_scores)
    assert report.best.weight.shape == want.best.weight.shape


class Cubes(Regularizer):
    """The sum of |w|³."""

    def __init__(self, strength: float = 0.5) -> None:
        self.strength = strength

    def __call__(self, x: Tensor) -> Tensor:
        return self.strength * x.abs().pow(3).sum()

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength}


def test_a_regularizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, "Cubes", Cubes)
    layer = nn.Linear(3, 2)
    assert float(penalty(regularize(layer, "Cubes")).detach()) == pytest.approx(
        0.5 * float(layer.weight.detach().abs().pow(3).sum())
    )
    again = deserialize(serialize(Cubes(0.25)))
    assert isinstance(again, Cubes) and again.strength == 0.25 and isinstance(get("Cubes"), Cubes)


class Words(RowSource):
    """Rows of numbers between blanks, the last one the target."""

    n_features, n_targets = 5, 1

    def __init__(self, path: Path, **_: Any) -> None:
        self._rows = torch.from_numpy(np.loadtxt(path))
        self.name = path.name

    @property
    def n_rows(self) -> int:
        return len(self._rows)

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        for some in self._rows[start:].split(rows or 16):
            yield Batch(some[:, :-1], some[:, -1], None, None)


def test_a_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savetxt(tmp_path / "rows.words", torch.cat([X, Y[:, None]], 1).numpy())
    with pytest.raises(ValueError, match=r"rows.words should end in \.csv"):
        open_rows(tmp_path / "rows.words")
    monkeypatch.setitem(FORMATS, ".words", Format(lambda path, named: Words(path, **named)))
    got = stream_moments(open_rows(tmp_path / "rows.words"), cv=5)
    want = Moments().update(X, Y)
    torch.testing.assert_close(ridge(got, alpha=1.0).weight, ridge(want, alpha=1.0).weight)
