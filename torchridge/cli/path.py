"""`torchridge path`: the weights at every strength, as a table and as a picture."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from torchridge._files import replacing
from torchridge.cli import model, output, rows
from torchridge.exceptions import install
from torchridge.linear.ridge.ridge import ridge_path
from torchridge.linear.ridge.ridge_cv import ridge_cv
from torchridge.linear.ridge.solution.solution import RidgeSolution

_ABOUT = """\
Print the weight of every feature at every strength, one line a strength and target, and draw them with -o. The line of
the strength that generalized cross-validation prefers is drawn in.
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("path", help="weights at every strength", description=_ABOUT)
    rows.add_training(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="a picture, e.g. .png or .pdf; needs matplotlib"
    )
    parser.set_defaults(run=run, flags=rows.training_flags(parser))


def run(options: argparse.Namespace) -> None:
    """Follow the path, draw it, print it."""
    axes = None if options.output is None else _axes()  # before the rows are read: matplotlib may be missing
    if axes is not None:
        output.check(options.output, [f".{kind}" for kind in axes[0].figure.canvas.get_supported_filetypes()])
    source, moments = rows.moments_of(options, None)
    features, targets = rows.names_of(source)
    shared = {"fit_intercept": options.intercept, "standardize": options.standardize}
    chosen = ridge_cv(moments, alphas=options.alphas, cv="gcv", **shared)
    path = ridge_path(moments, alphas=chosen.alphas, **shared)
    if axes is not None:
        _draw(path, chosen, features, options.output, axes)
    if options.json:
        print(output.to_json(_content(path, chosen, features, targets)))
    else:
        _write(path, features, targets)


def _axes() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        from torchridge.plots import plot_path
    except ImportError as error:
        how = install("matplotlib", "plot")
        raise ImportError(f"`-o` needs matplotlib ({error}). {how}") from None
    return pyplot.subplots(figsize=(8, 5), layout="constrained")[1], plot_path


def _draw(path: RidgeSolution, chosen: RidgeSolution, features: list[str], output: Path, axes: Any) -> None:
    ax, plot_path = axes
    plot_path(path, ax=ax, chosen=chosen.alpha, names=features)
    with replacing(output, "output") as file:
        ax.figure.savefig(file, dpi=150, format=output.suffix.removeprefix("."))


def _content(path: RidgeSolution, chosen: RidgeSolution, features: list[str], targets: list[str]) -> dict[str, Any]:
    return {
        "features": features,
        "targets": targets,
        "alphas": path.alpha.tolist(),
        "weight": model.as_float64(path.weight),
        "bias": model.as_float64(path.bias),
        "dof": path.dof.tolist(),
        "gcv_alpha": float(chosen.alpha),
    }


def _write(path: RidgeSolution, features: list[str], targets: list[str]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["alpha", "target", "bias", *features])
    for i, alpha in enumerate(path.alpha.tolist()):
        for k, target in enumerate(targets):
            table.writerow([alpha, target, float(path.bias[i, k]), *model.as_float64(path.weight[i, k])])
