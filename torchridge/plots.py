"""Pictures of what was computed: paths of coefficients, choices of a strength, layers, weight decay.

Every function draws into the axes it is given, or into new ones, and returns them. They need matplotlib, the extra
`torchridge[plot]`, and need no display: with matplotlib's `Agg` backend they draw to files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from torchridge import _check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_cv", "plot_decay", "plot_layers", "plot_path"]

# More lines than this are told apart by no legend.
_LEGEND_LINES = 12

_DECADES = 10  # more are labelled by leaving some out

_SCORES = {
    "mse": "− held-out squared error",
    "gcv": "− generalized cross-validation",
    "evidence": "2/n · log evidence",
    "r2": "held-out R²",
    "log_loss": "− held-out log-loss",
    "log_likelihood": "held-out log-likelihood",
}

_EXEMPT, _FROZEN = "#d98c3f", "#b8b8b8"

# Strengths of weight decay, the strongest darkest.
_DARK, _LIGHT = (0.13, 0.29, 0.53), (0.62, 0.75, 0.90)


class HasCurve(Protocol):
    """What was chosen by scores: a solution of `ridge_cv` or `logistic_cv`, or a probe."""

    def curve(self, target: int | None = None) -> Any:
        """Return `strengths` (L,), `scores` (L,), `folds` (K, L) or None, `chosen`, `name` and `scoring`."""


class HasLines(Protocol):
    """A path of weights: a solution of `ridge_path`, or of `logistic` at several strengths."""

    def lines(self, target: int = 0) -> Any:
        """Return `strengths` (L,), `weight` (L, d) and `name`."""


def plot_path(
    path: HasLines,
    ax: Axes | None = None,
    *,
    chosen: float | Tensor | None = None,
    target: int = 0,
    names: Sequence[str] | None = None,
) -> Axes:
    """Draw the coefficient of every feature against the strength, one line a feature.

    The strength axis is logarithmic, with a linear piece around zero where zero is among the strengths.

    Args:
        path: of `ridge_path` or of `logistic` at several strengths (then against C).
        ax: axes to draw into; by default those of a new figure.
        chosen: a strength to mark, e.g. ``ridge_cv(...).alpha``.
        target: the row of the weights, for several targets or classes.
        names: (d,) names of the features. Up to twelve lines get a legend.

    Returns:
        The axes.

    Raises:
        TypeError: on what is no path.
        ValueError: on a solution of one strength, a batch of problems, and a target or names that do not fit.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge import ridge_path
        >>> from torchridge.plots import plot_path
        >>> X = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        >>> ax = plot_path(ridge_path(X, torch.tensor([0.0, 1.0, 3.0]), [0.1, 1.0, 10.0]), names=["slope", "curve"])
        >>> ax.get_xlabel(), [text.get_text() for text in ax.get_legend().get_texts()]
        ('strength α', ['slope', 'curve'])
    """
    strengths, weight, name = _lines(path, target)
    count = weight.shape[1]
    if names is not None and len(names) != count:
        raise ValueError(f"`names` has {len(names)} names, expected {count}: one for each feature.")
    mark = None if chosen is None else _number(chosen, "chosen")
    ax = _axes(ax)
    order = strengths.argsort()
    for j in range(count):
        label = f"feature {j}" if names is None else names[j]
        ax.plot(strengths[order].tolist(), weight[order, j].tolist(), label=label, linewidth=1.5)
    _strength_axis(ax, strengths, name)
    ax.axhline(0.0, color="0.6", linewidth=0.8, zorder=0, label="_zero")
    ax.set_ylabel("coefficient")
    if mark is not None:
        ax.axvline(mark, color="0.3", linestyle="--", linewidth=1.0, label=f"chosen {name} = {mark:.3g}")
    if count <= _LEGEND_LINES:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


def plot_cv(result: HasCurve, ax: Axes | None = None, *, target: int | None = None) -> Axes:
    """Draw the score of every strength that was tried, its standard error over folds as a band, and the choice.

    The band is the standard deviation over the K folds, over √K; scores without folds (GCV, leave-one-out, evidence)
    have none.

    Args:
        result: of `ridge_cv` or `logistic_cv`, or a probe of a `ProbeReport`.
        ax: axes to draw into; by default those of a new figure.
        target: one target of several; by default their mean, which is what a common strength is chosen by.

    Returns:
        The axes.

    Raises:
        TypeError: on what has no scores.
        ValueError: on a solution that was fitted without a choice, a batch of problems, a target that is not there, or
            a strength for each target and no `target`.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge import ridge_cv
        >>> from torchridge.plots import plot_cv
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 5, generator=g, dtype=torch.float64)
        >>> y = X.sum(1) + torch.randn(60, generator=g, dtype=torch.float64)
        >>> plot_cv(ridge_cv(X, y, [0.1, 1.0, 10.0, 100.0], cv=5)).lines[1].get_label()
        'chosen α = 1'
    """
    curve = curve_of(result, target)
    ax = _axes(ax)
    order = curve.strengths.argsort()
    x, mean = curve.strengths[order].tolist(), curve.scores[order]
    line = ax.plot(x, mean.tolist(), marker=".", markersize=4, label=_SCORES.get(curve.scoring, curve.scoring))[0]
    if curve.folds is not None and len(curve.folds) > 1:
        error = curve.folds[:, order].std(0) / len(curve.folds) ** 0.5
        low, high = (mean - error).tolist(), (mean + error).tolist()
        label = f"± standard error, {len(curve.folds)} folds"
        ax.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0, label=label)
    ax.axvline(
        curve.chosen, color="0.3", linestyle="--", linewidth=1.0, label=f"chosen {curve.name} = {curve.chosen:.3g}"
    )
    _strength_axis(ax, curve.strengths, curve.name)
    ax.set_ylabel(_SCORES.get(curve.scoring, curve.scoring))
    ax.legend(edgecolor="none", framealpha=0.85)
    return ax


def plot_layers(report: Iterable[Any], ax: Axes | None = None, *, score: str | None = None) -> Axes:
    """Draw a score by layer, one line for each readout, with bootstrap intervals and the control task where there are.

    Args:
        report: a `ProbeReport`, or several probes.
        ax: axes to draw into; by default those of a new figure.
        score: a name of `Probe.scores`; by default the one that layers are compared by.

    Returns:
        The axes.

    Raises:
        ValueError: on no probes, and on a score that none of them has.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge.plots import plot_layers
        >>> from torchridge.probing import LinearProbe
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10)
        >>> y = (X[:, 0] > 1.5).long()
        >>> report = LinearProbe(task="classification", metrics="accuracy").fit({"one": X, "two": 2 * X}, y)
        >>> ax = plot_layers(report)
        >>> [tick.get_text() for tick in ax.get_xticklabels()], ax.lines[0].get_label()
        (['one', 'two'], 'ridge: accuracy')
    """
    probes = list(report)
    known = list(dict.fromkeys(name for p in probes for name in p.fold_scores))
    if not probes or score not in (None, *known):
        raise ValueError(f"`score`={score!r} is in none of the {len(probes)} probes. There are {known}.")
    ax = _axes(ax)
    layers = list(dict.fromkeys(p.layer for p in probes))
    for readout in dict.fromkeys(p.readout for p in probes):
        mine = [p for p in probes if p.readout == readout]
        name = score or mine[0].rank_score[0]
        _layer_line(ax, layers, [p for p in mine if name in p.fold_scores], readout, name, ranked=score is None)
    crowded = len(layers) > 8 or max(map(len, layers)) > 8
    ax.set_xticks(range(len(layers)), layers, rotation=90 if crowded else 0)
    ax.set_xlabel("layer")
    ax.set_ylabel(score or "held-out score")
    ax.legend(frameon=False)
    return ax


def plot_decay(table: Iterable[Any], ax: Axes | None = None, *, reasons: bool = True) -> Axes:
    """Draw one bar for each parameter, as long as it has numbers, coloured by what weight decay does to it.

    Args:
        table: of `explain_weight_decay`.
        ax: axes to draw into; by default those of a new figure, as tall as the table is long.
        reasons: whether the reason stands beside each bar.

    Returns:
        The axes.

    Raises:
        TypeError: if the table does not come from `explain_weight_decay`.
        ImportError: without matplotlib.

    Example:
        >>> from torch import nn
        >>> from torchridge import explain_weight_decay
        >>> from torchridge.plots import plot_decay
        >>> ax = plot_decay(explain_weight_decay(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 0.05))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['weight_decay 0.05', 'not decayed']
    """
    rows = list(table) if isinstance(table, Iterable) else []
    if not rows or not all(hasattr(row, "weight_decay") and hasattr(row, "reason") for row in rows):
        raise TypeError(f"`table` should be what `explain_weight_decay` returns, got {type(table).__name__}.")
    ax = _axes(ax, size=(9.0 if reasons else 6.4, 1.3 + 0.24 * len(rows)))
    shades, labels = _shades(rows), set[str]()
    for place, row in enumerate(rows):
        label = _decay_label(row)
        color = _FROZEN if row.group == "frozen" else shades[row.weight_decay] if row.decay else _EXEMPT
        ax.barh(place, _size(row), color=color, height=0.7, label=f"_{label}" if label in labels else label)
        labels.add(label)
        if reasons:
            text = f" {row.reason}"
            ax.annotate(text, (1.0, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xscale("log")
    ax.set_xlim(left=1)
    ax.set_xlabel("numbers in the parameter")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return ax


def curve_of(result: Any, target: int | None) -> Any:
    """Return the scores of a result, or raise if it has none."""
    if not callable(getattr(result, "curve", None)):
        raise TypeError(f"`result` should come from `ridge_cv`, `logistic_cv` or a probe, got {type(result).__name__}.")
    return result.curve(target)


def _lines(path: Any, target: int) -> tuple[Tensor, Tensor, str]:
    if not callable(getattr(path, "lines", None)):
        raise TypeError(f"`path` should come from `ridge_path` or `logistic`, got {type(path).__name__}.")
    lines = path.lines(target)
    return lines.strengths, lines.weight, lines.name


def _number(value: Any, name: str) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, (int, float)):
        raise TypeError(f"`{name}` should be one number, got {type(value).__name__}.")
    return float(number)


def _axes(ax: Any, size: tuple[float, float] | None = None) -> Any:
    if ax is not None:
        if not callable(getattr(ax, "axvline", None)):
            raise TypeError(f"`ax` should be matplotlib axes, got {type(ax).__name__}. Leave it out for a new figure.")
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(f"plots need matplotlib. {_check.install('matplotlib', 'plot')}") from None
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def _strength_axis(ax: Any, strengths: Tensor, name: str) -> None:
    positive = strengths[strengths > 0]
    if len(positive) == len(strengths):
        ax.set_xscale("log")
    elif len(positive):
        _axis_with_zero(ax, float(positive.min()))
    ax.set_xlabel({"γ": "shrinkage γ"}.get(name, f"strength {name}"))


def _axis_with_zero(ax: Any, least: float) -> None:
    """Set zero half a decade before the least positive strength, and no place for negative ones."""
    most = float(ax.dataLim.x1)
    ax.set_xscale("symlog", linthresh=least, linscale=0.45)  # matplotlib makes that 0.45 / 0.9 decades
    margin = 0.05 * (0.5 + math.log10(most / least))
    ax.set_xlim(-least * min(1.0, margin / 0.5), most * 10**margin)
    first, last = math.ceil(math.log10(least) - 1e-9), math.floor(math.log10(most) + 1e-9)
    decades = [10.0**k for k in range(first, last + 1, 1 + max(0, last - first) // _DECADES)]
    ax.set_xticks([0.0, *(decades or (least, most))])
    if not decades:
        ax.xaxis.set_major_formatter("{x:g}")


def _layer_line(ax: Any, layers: list[str], probes: list[Any], readout: str, name: str, *, ranked: bool) -> None:
    at = [layers.index(p.layer) for p in probes]
    line = ax.plot(at, [p.scores[name] for p in probes], marker="o", label=f"{readout}: {name}")[0]
    if ranked and probes and all(p.interval for p in probes):
        low, high = zip(*(p.interval or (0.0, 0.0) for p in probes), strict=True)
        ax.fill_between(at, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    if probes and all(name in p.control for p in probes):
        control = [p.control[name] for p in probes]
        ax.plot(at, control, linestyle=":", color=line.get_color(), label=f"{readout}: shuffled labels")


def _shades(rows: list[Any]) -> dict[float, tuple[float, ...]]:
    strengths = sorted({row.weight_decay for row in rows if row.decay})
    steps = [1.0 if len(strengths) == 1 else i / (len(strengths) - 1) for i in range(len(strengths))]
    pairs = list(zip(_LIGHT, _DARK, strict=True))
    return {w: tuple(a + (b - a) * x for a, b in pairs) for w, x in zip(strengths, steps, strict=True)}


def _decay_label(row: Any) -> str:
    return "frozen" if row.group == "frozen" else f"weight_decay {row.weight_decay:g}" if row.decay else "not decayed"


def _size(row: Any) -> int:
    return 1 if row.shape is None else int(torch.Size(row.shape).numel())
