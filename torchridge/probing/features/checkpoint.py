"""An interrupted pass: everything it has gathered, to go on from bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge import _files as files
from torchridge.probing.features.chunks import Chunk, Gatherer
from torchridge.probing.features.table import LayerTable

KIND = "torchridge.probe-checkpoint/2"


def write(path: str | Path, gatherer: Gatherer, table: LayerTable, about: dict[str, Any]) -> None:
    """Write the moments, the rows that wait, and the state of folds and classes."""
    tensors, state = table.state()
    waiting = []
    for i, chunk in enumerate(gatherer.pending):
        tensors |= {f"pending/{i}/{name}": value for name, value in chunk.fields().items()}
        tensors |= {f"pending/{i}/features/{j}": rows for j, rows in enumerate(chunk.features.values())}
        waiting.append(list(chunk.features))
    devices = {layer: str(rows.device) for chunk in gatherer.pending for layer, rows in chunk.features.items()}
    devices |= {layer: str(next(iter(b.values())).gram.device) for layer, b in table.blocks.items()}
    labeler = gatherer.labeler
    content = {
        "about": about,
        "table": state,
        "waiting": waiting,
        "devices": devices,
        "batches": gatherer.batches,
        "seen": gatherer.seen,
        "chunk_rows": gatherer.chunk_rows,
        "dtypes": {layer: str(dtype) for layer, dtype in gatherer.dtypes.items()},
        "vector_target": gatherer.vector_target,
        "folds": labeler.folds.state(),
        "codes": list(labeler.codes.codes.items()),
    }
    files.write(path, KIND, tensors, content, name="checkpoint")


def resume(path: str | Path, gatherer: Gatherer, table: LayerTable, about: dict[str, Any]) -> None:
    """Take over what `write` left.

    Raises:
        ValueError: if the file was written for other options, or is damaged.
    """
    tensors, content = files.read(path, KIND, name="checkpoint")
    with files.understood(path, "checkpoint"):
        found = dict(content["about"])
    if found != about:
        wrong = [name for name in about if found.get(name) != about[name]]
        raise ValueError(
            f"`checkpoint`: {Path(path).name} was written with other options ({wrong}). Delete it to start anew."
        )
    with files.understood(path, "checkpoint"):
        _take_over(tensors, content, gatherer, table)


def _take_over(tensors: dict[str, Tensor], content: dict[str, Any], gatherer: Gatherer, table: LayerTable) -> None:
    devices = {layer: torch.device(d) for layer, d in content["devices"].items()}
    table.load(tensors, content["table"], devices)
    gatherer.batches, gatherer.chunk_rows = content["batches"], content["chunk_rows"]
    gatherer.dtypes = {k: getattr(torch, v.removeprefix("torch.")) for k, v in content["dtypes"].items()}
    gatherer.seen = content["seen"]
    gatherer.vector_target = content["vector_target"]
    gatherer.labeler.folds.load(content["folds"])
    gatherer.labeler.codes.codes = dict(content["codes"])
    for i, layers in enumerate(content["waiting"]):
        start = f"pending/{i}/"
        mine = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        features = {layer: mine[f"features/{j}"].to(devices[layer]) for j, layer in enumerate(layers)}
        names = ("target", "fold", "example", "group", "weight")
        gatherer.pending.append(Chunk(features, **{name: mine.get(name) for name in names}))  # type: ignore[arg-type]
