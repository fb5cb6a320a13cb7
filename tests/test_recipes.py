"""A new solver, criterion, score, readout, pool, regularizer or file format is one class or function and one line."""

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
    ridge_cv,
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
from torchridge.solvers.least_squares.criteria import CRITERIA, Criterion, Fit
from torchridge.solvers.least_squares.target_scores import SCORES, ProductsScore, Score, SquaresScore
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


GRID = [0.1, 1.0, 10.0, 100.0]
FEW = torch.randn(8, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
SHAPES = {"rows": (X, torch.stack([Y, Y**2], 1)), "few rows": (FEW, FEW[:, :2] ** 2)}


class AIC(Criterion):
    """n log(Σ e² / n) + 2 tr H."""

    def of(self, fit: Fit) -> Tensor:
        return fit.rows * (fit.squares() / fit.weight).log() + 2 * fit.dof()[:, None]


def aic(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """The same by the hat matrix itself, for every target."""
    n, centred = len(x), x - x.mean(0)
    hat = centred @ torch.linalg.solve(centred.T @ centred + alpha * torch.eye(x.shape[1]).double(), centred.T) + 1 / n
    return n * ((y - hat @ y) ** 2).mean(0).log() + 2 * hat.trace()


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_criterion(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = SHAPES[shape]
    with pytest.raises(ValueError, match="`cv` should be one of 'gcv', 'loo', 'evidence', got 'aic'"):
        ridge_cv(x, y, GRID, cv="aic")
    monkeypatch.setitem(CRITERIA, "aic", AIC())
    want = -torch.stack([aic(x, y, alpha) for alpha in GRID])
    got = ridge_cv(x, y, GRID, cv="aic", alpha_per_target=True)
    assert got.scoring == "aic" and got.scores is not None
    torch.testing.assert_close(got.scores, want)
    torch.testing.assert_close(got.alpha, torch.tensor(GRID, dtype=torch.float64)[want.argmax(0)])
    moments = Moments().update(x, y)
    torch.testing.assert_close(ridge_cv(moments, alphas=GRID, cv="aic").scores, want)
    batch = ridge_cv(torch.stack([x, x + 1]), torch.stack([y, y]), GRID, cv="aic").scores
    torch.testing.assert_close(batch, torch.stack([want, want]))
    products = ridge_cv(x, y, GRID, cv="aic", solver="cg", tol=1e-12)
    assert products.scores is not None and products.score_errors is not None
    assert bool(((products.scores - want).abs() <= 5 * products.score_errors + 1e-6).all())
    with pytest.raises(ValueError, match="`scoring`='r2' needs held-out targets, and `cv`='aic' holds none out"):
        ridge_cv(x, y, GRID, cv="aic", scoring="r2")
    with pytest.raises(ValueError, match="`groups` has no use with `cv`='aic'"):
        ridge_cv(x, y, GRID, cv="aic", groups=torch.arange(len(x)))


class RMSE(SquaresScore):
    """The root of the mean squared error, with a minus sign in `scores`."""

    sign, varying = -1, False

    def of(self, squares: Tensor, variance: Tensor) -> Tensor:
        return squares.sqrt()


class Explained(ProductsScore):
    """1 − var(y − ŷ) / var(y)."""

    def of(self, covariance: Tensor, spread: Tensor, variance: Tensor) -> Tensor:
        return (2 * covariance - spread) / variance


class MAE(Score):
    """The mean of |y − ŷ|, which no moments tell."""

    sign, varying = -1, False

    def of_errors(self, error: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return error.abs().mean(-2) if weight is None else (weight / weight.sum()) @ error.abs()


PLAIN: dict[str, tuple[Score, Any]] = {
    "rmse": (RMSE(), lambda y, p: -((y - p) ** 2).mean(0).sqrt()),
    "explained": (Explained(), lambda y, p: 1 - (y - p).var(0, correction=0) / y.var(0, correction=0)),
    "mae": (MAE(), lambda y, p: -(y - p).abs().mean(0)),
}


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PLAIN)
def test_a_score_of_folds(shape: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (score, plain) = SHAPES[shape], PLAIN[name]
    with pytest.raises(ValueError, match=f"`scoring` should be one of 'mse', 'r2', 'correlation', .*got '{name}'"):
        ridge_cv(x, y, GRID, cv=2, scoring=name)
    monkeypatch.setitem(SCORES, name, score)
    fold = torch.arange(len(x)) % 2
    fits = [ridge_path(x[fold != k], y[fold != k], GRID) for k in (0, 1)]
    want = torch.stack([torch.stack([plain(y[fold == k], p) for p in fits[k].predict(x[fold == k])]) for k in (0, 1)])
    asked: dict[str, Any] = {"alphas": GRID, "scoring": name, "alpha_per_target": True}
    for solver in ("auto", "cg"):
        got = ridge_cv(x, y, cv=fold, solver=solver, tol=1e-12 if solver == "cg" else None, **asked)
        assert got.scoring == name and got.fold_scores is not None
        torch.testing.assert_close(got.fold_scores, want, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(got.alpha, torch.tensor(GRID, dtype=torch.float64)[want.mean(0).argmax(0)])
    loo = ridge_cv(x, y, cv="loo", **asked).scores
    each = [ridge_path(x[fold != k], y[fold != k], GRID).predict(x[fold == k]) for fold, k in one_each(len(x))]
    left_out = torch.stack([plain(y, p) for p in torch.cat(each, 1)])
    torch.testing.assert_close(loo, left_out, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fits[0].score(x, y, scoring=name), plain_of(name, plain, y, fits[0].predict(x)))
    moments = Moments().update(x, y, fold=fold)
    batches = torch.stack([x, x]), torch.stack([y, y])
    if name == "mae":
        with pytest.raises(ValueError, match="needs predictions of held-out rows, which `Moments` do not hold"):
            ridge_cv(moments, **asked)
        with pytest.raises(ValueError, match="needs predictions of held-out rows of one problem"):
            ridge_cv(*batches, cv=fold, **asked)
        return
    torch.testing.assert_close(ridge_cv(moments, **asked).fold_scores, want)
    torch.testing.assert_close(ridge_cv(*batches, cv=fold, **asked).fold_scores, torch.stack([want, want]))


def one_each(n: int) -> list[tuple[Tensor, int]]:
    return [(torch.arange(n), k) for k in range(n)]


def plain_of(name: str, plain: Any, y: Tensor, path: Tensor) -> Tensor:
    """A score as `RidgeSolution.score` gives it: without the minus sign."""
    return SCORES[name].sign * torch.stack([plain(y, p) for p in path])


def test_the_reference_lists_every_criterion_and_score() -> None:
    text = str(ridge_cv.__doc__)
    assert not [name for name in (*CRITERIA, *SCORES) if f'"{name}"' not in text]


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
