"""Pictures against the strength: a path of coefficients, and the scores that a strength was chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from torchridge.plots.axes import axes, strength_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More lines than this are told apart by no legend.
_LEGEND_LINES = 12

_SCORES = {
    "mse": "− held-out squared error",
    "gcv": "− generalized cross-validation",
    "evidence": "2/n · log evidence",
    "r2": "held-out R²",
    "log_loss": "− held-out log-loss",
    "log_likelihood": "held-out log-likelihood",
}


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

    The strength axis is logarithmic, with a linear piece around zero if zero is among the strengths.

    Args:
        path: of `ridge_path` or of `logistic` at several strengths (then against C).
        ax: axes to draw into; by default those of a new figure.
        chosen: a strength to mark, e.g. ``ridge_cv(...).alpha``.
        target: the row of the weights, for several targets or classes.
        names: (d,) names of the features. Up to twelve lines get a legend.

    Returns:
        The axes.

    Raises:
        TypeError: on anything but a path.
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
    ax = axes(ax)
    order = strengths.argsort()
    for j in range(count):
        label = f"feature {j}" if names is None else names[j]
        ax.plot(strengths[order].tolist(), weight[order, j].tolist(), label=label, linewidth=1.5)
    strength_axis(ax, strengths, name)
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
        TypeError: on anything without scores.
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
    ax = axes(ax)
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
    strength_axis(ax, curve.strengths, curve.name)
    ax.set_ylabel(_SCORES.get(curve.scoring, curve.scoring))
    ax.legend(edgecolor="none", framealpha=0.85)
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
