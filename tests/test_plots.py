"""Pictures hold the numbers they are drawn from, and refuse what they cannot draw."""

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import pytest
import torch
from torch import Tensor, nn

from torchridge import (
    BandedSolution,
    RidgeSolution,
    banded_ridge_cv,
    explain_weight_decay,
    logistic,
    logistic_cv,
    ridge,
    ridge_cv,
    ridge_path,
)
from torchridge.plots import plot_bands, plot_cv, plot_decay, plot_layers, plot_path
from torchridge.probing import LinearProbe, ProbeReport

matplotlib.use("Agg")
from matplotlib import pyplot

ALPHAS = [100.0, 0.1, 1.0, 10.0]
ASCENDING = [0.1, 1.0, 10.0, 100.0]


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    pyplot.close("all")


def data(targets: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(60, 5, generator=g, dtype=torch.float64)
    noise = 3 * torch.randn(60, targets, generator=g, dtype=torch.float64)
    return X, X[:, :targets] + X.sum(1, keepdim=True) + noise


def labels() -> Tensor:
    X, _ = data()
    return (X[:, 0] + X[:, 1] + torch.randn(60, generator=torch.Generator().manual_seed(1)) > 0).long()


def report(**options: Any) -> ProbeReport:
    X, _ = data()
    probe = LinearProbe("classification", ["ridge", "lda"], metrics="accuracy", control=True, **options)
    return probe.fit({"first": X, "second": X[:, 2:]}, labels())


def test_a_path_is_drawn_by_rising_strength() -> None:
    X, y = data(2)
    path = ridge_path(X, y, ALPHAS)
    ax = plot_path(path, target=1, chosen=torch.tensor(3.0), names=list("abcde"))
    for j, line in enumerate(ax.lines[:5]):
        assert list(line.get_xdata()) == ASCENDING
        assert line.get_ydata() == pytest.approx([float(path.weight[i, 1, j]) for i in (1, 2, 3, 0)])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [*"abcde", "chosen α = 3"]
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "strength α")


def test_a_path_from_zero_and_one_of_many_features() -> None:
    X, y = torch.randn(40, 13), torch.randn(40)
    ax = plot_path(ridge_path(X, y, [0.0, 1.0]))
    assert ax.get_xscale() == "symlog"
    assert ax.get_legend() is None
    assert len(ax.lines) == 14  # and zero


@pytest.mark.parametrize(
    ("alphas", "ticks"),
    [
        ([0.0, *ASCENDING], [0, 0.1, 1, 10, 100]),
        ([0.0, 0.02, 3.0, 700.0], [0, 0.1, 1, 10, 100]),
        ([0.0, 2.0, 5.0], [0, 2, 5]),
        ([0.0, 1e-12, 1e6], [0, *(10.0**k for k in range(-12, 7, 2))]),
    ],
)
@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
def test_zero_has_its_own_place_on_a_logarithmic_axis(alphas: list[float], ticks: list[float]) -> None:
    X, y = data()
    for ax in (plot_cv(ridge_cv(X, y, alphas, cv=5)), plot_path(ridge_path(X, y, alphas), chosen=0.0)):
        assert list(ax.get_xticks()) == pytest.approx(ticks)
        low, zero, least, high, right = (
            ax.transData.transform((x, 0))[0] for x in (ax.get_xlim()[0], 0, alphas[1], alphas[-1], ax.get_xlim()[1])
        )
        width = right - low
        assert 0 < zero - low < 0.1 * width and least - zero > 0.02 * width and 0 < right - high < 0.1 * width
        ax.figure.canvas.draw()
        assert all("-" not in text.get_text().split("^")[0] for text in ax.get_xticklabels())


def test_a_logistic_path() -> None:
    X, _ = data()
    path = logistic(X, labels(), [0.1, 1.0])
    ax = plot_path(path)
    assert ax.get_xlabel() == "strength C"
    assert list(ax.lines[2].get_ydata()) == pytest.approx(path.weight[:, 0, 2].tolist())


def band(ax: Any) -> tuple[Any, Any]:
    """Lower and upper edge of the first band, by rising strength."""
    points = ax.collections[0].get_paths()[0].vertices
    half = len(ASCENDING)
    return points[1 : half + 1, 1], points[half + 2 : 2 * half + 2, 1][::-1]


def test_the_band_is_the_standard_error_over_folds() -> None:
    X, y = data(3)
    solution = ridge_cv(X, y, ALPHAS, cv=5)
    ax = plot_cv(solution)
    folds = torch.stack([solution.fold_scores[:, i].mean(1) for i in (1, 2, 3, 0)], 1)
    error = folds.std(0, correction=1) / 5**0.5
    assert list(ax.lines[0].get_xdata()) == ASCENDING
    assert ax.lines[0].get_ydata() == pytest.approx(folds.mean(0).tolist())
    low, high = band(ax)
    assert low == pytest.approx((folds.mean(0) - error).tolist())
    assert high == pytest.approx((folds.mean(0) + error).tolist())
    assert list(ax.lines[1].get_xdata()) == [float(solution.alpha)] * 2


def test_scores_without_folds_have_no_band() -> None:
    X, y = data()
    ax = plot_cv(ridge_cv(X, y, ASCENDING, cv="gcv"))
    assert not ax.collections
    assert ax.get_ylabel() == "− generalized cross-validation"


def test_one_target_of_several() -> None:
    X, y = data(2)
    solution = ridge_cv(X, y, ALPHAS, cv=5, alpha_per_target=True)
    ax = plot_cv(solution, target=1)
    assert ax.lines[0].get_ydata() == pytest.approx(solution.scores[[1, 2, 3, 0], 1].tolist())
    assert list(ax.lines[1].get_xdata()) == [float(solution.alpha[1])] * 2


def test_logistic_curves_and_those_of_probes() -> None:
    X, _ = data()
    chosen = logistic_cv(X, labels(), Cs=[0.1, 1.0, 10.0], cv=3)
    ax = plot_cv(chosen)
    assert ax.lines[0].get_ydata() == pytest.approx(chosen.scores[:, 0].tolist())
    assert list(ax.lines[1].get_xdata()) == [float(chosen.C)] * 2
    for probe in report():
        ax = plot_cv(probe)
        assert max(ax.lines[0].get_ydata()) == pytest.approx(float(probe.strength_scores.mean(0).max()))
        assert list(ax.lines[1].get_xdata()) == [probe.strength] * 2


def test_layers_with_intervals_and_controls() -> None:
    found = report(bootstrap=50)
    ax = plot_layers(found)
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    for readout in ("ridge", "lda"):
        mine = [p for p in found if p.readout == readout]
        assert drawn[f"{readout}: accuracy"] == [p.scores["accuracy"] for p in mine]
        assert drawn[f"{readout}: shuffled labels"] == [p.control["accuracy"] for p in mine]
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert {edges.min(), edges.max()} <= {x for p in found for x in p.interval or ()}


def test_a_report_draws_itself_into_given_axes() -> None:
    ax = pyplot.subplots()[1]
    assert report().plot("mse", ax=ax) is ax
    assert next(line.get_label() for line in ax.lines) == "ridge: mse"


def test_bars_are_as_long_as_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LazyLinear(2))
    model[0].bias.requires_grad_(False)
    table = explain_weight_decay(model, 0.05, rules={"2.weight": 0.2})
    ax = plot_decay(table)
    assert [bar.get_width() for bar in ax.patches] == [12, 4, 4, 4, 1, 1]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [row.name for row in table]
    texts = {text.get_text() for text in ax.get_legend().get_texts()}
    assert texts == {"weight_decay 0.05", "weight_decay 0.2", "not decayed", "frozen"}
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert len({colors[0], colors[1], colors[2], colors[4]}) == 4
    assert [note.get_text().strip() for note in ax.texts] == [row.reason for row in table]
    assert not plot_decay(table, reasons=False).texts


def banded() -> BandedSolution:
    X, y = data(3)
    y[:, 2] = 1.0  # constant: it has no R²
    return banded_ridge_cv(X, y, {"left": slice(0, 2), "right": slice(2, 5)}, cv=5)


@pytest.mark.parametrize("target", [None, 1])
def test_bars_of_bands_are_what_is_unique_and_what_is_shared(target: int | None) -> None:
    X, y = data(3)
    y[:, 2] = 1.0
    partition = banded().partition(X, y)
    ax = plot_bands(partition, target=target)
    columns = [0, 1] if target is None else [target]
    unique, parts = (v[:, columns].mean(1).tolist() for v in (partition.unique, partition.parts))
    assert [bar.get_width() for bar in ax.patches[:2]] == pytest.approx(unique)
    assert [bar.get_x() for bar in ax.patches[2:]] == pytest.approx(
        unique
    )  # the light piece begins where the dark ends
    assert [bar.get_x() + bar.get_width() for bar in ax.patches[2:]] == pytest.approx(parts)
    assert list(ax.lines[0].get_xdata()) == pytest.approx(parts)
    r2 = float(banded().score(X, y)[columns].mean())
    assert ax.get_xlabel() == f"explained variance, R² = {r2:.3f} in all"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["left", "right"]
    single = plot_bands(partition._replace(parts=partition.parts[:, 0], unique=partition.unique[:, 0]))
    assert [bar.get_width() for bar in single.patches[:2]] == pytest.approx(partition.unique[:, 0].tolist())


def single() -> RidgeSolution:
    return ridge(*data(), 1.0)


def many() -> RidgeSolution:
    return ridge_path(*data(), ASCENDING)


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: plot_bands(banded()),
        TypeError,
        r"`partition` should come from `BandedSolution.partition\(X, y\)`, got Ba",
    ),
    (
        lambda: plot_bands(banded().partition(*data(3)), target=3),
        ValueError,
        r"`target`=3 is out of range: there are 3",
    ),
    (lambda: plot_path(torch.ones(3)), TypeError, r"`path` should come from `ridge_path` or `logistic`, got Tensor"),
    (lambda: plot_path(single()), ValueError, r"one strength, expected a path.*ridge_path"),
    (lambda: plot_path(many(), target=1), ValueError, r"`target`=1 is out of range: there are 1 targets"),
    (lambda: plot_path(many(), target=-1), ValueError, r"`target` should be an integer of at least 0, got -1"),
    (lambda: plot_path(many(), names=["a"]), ValueError, r"`names` has 1 names, expected 5"),
    (lambda: plot_path(many(), chosen="1"), TypeError, r"`chosen` should be one number, got str"),
    (lambda: plot_path(many(), ax=3), TypeError, r"`ax` should be matplotlib axes, got int"),
    (lambda: plot_path(ridge_path(torch.randn(2, 9, 3), torch.randn(2, 9), [1.0, 2.0])), ValueError, r"one problem"),
    (lambda: plot_cv(many()), ValueError, r"fitted at given strengths"),
    (lambda: plot_cv(3), TypeError, r"`result` should come from `ridge_cv`, `logistic_cv` or a probe, got int"),
    (lambda: plot_cv(ridge_cv(*data(), ASCENDING, cv=5), target=1), ValueError, r"`target`=1 is out of range"),
    (
        lambda: plot_cv(ridge_cv(*data(2), ASCENDING, cv=5, alpha_per_target=True)),
        ValueError,
        r"has its own strength. Pass one of them as `target`",
    ),
    (lambda: plot_layers([]), ValueError, r"none of the 0 probes"),
    (lambda: plot_layers(report(), score="f1"), ValueError, r"`score`='f1' is in none of the 4 probes"),
    (lambda: plot_decay([]), TypeError, r"`table` should be what `explain_weight_decay` returns, got list"),
]


@pytest.mark.parametrize(("call", "error", "pattern"), BAD)
def test_bad_input_draws_nothing(call: Callable[[], Any], error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        call()
    assert not pyplot.get_fignums()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(matplotlib, "pyplot")
    with pytest.raises(ImportError, match=r"pip install matplotlib.*'\.\[plot\]'"):
        plot_path(many())
