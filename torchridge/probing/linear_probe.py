"""`LinearProbe`: the readouts of features that one already has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Group
from torchridge.linear.types import Groups, Labels
from torchridge.probing.features.batches import Reader, as_tensor, numbered
from torchridge.probing.report import ProbeReport
from torchridge.probing.session import Session
from torchridge.probing.settings import Metrics, Settings, Task
from torchridge.probing.tasks import task_of
from torchridge.solvers.moments.folds import fold_ids
from torchridge.solvers.moments.stratified import stratified_folds


class LinearProbe:
    """Fit the readouts of `probe_layers` to features one already has.

    Args:
        task: "regression", "classification", or "auto": integer and boolean labels are classes.
        readout: "ridge", "lda", "logistic", or several.

    Keyword Args:
        cv: number of folds K, or (n,) fold ids in the order of the rows. K folds are those of scikit-learn: contiguous
            runs of rows in a regression, stratified by class in a classification. A group goes whole to the lightest
            fold. Over ranks row i of a rank, and of a class, goes to fold i mod K.
        class_weight: a mapping of class to weight, or "balanced", n / (k n_c) by the rows of each training part, for
            which moments are kept by class.
        classes: the classes, if they are known beforehand.
        alphas: strengths of ridge; "auto": 100 of them, from the eigenvalues.
        shrinkages: of LDA, between 0 and 1; "auto": 100 from 1e-5 to 1.
        Cs: strengths of logistic; "auto": 25 from 1e-4 to 1e4.
        standardize: penalize the weights of features in units of their standard deviation, anew in every training
            part (logistic: over all rows). Weights come back in the units of the features.
        metrics: what needs predictions: "accuracy"; a callable of (y_true, y_score), which is given the scores of
            classes; an object with `update` and `compute` (predictions first, as in torchmetrics), which is given
            probabilities (of ridge, the softmax of its scores) and the places of the labels among the sorted classes,
            fresh for every fold; a scorer of scikit-learn or its name; or several, a collection, or a mapping of names
            to them. Each is reported as it is, the mean over folds.
        control: fit shuffled labels too; their scores should be those of chance. Labels are shuffled within chunks of
            rows (`chunk_rows`), so a stream sorted by label needs shuffling first.
        bootstrap: number of draws of rows, or of groups, for a 95 % interval of accuracy or R².
        keep: "memory" or a folder: keep features for predictions and the logistic readout, for which they are kept
            in memory by default.
        keep_dtype: of the kept features, which all readouts then use; their own by default. torch.float16 takes half
            the room of float32.
        keep_bytes: the bound on what is kept; by default half of the memory, or of the disk, that is free.
        moments_device: where moments are summed; that of the features by default.
        max_memory: bytes that the moments may take; what is free by default.
        chunk_rows: rows that are gathered for one update; by default what fits 64 MiB.
        progress: show a bar; needs tqdm.
        seed: of the control task and the bootstrap.
        checkpoint: a file to go on from if it exists, bit for bit. Over ranks each has a file of its own next to it.
        checkpoint_every: batches (`batch_rows` of `fit`) between two writes of it.
        process_group: "world" or a `torch.distributed.ProcessGroup`: the rows are this rank's, perhaps none, and every
            rank gets the report of all ranks' rows. Fold ids are given for this rank's rows; a number of folds deals
            out each rank's rows by themselves, and groups by their label. Class codes, moments and accuracy are added
            up; features and predictions stay, so other metrics are refused.

    Cost: as `probe_layers`, without the model: n·d² flops for the moments, K + 1 eigendecompositions of (d, d).

    Source: Alain & Bengio 2016, https://arxiv.org/abs/1610.01644.

    Example:
        >>> import torch
        >>> from torchridge.probing import LinearProbe
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10)
        >>> y = (X[:, 0] > 1.5).long()
        >>> report = LinearProbe(task="classification", metrics="accuracy").fit(X, y)
        >>> report.best.scores["accuracy"]
        1.0
    """

    def __init__(
        self,
        task: Task = "auto",
        readout: str | Sequence[str] = "ridge",
        *,
        cv: int | Tensor = 5,
        class_weight: str | Mapping[int, float] | None = None,
        metrics: Metrics = (),
        classes: Tensor | Sequence[int] | None = None,
        alphas: Tensor | Sequence[float] | Literal["auto"] = "auto",
        shrinkages: Tensor | Sequence[float] | Literal["auto"] = "auto",
        Cs: Tensor | Sequence[float] | Literal["auto"] = "auto",
        standardize: bool = False,
        control: bool = False,
        bootstrap: int = 0,
        keep: str | Path | None = None,
        keep_dtype: torch.dtype | None = None,
        keep_bytes: int | None = None,
        moments_device: torch.device | str | None = None,
        max_memory: int | None = None,
        chunk_rows: int | None = None,
        progress: bool = False,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        process_group: Group | None = None,
    ) -> None:
        names = (readout,) if isinstance(readout, str) else readout
        if "logistic" in names and keep is None:
            # The features are in memory anyway: kept as they are, they are views.
            keep, keep_bytes = "memory", keep_bytes or 2**62
        self.settings = Settings(
            task=task,
            readout=readout,
            cv=cv,
            class_weight=class_weight,
            classes=classes,
            alphas=alphas,
            shrinkages=shrinkages,
            Cs=Cs,
            standardize=standardize,
            metrics=metrics,
            control=control,
            bootstrap=bootstrap,
            keep=keep,
            keep_dtype=keep_dtype,
            keep_bytes=keep_bytes,
            moments_device=moments_device,
            max_memory=max_memory,
            chunk_rows=chunk_rows,
            progress=progress,
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            process_group=process_group,
        )

    def fit(
        self,
        features: Tensor | Mapping[str, Tensor],
        labels: Labels,
        *,
        groups: Groups = None,
        sample_weight: Labels | None = None,
        batch_rows: int = 8192,
    ) -> ProbeReport:
        """Return the report.

        Args:
            features: (n, d), or a mapping of layer to (n, d); they may differ in d.
            labels: (n,) classes or targets, or (n, t) targets.
            groups: (n,) labels; rows of one group are never on both sides of a fold.
            sample_weight: (n,), not negative.
            batch_rows: rows that are taken at a time.

        Raises:
            ValueError: on shapes or lengths that do not fit, NaN or infinity.
            TypeError: on features that are not tensors.
        """
        tables = {"features": features} if isinstance(features, Tensor) else features
        if not isinstance(tables, Mapping) or not tables:
            raise TypeError(f"`features` should be a tensor or a mapping of tensors, got {type(features).__name__}.")
        target = as_tensor(labels, "labels")
        for name, rows in tables.items():
            _check.is_tensor(rows, f"features[{name!r}]")
            _check.is_dense_real(rows, f"features[{name!r}]")
            _check.shape(rows, [(len(target), rows.shape[-1])], f"features[{name!r}]")
        listed = None if groups is None else numbered(groups)
        reader = Reader(None, listed, sample_weight, None)
        starts = range(0, len(target), batch_rows)
        cut = [slice(i, i + batch_rows) for i in starts]
        batches = [({k: _floating(v[s]) for k, v in tables.items()}, target[s]) for s in cut]
        settings = self.settings
        if settings.task == "auto":
            settings = replace(settings, task=task_of(target, settings.process_group))
        if isinstance(settings.cv, int) and settings.process_group is None and listed is None and len(target):
            settings = replace(settings, cv=fold_ids_of(settings.cv, target, settings.classification))
        return Session(settings, batches, reader, lambda b: (b.inputs, None), nullcontext, False, {}).run()


def _floating(rows: Tensor) -> Tensor:
    return rows.detach() if rows.is_floating_point() else rows.double()


def fold_ids_of(cv: int, target: Tensor, classification: bool) -> int | Tensor:
    """Return the folds of rows whose number is known, as scikit-learn makes them; `cv` if they cannot be made."""
    if isinstance(cv, bool) or not 2 <= cv <= len(target) or (classification and target.ndim != 1):
        return cv
    if not classification:
        return fold_ids(cv, len(target))
    return stratified_folds(torch.unique(target, return_inverse=True)[1], cv)
