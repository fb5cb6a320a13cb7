"""One probing from start to end: gather moments, choose strengths, read again if predictions are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge import _files
from torchridge._ranks import Ranks
from torchridge.exceptions import MissingClassWarning, about, install, warn
from torchridge.probing import over_ranks
from torchridge.probing.features import checkpoint
from torchridge.probing.features.batches import Reader, as_tensor, check_batches
from torchridge.probing.features.chunks import Chunk, Extract, Gatherer, Labeler
from torchridge.probing.features.folding import ClassCodes, StreamFolds
from torchridge.probing.features.kept import Kept
from torchridge.probing.features.table import LayerTable, check_memory, folds_of, shuffle, split
from torchridge.probing.layer_probe import Probe
from torchridge.probing.readouts.heldout import HeldOut
from torchridge.probing.readouts.linear import Fitted, Parts
from torchridge.probing.readouts.table import READOUTS, Source
from torchridge.probing.report import ProbeReport
from torchridge.probing.settings import Settings
from torchridge.solvers.device import sent

_log = logging.getLogger(__name__)


@dataclass
class Session:
    """A source of rows and what is asked of them.

    Attributes:
        settings: the options.
        batches: to be gone over once or twice.
        reader: of the batches.
        extract: from a batch to the rows of every layer.
        lend: context that holds while a pass runs.
        per_token: whether every token is a row.
        about: what a checkpoint must agree with.
    """

    settings: Settings
    batches: Iterable[Any]
    reader: Reader
    extract: Extract
    lend: Callable[[], AbstractContextManager[None]]
    per_token: bool
    about: dict[str, Any]
    kept: Kept | None = field(default=None, init=False)
    _folds: int = field(default=0, init=False)
    _width_checked: int = field(default=0, init=False)
    _ranks: Ranks | None = field(default=None, init=False)

    def run(self) -> ProbeReport:
        """Return the report."""
        settings, self.kept = self.settings, None
        self._check_source()
        again = settings.needs_predictions and settings.where_kept is None
        if again and isinstance(self.batches, Iterator):
            raise ValueError(
                f"{sorted(settings.named_metrics) or 'bootstrap'} need a second pass, but `batches` can be gone over "
                f"only once. Pass a list or a DataLoader, or keep the features: keep='memory'."
            )
        self._ranks = None if settings.process_group is None else Ranks(settings.process_group)
        if settings.where_kept is not None:
            where = settings.where_kept
            where = where if self._ranks is None else over_ranks.folder(where, self._ranks)
            self.kept = Kept(where, settings.keep_dtype, settings.keep_bytes)
        gatherer, table = self._gather_all()
        probes, heldout = self._fit(gatherer, table)
        if settings.needs_predictions and self._ranks is not None:
            look = partial(self._look_again, gatherer, heldout)
            over_ranks.pool_scores(self._ranks, look, gatherer, heldout)
        elif settings.needs_predictions:
            self._look_again(gatherer, heldout)
        done = tuple(self._scored(p, heldout, gatherer) for p in probes)
        source = "" if not settings.needs_predictions else "a second pass" if again else "kept features"
        rows = sum(b.rows for b in next(iter(table.blocks.values())).values())
        sizes = {layer: next(iter(b.values())).gram.shape[0] for layer, b in table.blocks.items()}
        memory = table.bytes_needed(sizes, gatherer.labeler.folds.k, table.width)
        return ProbeReport(done, settings.task, rows, self._folds, 1 + again, source, memory)

    def _check_source(self) -> None:
        check_batches(self.batches)
        if self.settings.checkpoint is not None:
            _files.check_place(self.settings.checkpoint, "checkpoint")

    def _gatherer(self) -> Gatherer:
        settings = self.settings
        classes = None if settings.classes is None else as_tensor(settings.classes, "classes")
        folds = StreamFolds(settings.cv, by_label=self._ranks is not None)
        labeler = Labeler(settings.task, folds, ClassCodes(classes))
        return Gatherer(self.extract, self.reader, labeler, self.per_token, settings.chunk_rows)

    def _gather_all(self) -> tuple[Gatherer, LayerTable]:
        if self._ranks is not None:
            return over_ranks.gathered(self._ranks, self.settings, self._gather)
        gatherer, table = self._gather()
        if not table.blocks:
            raise ValueError("`batches` is empty; expected at least one batch.")
        return gatherer, table

    def _gather(self) -> tuple[Gatherer, LayerTable]:
        settings, gatherer, file = self.settings, self._gatherer(), self.settings.checkpoint
        if self._ranks is not None:
            over_ranks.refuse(settings)
            file = None if file is None else over_ranks.checkpoint_file(file, self._ranks)
        device = None if settings.moments_device is None else torch.device(settings.moments_device)
        table = LayerTable(settings.plan, device)
        gatherer.record = file is not None
        with self.lend():
            items = iter(self._progress())
            if file is not None and Path(file).exists():
                checkpoint.resume(file, gatherer, table, self.about)
                gatherer.skip(items, self._gatherer().labeler)
            for item in items:
                chunk = gatherer.push(item)
                self._check_memory(gatherer, table, chunk)
                if chunk is not None:
                    self._add(chunk, gatherer, table)
                if file is not None and gatherer.batches % settings.checkpoint_every == 0:
                    checkpoint.write(file, gatherer, table, self.about)
            last = gatherer.flush()
            if last is not None:
                self._add(last, gatherer, table)
        return gatherer, table

    def _progress(self) -> Iterable[Any]:
        if not self.settings.progress:
            return self.batches
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError(f"`progress` needs tqdm. {install('tqdm', 'probe')}") from None
        bar: Iterable[Any] = tqdm(self.batches, desc="probing")
        return bar

    def _check_memory(self, gatherer: Gatherer, table: LayerTable, chunk: Chunk | None) -> None:
        """Estimate before anything is taken: at the first batch, and whenever classes are added."""
        first = chunk or gatherer.pending[0]
        width = len(gatherer.labeler.codes) if self.settings.classification else _columns(first.target)
        if width <= self._width_checked:
            return
        self._width_checked = width
        sizes = {layer: rows.shape[1] for layer, rows in first.features.items()}
        needed = table.bytes_needed(sizes, gatherer.labeler.folds.k, width)
        device = table.device or next(iter(first.features.values())).device
        _log.info("moments of %d layers: %.1f MiB on %s", len(sizes), needed / 2**20, device)
        if self.settings.max_memory is not None or not table.blocks:
            check_memory(needed, self.settings.max_memory, device)

    def _add(self, chunk: Chunk, gatherer: Gatherer, table: LayerTable) -> None:
        codes = gatherer.labeler.codes
        width = len(codes) if self.settings.classification else _columns(chunk.target)
        chunk = chunk if self.kept is None else self.kept.add(chunk)
        table.update(replace(chunk, weight=self._training_weight(chunk, codes)), width)

    def _training_weight(self, chunk: Chunk, codes: ClassCodes) -> Tensor | None:
        given = self.settings.class_weight
        if given is None or isinstance(given, str):
            return chunk.weight
        factor = torch.tensor([float(given.get(c, 1.0)) for c in codes.codes], dtype=torch.float64)[chunk.target]
        return factor if chunk.weight is None else chunk.weight * factor

    def _fit(self, gatherer: Gatherer, table: LayerTable) -> tuple[list[Probe], dict[tuple[str, str, bool], HeldOut]]:
        settings, codes = self.settings, gatherer.labeler.codes
        order = codes.order if settings.classification else torch.arange(table.width)
        if settings.classification and len(order) < 2:
            raise ValueError(f"`labels` hold the single class {codes.classes.tolist()}; expected at least two.")
        probes, heldout, lacking = [], {}, set[int]()
        for layer, blocks_ in table.blocks.items():
            for control in (False, True)[: 1 + settings.control]:
                columns = order + table.width * control
                parts = self._parts(folds_of(blocks_, columns))
                lacking |= _without_a_class(parts) if settings.classification else set()
                for readout, fitted in self._readouts(layer, parts, gatherer, control):
                    heldout[layer, readout, control] = self._heldout(fitted, codes, control)
                    if not control:
                        probes.append(self._probe(layer, readout, fitted, gatherer))
        if lacking:
            _warn_of_missing_classes(sorted(lacking))
        return probes, heldout

    def _parts(self, folds: dict[int, dict[int, Any]]) -> Parts:
        if len(folds) < 2:
            raise ValueError(f"`cv`: the rows fill {len(folds)} fold; expected at least two. Give more rows or groups.")
        self._folds = len(folds)
        pairs = [split(folds, k) for k in folds]
        held = [h for _, h in pairs if h is not None]
        return Parts([t for t, _ in pairs], held, split(folds, None)[0])

    def _readouts(self, layer: str, parts: Parts, gatherer: Gatherer, control: bool) -> Iterator[tuple[str, Fitted]]:
        labels, gram = " of shuffled labels" if control else "", parts.whole.gram
        empty = gram.new_empty(0, len(gram), dtype=gatherer.dtypes[layer])
        codes, ranks = gatherer.labeler.codes, self._ranks
        source = Source(layer, parts, self.settings, codes, control, self.kept, empty, ranks)
        for readout in sorted(self.settings.readouts, key=lambda name: READOUTS[name].features):
            with about(f"layer {layer!r}, readout {readout!r}{labels}"):
                fitted = READOUTS[readout].fit(source)
            yield readout, fitted

    def _heldout(self, fitted: Fitted, codes: ClassCodes, control: bool) -> HeldOut:
        metrics = self.settings.named_metrics
        metrics = {n: m for n, m in metrics.items() if m.own is not None} if control else metrics
        order = codes.order if self.settings.classification else None
        return HeldOut(fitted, order, metrics, units=self.settings.bootstrap > 0 and not control)

    def _chunks_again(self) -> Iterator[Chunk]:
        if self.kept is not None:
            yield from self.kept
            return
        gatherer = self._gatherer()
        with self.lend():
            for item in self._progress():
                chunk = gatherer.push(item)
                if chunk is not None:
                    yield chunk
            last = gatherer.flush()
            if last is not None:
                yield last
        self._second_digest = gatherer.labeler.folds.digest

    def _look_again(self, gatherer: Gatherer, heldout: dict[tuple[str, str, bool], HeldOut]) -> None:
        self._second_digest = gatherer.labeler.folds.digest
        for i, chunk in enumerate(self._chunks_again()):
            order = shuffle(len(chunk.fold), self.settings.seed, i) if self.settings.control else None
            unit = chunk.example if chunk.group is None else chunk.group
            for (layer, _, control), held in heldout.items():
                target = chunk.target[order] if control and order is not None else chunk.target
                held.update(chunk.features[layer], target, chunk.fold, unit, chunk.weight)
        if self._second_digest != gatherer.labeler.folds.digest:
            raise ValueError(
                "`batches` gave other labels, or another order, in the second pass, so that folds no longer hold. Use "
                "a loader without shuffle, or keep the features: keep='memory'."
            )

    def _probe(self, layer: str, readout: str, fitted: Fitted, gatherer: Gatherer) -> Probe:
        classes = gatherer.labeler.codes.classes if self.settings.classification else None
        return Probe(
            layer=layer,
            readout=readout,
            weight=fitted.weight,
            bias=fitted.bias,
            strength=fitted.strength,
            strengths=fitted.strengths,
            criterion=fitted.criterion,
            strength_scores=fitted.curve,
            fold_scores=fitted.scores,
            classes=None if classes is None else sent(classes, fitted.weight.device),
            dtype=gatherer.dtypes[layer],
            vector_target=gatherer.vector_target,
        )

    def _scored(self, probe: Probe, heldout: dict[tuple[str, str, bool], HeldOut], gatherer: Gatherer) -> Probe:
        settings, held = self.settings, heldout[probe.layer, probe.readout, False]
        classes = None if probe.classes is None else probe.classes.cpu()  # held-out predictions lie on the host
        own = {name: sent(values, probe.weight.device) for name, values in held.scores(classes).items()}
        scores = {**probe.fold_scores, **own}
        control = heldout.get((probe.layer, probe.readout, True))
        chance = {} if control is None else {**control.fitted.scores, **control.scores(classes)}
        return replace(
            probe,
            fold_scores=scores,
            control={name: float(values.mean()) for name, values in chance.items()},
            interval=held.interval(settings.bootstrap, settings.seed) if settings.bootstrap else None,
        )


def _without_a_class(parts: Parts) -> set[int]:
    """Return the folds that are fitted without one of the classes."""
    return {k for k, block in enumerate(parts.train) if bool((block.mean_y <= 0).any())}


def _warn_of_missing_classes(folds: list[int]) -> None:
    warn(
        f"folds {folds} are fitted without one of the classes, which they never predict. Lower `cv`, or give every "
        f"class more rows or groups.",
        MissingClassWarning,
    )


def _columns(target: Tensor) -> int:
    return 1 if target.ndim == 1 else target.shape[1]
