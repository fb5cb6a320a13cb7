"""Options that say which rows a command reads."""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path
from typing import Any

import torch

from torchridge.cli.flags import flags_of
from torchridge.solvers.moments.moments import Moments
from torchridge.streams import RowSource, open_rows, stream_moments

# A longer grid is a slip of the keyboard.
_MOST_ALPHAS = 10**6

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _device(text: str) -> str:
    """Check a device before anything is read."""
    try:
        kind = torch.device(text).type
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:0, got {text!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text} was requested, but torch finds no CUDA device; leave out --device")
    if kind not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:0, got {text!r}")
    return text


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add what tells where rows come from."""
    parser.add_argument(
        "source",
        metavar="ROWS",
        help="a file that ends in .csv, .tsv (or with .gz), .parquet, .arrow, .feather, .npy or .safetensors; a folder "
        "or a pattern of .parquet files; - is CSV on standard input, whose rows are dealt to the folds as by "
        "--fold-rows 1, since their number is not known",
    )
    parser.add_argument(
        "--features",
        metavar="COLUMNS",
        type=columns,
        help="names, or numbers from 0, separated by commas (default: all others)",
    )
    parser.add_argument("--delimiter", help="of the CSV (default: a comma; a tab for .tsv)")
    parser.add_argument("--header", choices=["yes", "no"], help="whether the CSV starts with names (default: detected)")
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show progress (default: on a terminal)"
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what a fit needs besides the features."""
    add_source(parser)
    parser.add_argument(
        "--target",
        metavar="COLUMNS",
        type=columns,
        required=True,
        help="names or numbers from 0, with commas; for .npy another .npy, or column numbers of this one",
    )
    parser.add_argument("--weight", metavar="COLUMN", type=column, help="sample weights")
    parser.add_argument("--fold", metavar="COLUMN", type=column, help="fold ids, in place of --cv")
    parser.add_argument(
        "--fold-rows",
        metavar="N",
        type=int,
        help="deal runs of N rows to the folds in turn, for pipes and files alike",
    )
    parser.add_argument(
        "--alphas", type=alphas, default="auto", help="auto (default), LOW:HIGH:COUNT evenly spaced in log, or a,b,c"
    )
    parser.add_argument("--standardize", action="store_true", help="weight each penalty by the variance of its feature")
    parser.add_argument("--no-intercept", dest="intercept", action="store_false")
    memory = "of moments and batches, e.g. 2G"
    parser.add_argument("--max-memory", metavar="SIZE", dest="max_bytes", type=size, help=memory)
    parser.add_argument("--device", type=_device, default="cpu", help="device of the sums, e.g. cuda (default: cpu)")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="resume from it, and keep it up to date")
    parser.add_argument("--json", action="store_true", help="print JSON")


def training_flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return what the library's arguments are called here."""
    return flags_of(parser, rows="ROWS", sample_weight="--weight", cv="--cv")


def opened(options: argparse.Namespace, **named: Any) -> RowSource:
    """Open the rows of the options."""
    header = None if options.header is None else options.header == "yes"
    return open_rows(options.source, delimiter=options.delimiter, header=header, **named)


def moments_of(options: argparse.Namespace, folds: int | None) -> tuple[RowSource, Moments]:
    """Return the rows of a training command and their moments."""
    target = options.target if len(options.target) > 1 else options.target[0]
    features = options.features
    if str(options.source).endswith(".safetensors") and features is not None:
        features = features[0] if len(features) == 1 else features
    source = opened(options, target=target, features=features, sample_weight=options.weight, fold=options.fold)
    moments = stream_moments(
        source,
        cv=None if options.fold is not None else folds,
        fold_rows=options.fold_rows,
        max_bytes=options.max_bytes,
        device=options.device,
        progress=progress(options),
        checkpoint=options.checkpoint,
    )
    if options.fold is not None and len(moments.folds) < 2:
        raise ValueError(f"`fold`: column {options.fold} holds a single fold id; expected two or more.")
    return source, moments


def progress(options: argparse.Namespace) -> bool:
    """Whether to show progress: as asked for; else on a terminal, if tqdm is installed."""
    if options.progress is not None:
        return bool(options.progress)
    try:
        import tqdm  # noqa: F401
    except ImportError:
        return False
    return sys.stderr.isatty()


def names_of(source: RowSource) -> tuple[list[str], list[str]]:
    """Return names of features and targets, made up if there are none."""
    d, t = source.n_features or 0, source.n_targets or 0
    features = list(source.feature_names or [f"x{i}" for i in range(d)])
    return features, list(source.target_names or (["y"] if t == 1 else [f"y{i}" for i in range(t)]))


def column(text: str) -> str | int:
    """Read one column: a number, or a name."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text


def columns(text: str) -> list[str | int]:
    """Read columns."""
    return [column(part.strip()) for part in text.split(",")]


def size(text: str) -> int:
    """Read a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"should be a size such as 500M or 2G, got {text!r}")
    return int(min(float(match[1]) * _SIZES[match[2].upper()], 2.0**62))


def alphas(text: str) -> str | torch.Tensor:
    """Read a grid of strengths."""
    if text == "auto":
        return text
    try:
        if ":" in text:
            low, high, count = text.split(":")
            start, end = (math.log10(float(edge)) for edge in (low, high))
            return torch.logspace(start, end, _positive(count), dtype=torch.float64)
        return torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
    except (ValueError, RuntimeError):
        raise argparse.ArgumentTypeError(f"should be auto, LOW:HIGH:COUNT or a,b,c, got {text!r}") from None


def _positive(text: str) -> int:
    if not 1 <= (number := int(text)) <= _MOST_ALPHAS:
        raise ValueError
    return number
