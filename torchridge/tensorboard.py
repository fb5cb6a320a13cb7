"""Strength sweeps, paths and layers for TensorBoard, written to any object with torch's `SummaryWriter` methods.

`L2Monitor` logs a training loop; these log what was computed in closed form. Figures need matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from torchridge import plots
from torchridge.plots import HasCurve, HasLines

__all__ = ["log_cv", "log_layers", "log_path", "log_sweep"]


class ScalarWriter(Protocol):
    """What scalars are written to, e.g. `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Write one number."""


class FigureWriter(Protocol):
    """What figures are written to."""

    def add_figure(self, tag: str, figure: Any, step: int, /) -> object:
        """Write one figure."""


class SweepWriter(Protocol):
    """What trials are written to."""

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
    """Write every strength that was tried as one trial of the HParams tab, with its score.

    Each trial is a run of its own beneath the writer's, ``{tag}/000`` and on, in the order of the strengths. Its
    hyperparameter is named "alpha" ("C" of a logistic regression, "shrinkage" of LDA), its metric
    ``{tag}/{scoring}``; where there are folds, ``{tag}/standard_error`` stands beside it.

    Args:
        writer: with `add_hparams(hparam_dict, metric_dict, run_name=)`, as torch's `SummaryWriter`.
        result: of `ridge_cv` or `logistic_cv`, or a probe of a `ProbeReport`.
        tag: names the runs and the metrics.
        target: one target of several, as for `plot_cv`.
        hparams: further hyperparameters, the same for every trial, e.g. ``{"standardize": True}``.

    Returns:
        The number of trials.

    Raises:
        TypeError: on a writer without `add_hparams`, and on a result without scores.
        ValueError: on a solution that was fitted without a choice.

    Example:
        >>> import torch
        >>> from torchridge import ridge_cv
        >>> from torchridge.tensorboard import log_sweep
        >>> class Printer:
        ...     def add_hparams(self, hparam_dict, metric_dict, run_name):
        ...         print(run_name, hparam_dict, {name: round(value, 3) for name, value in metric_dict.items()})
        >>> X = torch.tensor([[-1.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> log_sweep(Printer(), ridge_cv(X, X[:, 0].exp(), [0.01, 0.1, 1.0], cv="gcv"))
        sweep/000 {'alpha': 0.01} {'sweep/gcv': 4.243}
        sweep/001 {'alpha': 0.1} {'sweep/gcv': 4.179}
        sweep/002 {'alpha': 1.0} {'sweep/gcv': 4.237}
        3
    """
    _has(writer, "add_hparams")
    curve = plots.curve_of(result, target)
    name = {"α": "alpha", "γ": "shrinkage"}.get(curve.name, curve.name)
    for i, strength in enumerate(curve.strengths.tolist()):
        metrics = {f"{tag}/{curve.scoring.replace(' ', '_')}": float(curve.scores[i])}
        if curve.folds is not None and len(curve.folds) > 1:
            metrics[f"{tag}/standard_error"] = float(curve.folds[:, i].std()) / len(curve.folds) ** 0.5
        writer.add_hparams({name: strength, **(hparams or {})}, metrics, run_name=f"{tag}/{i:03d}")
    return len(curve.strengths)


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
        cross_validation generalized cross-validation
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
    """Axes of a figure that pyplot does not keep: nothing is left open where a writer does not close it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib. Install it with `pip install torchridge[plot]`.") from None
    return Figure(layout="constrained").subplots()


def _has(writer: object, method: str) -> None:
    if not callable(getattr(writer, method, None)):
        raise TypeError(
            f"`writer` should have a method `{method}`, got {type(writer).__name__}. "
            f"Pass e.g. `torch.utils.tensorboard.SummaryWriter()`, from the extra `torchridge[tensorboard]`."
        )
