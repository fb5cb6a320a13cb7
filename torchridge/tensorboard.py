"""Strength sweeps, paths and layers for TensorBoard, written to any object with torch's `SummaryWriter` methods.

`L2Monitor` logs a training loop; these log what was computed in closed form. Figures need matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from torchridge import _check, plots
from torchridge.plots.strengths import HasCurve, HasLines, curve_of

__all__ = ["log_cv", "log_layers", "log_path", "log_sweep"]


class ScalarWriter(Protocol):
    """What scalars are written to, e.g. `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Write one number."""


class FigureWriter(Protocol):
    """What figures are written to."""

    def add_figure(self, tag: str, figure: Any, step: int, /) -> object:
        """Write one figure."""


class SweepWriter(ScalarWriter, Protocol):
    """What a sweep is written to."""

    def add_text(self, tag: str, text: str, step: int, /) -> object:
        """Write Markdown."""

    def add_hparams(self, hparams: dict[str, Any], metrics: dict[str, float], /, *, run_name: str) -> object:
        """Write one trial."""


class LayerWriter(ScalarWriter, FigureWriter, Protocol):
    """What both scalars and figures are written to."""


class HasLayers(Protocol):
    """Scores of layers: a `ProbeReport`."""

    def add_to(self, writer: ScalarWriter, tag: str) -> None:
        """Write the scores of every layer."""

    def plot(self, score: str | None = None, ax: Any = None) -> Any:
        """Draw the scores of every layer."""


def log_sweep(
    writer: SweepWriter,
    result: HasCurve,
    tag: str = "sweep",
    *,
    target: int | None = None,
    hparams: Mapping[str, float | str | bool] | None = None,
) -> int:
    """Write the score of every strength that was tried into the writer's own run, and mark the one that was chosen.

    The strengths are counted from the weakest number up: at step i stand ``{tag}/{scoring}``, the strength itself
    ``{tag}/alpha`` ("C" of a logistic regression, "shrinkage" of LDA) and, if there are folds,
    ``{tag}/standard_error``. The text ``{tag}`` is a table with the chosen strength marked; the HParams tab has one
    trial, the chosen strength with its score, in the run ``{tag}``.

    Args:
        writer: with `add_scalar`, `add_text` and `add_hparams`, as torch's `SummaryWriter`.
        result: of `ridge_cv` or `logistic_cv`, or a probe of a `ProbeReport`.
        tag: names the scalars, the table and the trial.
        target: one target of several, as for `plot_cv`.
        hparams: further hyperparameters of the trial, e.g. ``{"standardize": True}``.

    Returns:
        The step of the chosen strength.

    Raises:
        TypeError: on a writer without those methods, and on a result without scores.
        ValueError: on a solution that was fitted without a choice.

    Example:
        >>> import torch
        >>> from torchridge import ridge_cv
        >>> from torchridge.tensorboard import log_sweep
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, round(value, 3))
        ...     def add_text(self, tag, text, step): ...
        ...     def add_hparams(self, hparams, metrics, run_name):
        ...         print("chosen:", hparams)
        >>> X = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> log_sweep(Printer(), ridge_cv(X, X[:, 0].exp(), [0.01, 0.1, 1.0], cv="gcv"))
        0 sweep/gcv -4.243
        0 sweep/alpha 0.01
        1 sweep/gcv -4.179
        1 sweep/alpha 0.1
        2 sweep/gcv -4.237
        2 sweep/alpha 1.0
        chosen: {'alpha': 0.1}
        1
    """
    for method in ("add_scalar", "add_text", "add_hparams"):
        _has(writer, method)
    curve = curve_of(result, target)
    name = {"α": "alpha", "γ": "shrinkage"}.get(curve.name, curve.name)
    score = f"{tag}/{curve.scoring.replace(' ', '_')}"
    trials = _trials(curve, score, f"{tag}/{name}", f"{tag}/standard_error")
    chosen = int((curve.strengths.sort().values - curve.chosen).abs().argmin())
    for step, values in enumerate(trials):
        for key, value in values.items():
            writer.add_scalar(key, value, step)
    writer.add_text(tag, _as_markdown(trials, chosen), 0)
    metrics = {key: value for key, value in trials[chosen].items() if key != f"{tag}/{name}"}
    writer.add_hparams({name: curve.chosen, **(hparams or {})}, metrics, run_name=tag)
    return chosen


def _trials(curve: Any, score: str, strength: str, error: str) -> list[dict[str, float]]:
    """Return what is written of every strength, in their order."""
    order = curve.strengths.argsort()
    folds = None if curve.folds is None or len(curve.folds) < 2 else curve.folds
    errors = None if folds is None else folds.std(0) / len(folds) ** 0.5
    return [
        {score: float(curve.scores[i]), strength: float(curve.strengths[i])}
        | ({} if errors is None else {error: float(errors[i])})
        for i in order.tolist()
    ]


def _as_markdown(trials: list[dict[str, float]], chosen: int) -> str:
    names = list(trials[0])
    lines = ["| step | " + " | ".join(names) + " | |", "|---" * (len(names) + 2) + "|"]
    for step, values in enumerate(trials):
        cells = " | ".join(f"{values[name]:.6g}" for name in names)
        lines.append(f"| {step} | {cells} | {'**chosen**' if step == chosen else ''} |")
    return "\n".join(lines)


def log_path(
    writer: FigureWriter,
    path: HasLines,
    tag: str = "path",
    *,
    step: int = 0,
    chosen: float | Tensor | None = None,
    target: int = 0,
    names: list[str] | None = None,
) -> None:
    """Write the figure of `plot_path`.

    Args:
        writer: with `add_figure(tag, figure, step)`.
        path: as for `plot_path`.
        tag: the name of the image.
        step: the step it is logged under.
        chosen: as for `plot_path`.
        target: as for `plot_path`.
        names: as for `plot_path`.

    Raises:
        TypeError: on a writer without `add_figure`; as `plot_path`.
        ValueError: as `plot_path`.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge import ridge_path
        >>> from torchridge.tensorboard import log_path
        >>> class Printer:
        ...     def add_figure(self, tag, figure, global_step):
        ...         print(tag, global_step, len(figure.axes))
        >>> log_path(Printer(), ridge_path(torch.eye(3), torch.arange(3.0), [0.1, 1.0]), step=5)
        path 5 1
    """
    _has(writer, "add_figure")
    ax = _axes()
    plots.plot_path(path, ax, chosen=chosen, target=target, names=names)
    writer.add_figure(tag, ax.figure, step)


def log_cv(
    writer: FigureWriter,
    result: HasCurve,
    tag: str = "cross_validation",
    *,
    step: int = 0,
    target: int | None = None,
) -> None:
    """Write the figure of `plot_cv`.

    Args:
        writer: with `add_figure(tag, figure, step)`.
        result: as for `plot_cv`.
        tag: the name of the image.
        step: the step it is logged under.
        target: as for `plot_cv`.

    Raises:
        TypeError: on a writer without `add_figure`; as `plot_cv`.
        ValueError: as `plot_cv`.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge import ridge_cv
        >>> from torchridge.tensorboard import log_cv
        >>> class Printer:
        ...     def add_figure(self, tag, figure, global_step):
        ...         print(tag, figure.axes[0].get_ylabel())
        >>> X = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> log_cv(Printer(), ridge_cv(X, X[:, 0].exp(), [0.01, 0.1, 1.0], cv="gcv"))
        cross_validation − generalized cross-validation
    """
    _has(writer, "add_figure")
    ax = _axes()
    plots.plot_cv(result, ax, target=target)
    writer.add_figure(tag, ax.figure, step)


def log_layers(writer: LayerWriter, report: HasLayers, tag: str = "probe", *, step: int = 0) -> None:
    """Write the scores of every layer as scalars over depth (`ProbeReport.add_to`), and the figure of `plot_layers`.

    Args:
        writer: with `add_scalar(tag, value, step)` and `add_figure(tag, figure, step)`.
        report: of `probe_layers` or `LinearProbe`.
        tag: the name of the image, and what the names of the scalars begin with.
        step: the step the figure is logged under; scalars count layers, and their curves strengths.

    Raises:
        TypeError: on a writer without either method.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge.probing import LinearProbe
        >>> from torchridge.tensorboard import log_layers
        >>> class Printer:
        ...     def add_scalar(self, tag, value, step):
        ...         if tag.endswith("accuracy"):
        ...             print(tag, value, step)
        ...     def add_figure(self, tag, figure, global_step):
        ...         print(tag, [tick.get_text() for tick in figure.axes[0].get_xticklabels()])
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10)
        >>> probe = LinearProbe(task="classification", metrics="accuracy")
        >>> log_layers(Printer(), probe.fit({"one": X, "two": 2 * X}, (X[:, 0] > 1.5).long()))
        probe/ridge/accuracy 1.0 0
        probe/ridge/accuracy 1.0 1
        probe ['one', 'two']
    """
    _has(writer, "add_scalar")
    _has(writer, "add_figure")
    ax = _axes()
    report.plot(ax=ax)
    report.add_to(writer, tag)
    writer.add_figure(tag, ax.figure, step)


def _axes() -> Any:
    """Axes of a figure that pyplot does not keep: nothing is left open if a writer does not close it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"figures need matplotlib. {_check.install('matplotlib', 'plot')}") from None
    return Figure(layout="constrained").subplots()


def _has(writer: object, method: str) -> None:
    if not callable(getattr(writer, method, None)):
        raise TypeError(
            f"`writer` should have a method `{method}`, got {type(writer).__name__}. "
            f"Pass e.g. `torch.utils.tensorboard.SummaryWriter()`, from the extra `torchridge[tensorboard]`."
        )
