"""`torchridge fit`: choose a strength by cross-validation, fit, and write the model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from torchridge.cli import model, output, rows
from torchridge.linear.ridge.ridge import ridge
from torchridge.linear.ridge.ridge_cv import ridge_cv
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.least_squares import criteria, target_scores
from torchridge.strength import convert_strength

_ABOUT = """\
Minimize Σ s (y − Wx − b)² + α Σ W², with the strength α that predicts held-out rows best, in one pass over rows that
need not fit in memory. The bias b is never penalized.
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("fit", help="fit ridge regression to a file of rows", description=_ABOUT)
    rows.add_training(parser)
    parser.add_argument("--alpha", type=float, help="a given strength, in place of --alphas and --cv")
    parser.add_argument("--cv", help="number of folds (default: 5; contiguous runs of rows), gcv or evidence")
    parser.add_argument("--scoring", choices=target_scores.from_moments(), help="score of the folds (default: mse)")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="the model, a .safetensors file")
    parser.set_defaults(run=run, flags=rows.training_flags(parser))


def run(options: argparse.Namespace) -> None:
    """Fit, write, report."""
    folds = _folds(options)
    output.check(options.output, [".safetensors"])
    source, moments = rows.moments_of(options, folds)
    features, targets = rows.names_of(source)
    shared = {"fit_intercept": options.intercept, "standardize": options.standardize}
    if options.alpha is not None:
        solution = ridge(moments, alpha=options.alpha, **shared)
    else:
        cv = None if options.fold is not None or folds is not None else options.cv
        solution = ridge_cv(moments, alphas=options.alphas, cv=cv, scoring=options.scoring, **shared)
    if options.output is not None:
        model.write(options.output, solution, features if source.feature_names else None, targets)
    report = _report(solution, moments.weight_sum, features, targets, options)
    print(output.to_json(report) if options.json else _text(report))


def _folds(options: argparse.Namespace) -> int | None:
    grid = None if options.alphas == "auto" else options.alphas
    given = {"--cv": options.cv, "--alphas": grid, "--scoring": options.scoring}
    idle = [flag for flag, value in given.items() if value is not None]
    if options.alpha is not None and idle:
        raise argparse.ArgumentTypeError(f"--alpha gives the strength, and {idle[0]} chooses one; leave one out")
    if options.fold is not None and options.cv is not None:
        raise argparse.ArgumentTypeError("--fold names a column of fold ids, and --cv makes folds; leave one out")
    options.cv, options.scoring = options.cv or "5", options.scoring or "mse"
    criterion = options.cv in criteria.from_moments()
    if options.scoring != "mse" and options.fold is None and criterion:
        raise argparse.ArgumentTypeError(f"--scoring {options.scoring} needs folds, and --cv {options.cv} makes none")
    if options.alpha is not None or options.fold is not None or criterion:
        return None
    if not re.fullmatch("[0-9]{1,18}", options.cv) or int(options.cv) < 2:
        raise argparse.ArgumentTypeError(
            f"--cv should be a number of folds of at least 2, gcv or evidence, got {options.cv!r}"
        )
    return int(options.cv)


def _report(
    solution: RidgeSolution, weight_sum: float, features: list[str], targets: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    alpha = float(solution.alpha)
    report = {
        "n_samples": solution.n_samples,
        "features": features,
        "targets": targets,
        "alpha": alpha,
        "lambda": convert_strength(
            alpha, source="sklearn", target="lambda", n_samples=solution.n_samples, sample_weight_sum=weight_sum
        ),
        "dof": float(solution.dof),
        "condition": float(solution.condition),
        "solver": solution.solver,
        "reason": solution.reason,
        "weight": model.as_float64(solution.weight),
        "bias": model.as_float64(solution.bias),
        "model": None if options.output is None else str(options.output),
    }
    if solution.scores is not None and solution.alphas is not None and solution.best_score is not None:
        report |= {"scoring": solution.scoring, "best_score": float(solution.best_score)}
        report |= {"folds": 0 if solution.fold_scores is None else len(solution.fold_scores)}
        report |= {"alphas": solution.alphas.tolist(), "scores": solution.scores.to(torch.float64).mean(1).tolist()}
    return report


def _text(report: dict[str, Any]) -> str:
    lines = {
        "rows": f"{report['n_samples']}",
        "features": f"{len(report['features'])}",
        "targets": ", ".join(report["targets"]),
        "alpha": f"{report['alpha']:.6g}  (λ = {report['lambda']:.6g} of the mean loss)",
        "dof": f"{report['dof']:.2f}",
        "condition": f"{report['condition']:.3g}",
        "solver": f"{report['solver']}: {report['reason']}",
    }
    if "best_score" in report:
        how = f"{len(report['alphas'])} strengths" + (f", {report['folds']} folds" if report["folds"] > 1 else "")
        lines["score"] = f"{report['best_score']:.6g} {report['scoring']}  ({how})"
    if report["model"]:
        lines["model"] = report["model"]
    return "\n".join(f"{name:10s}{value}" for name, value in lines.items())
