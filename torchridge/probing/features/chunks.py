"""Rows of every layer, gathered from batches into chunks large enough for one symmetric update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchridge import _check
from torchridge._files import content
from torchridge.probing.features import frozen
from torchridge.probing.features.batches import Batch, Reader
from torchridge.probing.features.folding import ClassCodes, StreamFolds, check_classes
from torchridge.probing.features.pooling import Pool, pooled, tensor_of

# Rows of all layers that wait for their update together.
PENDING_BYTES = 64 * 2**20

IGNORED = -100  # the label of tokens that do not count, as in `nn.CrossEntropyLoss`


@dataclass(frozen=True)
class Chunk:
    """Rows of every layer with what belongs to them."""

    features: dict[str, Tensor]  # layer: (m, d)
    target: Tensor  # (m, t) float64, or class codes (m,) int64
    fold: Tensor  # (m,)
    example: Tensor  # (m,) number of the example in the stream
    group: Tensor | None  # (m,)
    weight: Tensor | None  # (m,) float64

    def fields(self) -> dict[str, Tensor]:
        """Return what is not None, apart from the features."""
        names = ("target", "fold", "example", "group", "weight")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def joined(chunks: list[Chunk]) -> Chunk:
    """Return the rows of several chunks as one."""
    if len(chunks) == 1:
        return chunks[0]
    features = {layer: torch.cat([c.features[layer] for c in chunks]) for layer in chunks[0].features}
    parts: dict[str, Any] = {name: torch.cat([c.fields()[name] for c in chunks]) for name in chunks[0].fields()}
    return replace(chunks[0], features=features, **parts)


@dataclass
class Labeler:
    """Turns labels into targets, folds and weights: what has to pass in order."""

    task: str
    folds: StreamFolds
    codes: ClassCodes

    def rows(self, batch: Batch, features: dict[str, Tensor], tokens: Tensor | None, per_token: bool) -> Chunk:
        """Return the rows of a batch; `tokens` (n, T) are those that the features hold, for token-level labels."""
        if self.task == "classification" and not per_token:
            check_classes(batch.labels)
        target, weight = self._target(batch.labels), batch.weight
        codes = target if self.task == "classification" and not per_token else None
        row = None
        if per_token:
            features, target, row = _token_rows(features, target, tokens, self._counts(batch.labels))
        for name, rows in features.items():
            _check.same_length(len(rows), len(target), f"output of layer {name}", "labels")
        fold, group = self.folds.assign(batch.labels, codes, batch.groups)
        example = torch.arange(self.folds.examples - len(fold), self.folds.examples)
        if row is not None:
            fold, example = fold[row], example[row]
            group, weight = (None if a is None else a[row] for a in (group, weight))
        return Chunk(features, target, fold, example, group, weight)

    def _counts(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return torch.isfinite(labels if labels.ndim == 2 else labels[..., 0])
        return labels != IGNORED

    def _target(self, labels: Tensor) -> Tensor:
        if self.task == "classification":
            keep = labels != IGNORED if labels.ndim > 1 else torch.ones_like(labels, dtype=torch.bool)
            codes = torch.zeros(labels.shape, dtype=torch.int64)
            codes[keep] = self.codes.encode(labels[keep])
            return codes
        return labels.double()


def _token_rows(
    features: dict[str, Tensor], target: Tensor, tokens: Tensor | None, counts: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return features, targets and the number of the example of every token that counts."""
    mask = torch.ones_like(counts) if tokens is None else tokens.cpu()
    if mask.shape != counts.shape:
        raise ValueError(
            f"`pool`='token' needs a label for every token, shape {tuple(mask.shape)}, got {tuple(counts.shape)}."
        )
    labelled = counts[mask]
    kept = {name: rows[labelled.to(rows.device)] for name, rows in features.items()}
    row = torch.arange(len(mask))[:, None].expand(mask.shape)[mask & counts]
    return kept, target[mask & counts], row


class Features:
    """Runs a frozen model over batches and pools what its layers put out."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], pool: Pool, reader: Reader) -> None:
        self.model, self.layers, self.pool, self.reader = model, layers, pool, reader
        self.caught: dict[str, Tensor] = {}
        self.mask: Tensor | None = None

    def hook(self, name: str) -> frozen.Hook:
        """Return the hook of one layer."""

        def catch(module: nn.Module, inputs: Any, output: Any) -> None:
            if name in self.caught:
                raise ValueError(f"layer {name!r} runs more than once in a forward. Probe the module around it.")
            hidden = tensor_of(output, name)
            mask = None if self.mask is None else self.mask.to(hidden.device)
            self.caught[name] = pooled(hidden, mask, self.pool, name)

        return catch

    def of(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the rows of every layer, and the mask."""
        self.caught, self.mask = {}, self.reader.mask_of(batch.inputs)
        frozen.call(self.model, batch.inputs)
        missing = [name for name in self.layers if name not in self.caught]
        if missing:
            raise ValueError(f"`layers`: {missing} do not run in the model's forward. Leave them out.")
        return {name: self.caught[name] for name in self.layers}, self.mask


Extract = Callable[[Batch], tuple[dict[str, Tensor], "Tensor | None"]]


class Gatherer:
    """Collects rows until a chunk is full. Only a batch that came through whole is kept."""

    def __init__(self, extract: Extract, reader: Reader, labeler: Labeler, per_token: bool, chunk_rows: int | None):
        self.extract, self.reader, self.labeler, self.per_token = extract, reader, labeler, per_token
        self.chunk_rows = chunk_rows
        self.pending: list[Chunk] = []
        self.batches = 0
        self.dtypes: dict[str, torch.dtype] = {}
        self.vector_target = True
        self.record = False  # whether a checkpoint is to know the inputs
        self.seen = ""  # a digest of them

    def push(self, item: Any) -> Chunk | None:
        """Take one batch, and return a chunk if that filled it."""
        batch = self.reader.read(item, self.labeler.folds.examples)
        features, mask = self.extract(batch)
        self.pending.append(self.labeler.rows(batch, features, mask, self.per_token))
        self.batches += 1
        self.seen = self._seen(self.seen, batch)
        if not self.dtypes:
            self.dtypes = {layer: rows.dtype for layer, rows in features.items()}
            self.vector_target = batch.labels.ndim == 1 + self.per_token
        if self.chunk_rows is None:
            self.chunk_rows = rows_of_a_chunk(features)
        return self.flush() if sum(len(c.fold) for c in self.pending) >= self.chunk_rows else None

    def flush(self) -> Chunk | None:
        """Return the rows that wait, if there are any."""
        waiting, self.pending = [c for c in self.pending if len(c.fold)], []
        return joined(waiting) if waiting else None

    def skip(self, items: Iterator[Any], labeler: Labeler) -> None:
        """Pass over the batches that a checkpoint has seen, and make sure they are the same."""
        seen = ""
        for _ in range(self.batches):
            item = next(items, None)
            if item is None:
                break
            batch = self.reader.read(item, labeler.folds.examples)
            labeler.folds.assign(batch.labels, None, batch.groups)
            seen = self._seen(seen, batch)
        if (labeler.folds.digest, seen) != (self.labeler.folds.digest, self.seen):
            raise ValueError(
                "`checkpoint`: the batches differ from those it was written for. Give the same batches in the same "
                "order (a shuffled loader with the same seed), or delete the file."
            )

    def _seen(self, before: str, batch: Batch) -> str:
        return content.chained(before, batch.inputs, batch.weight) if self.record else ""


def rows_of_a_chunk(features: dict[str, Tensor]) -> int:
    """Return how many rows of all layers fit `PENDING_BYTES`; from 256 to 65,536."""
    row = sum(f.shape[1] * f.element_size() for f in features.values())
    return int(min(max(PENDING_BYTES // max(row, 1), 256), 65_536))
