"""`torchridge predict`: the predictions of a model for a file of rows, as they are read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from torchridge._files import replacing
from torchridge.cli import model, output, rows
from torchridge.cli.flags import flags_of
from torchridge.streams import RowSource, prefetch

_BATCH_BYTES = 2**23


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("predict", help="predict the rows of a file", description=__doc__.split(":", 1)[1])
    parser.add_argument("model", metavar="MODEL", type=Path, help="what `torchridge fit -o` wrote")
    rows.add_source(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help=".csv or .npy; default: CSV on standard output"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    parser.set_defaults(run=run, flags=flags_of(parser))


def run(options: argparse.Namespace) -> None:
    """Predict batch by batch."""
    if options.output is not None and options.json:
        raise argparse.ArgumentTypeError("--json prints, and -o writes a file; leave one out")
    output.check(options.output, (".csv", ".npy"))
    fitted = model.read(options.model)
    features: Any = options.features if options.features is not None else fitted.features
    matrix = options.source.endswith((".npy", ".safetensors"))
    if matrix:
        features = options.features
        features = features[0] if features is not None and options.source.endswith(".safetensors") else features
    source = rows.opened(options, features=features)
    model.check_names(fitted, source.feature_names, source.n_features)
    with closing(_predictions(fitted, source, rows.progress(options))) as parts:  # type: ignore[type-var]
        if options.output is None:
            _write_text(parts, fitted.targets, options.json, sys.stdout)
        else:
            _write_file(parts, fitted.targets, options.output)


def _predictions(fitted: model.Model, source: RowSource, progress: bool) -> Iterator[Tensor]:
    yield fitted.predict(torch.empty(0, fitted.n_features, dtype=torch.float64))  # the dtype and width of no rows
    size = max(1, _BATCH_BYTES // max(1, source.row_bytes or 1))
    with closing(prefetch.batches(source, 0, size, torch.device("cpu"))) as batches:  # type: ignore[type-var]
        at = 0
        for batch in _shown(batches, source, progress):
            if not bool(torch.isfinite(batch.X).all()):
                row = at + int((~torch.isfinite(batch.X)).any(1).nonzero()[0, 0])
                of = source.name or "the rows"
                raise ValueError(f"row {row} of {of} holds NaN or infinity; expected finite numbers.")
            at += len(batch.X)
            yield fitted.predict(batch.X)


def _shown(batches: Any, source: RowSource, progress: bool) -> Iterator[Any]:
    if not progress:
        yield from batches
        return
    from tqdm.auto import tqdm

    with tqdm(total=source.n_rows, desc="rows", unit=" rows", unit_scale=True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.X))


def _write_text(parts: Iterator[Tensor], targets: list[str], as_json: bool, out: TextIO) -> None:
    head = "" if as_json else ",".join(_quoted(name) for name in targets) + "\n"
    for part in parts:
        lines = part.tolist()
        if lines:  # a first row that is refused leaves nothing behind
            out.write(head)
            head = ""
        if as_json:
            out.writelines(output.to_json(dict(zip(targets, line, strict=True))) + "\n" for line in lines)
        else:
            out.writelines(",".join(map(repr, line)) + "\n" for line in lines)
    out.write(head)


def _write_file(parts: Iterator[Tensor], targets: list[str], path: Path) -> None:
    """Write the file whole, or leave what was there."""
    with replacing(path, "output") as file:
        if path.suffix == ".npy":
            np.save(file, np.concatenate([part.numpy() for part in parts]))
        else:
            text = TextIOWrapper(file, encoding="utf-8", newline="")
            _write_text(parts, targets, False, text)
            text.flush()
            text.detach()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\r\n') else name
