"""`probe_layers`: every layer of a frozen model in one forward pass. `LinearProbe`: features one already has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchridge._files import content
from torchridge._ranks import Group
from torchridge.probing.features.batches import Column, Reader, check_batches
from torchridge.probing.features.chunks import Features
from torchridge.probing.features.frozen import frozen, hooked
from torchridge.probing.features.layers import find_layers
from torchridge.probing.features.pooling import Pool, check_pool
from torchridge.probing.report import ProbeReport
from torchridge.probing.session import Session
from torchridge.probing.settings import Metrics, Settings, Task
from torchridge.probing.tasks import task_of_batches


def probe_layers(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Sequence[str] = "*",
    pool: Pool = "mean",
    *,
    target: str | int | Callable[[Any], Any] | None = None,
    task: Task = "auto",
    readout: str | Sequence[str] = "ridge",
    cv: int | Tensor = 5,
    groups: Column = None,
    class_weight: str | Mapping[int, float] | None = None,
    sample_weight: Column = None,
    metrics: Metrics = (),
    mask: str | int | Callable[[Any], Tensor] | None = None,
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
) -> ProbeReport:
    """Fit a linear readout to every layer of a frozen model, all from one forward pass over the data.

    Each batch runs through the model once, in eval mode and without gradients. Hooks pool the output of every layer
    into rows x, whose moments are summed per layer and fold in float64; no features are stored. The readouts are then
    solved in closed form, their strength chosen on held-out folds:

        ridge       Σ s ‖y − Wx − b‖² + α ‖W‖²; classes are targets −1 and 1 (scikit-learn's RidgeClassifier).
                    α by held-out squared error, from the moments alone.
        lda         shared covariance (1 − γ) Σ + γ (tr Σ / d) I, classes weighted as the rows are.
                    γ by the held-out log-likelihood of features and classes, from the moments alone.
        logistic    C Σ s CE(y, Wx + b) + ½ ‖W‖², from kept features. C by held-out log-loss.

    Intercepts are never penalized. Squared error and R² come from the one pass. Accuracy, other metrics and the
    bootstrap need predictions: from kept features, or else from a second pass; the report says which. The model comes
    back as it was found, also after an exception: modes, hooks, buffers, and the state of the random generators.

    Args:
        model: any module.
        batches: an iterable of (inputs, labels), (inputs, labels, groups) or mappings with the key "labels". Inputs
            are a tensor, a tuple of arguments, or a mapping of named ones.
        layers: a pattern or several; `*` within one part of a dotted name, `**` across parts.
        pool: "mean", "max", "cls", "last" under the mask; "token" (every token a row, labels (n, T), −100 left out;
            tokens of one example stay in one fold); or a callable of (output, mask) that returns (n, d).
        target: where the labels are: a key of the batch, a column of the labels, or a callable of the labels.
        task: "regression", "classification", or "auto": integer and boolean labels are classes.
        readout: "ridge", "lda", "logistic", or several.
        cv: number of folds K, or (n,) fold ids in the order of the stream. Since the number of rows is not known
            beforehand, row i goes to fold i mod K; of classes, row i of each class, the classes starting apart.
        groups: a key, or (n,) labels in the order of the stream. Rows of one group are never on both sides of a fold.
        class_weight: a mapping of class to weight, or "balanced".
        sample_weight: a key, or (n,) weights in the order of the stream.
        metrics: what needs predictions: "accuracy", callables, or several by name, as for `LinearProbe`.
        mask: the attention mask, (n, T): a key of the inputs, a position in their tuple, or a callable of the inputs.
            "attention_mask" and "src_key_padding_mask" (true at padding) are found by themselves.
        classes: as for `LinearProbe`.
        alphas: as for `LinearProbe`.
        shrinkages: as for `LinearProbe`.
        Cs: as for `LinearProbe`.
        standardize: as for `LinearProbe`.
        control: as for `LinearProbe`.
        bootstrap: as for `LinearProbe`.
        keep: as for `LinearProbe`.
        keep_dtype: as for `LinearProbe`.
        keep_bytes: as for `LinearProbe`.
        moments_device: as for `LinearProbe`.
        max_memory: as for `LinearProbe`.
        chunk_rows: as for `LinearProbe`.
        progress: as for `LinearProbe`.
        seed: as for `LinearProbe`.
        checkpoint: a file to go on from if it exists. Resumed, the report is the same, bit for bit. Over ranks each has
            a file of its own next to that name, for as many ranks to go on from.
        checkpoint_every: batches between two writes of it.
        process_group: as for `LinearProbe`.

    Returns:
        `ProbeReport`, one probe for each layer and readout.

    Raises:
        ValueError: on patterns that match nothing, masks, labels or groups that do not fit, NaN or infinity, moments
            that do not fit in memory, and a second pass whose order differs from the first.
        TypeError: on batches and labels of the wrong kind.

    Cost: one forward pass; n·d² flops a layer for the moments; K + 1 eigendecompositions of (d, d) for each readout.
    Memory: 8·K·d² bytes a layer (times classes if class_weight="balanced"), whatever n.

    Example:
        >>> import torch
        >>> from torchridge.probing import probe_layers
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> X = torch.randn(200, 4)
        >>> batches = [(X[i : i + 50], X[i : i + 50, 0]) for i in range(0, 200, 50)]
        >>> probe_layers(model, batches).best.layer
        '0'
    """
    check_pool(pool)
    found = find_layers(model, layers)
    reader = Reader(target, groups, sample_weight, mask)
    check_batches(batches)
    task, batches = task_of_batches(task, batches, reader, process_group)
    settings = Settings(
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
        process_group=process_group,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    features = Features(model, found, pool, reader)

    @contextmanager
    def lend() -> Iterator[None]:
        with frozen(model), hooked(found, features.hook):
            yield

    names = ("task", "readouts", "seed", "standardize")
    about = {name: _plain(getattr(settings, name)) for name in names}
    about |= {"layers": list(found), "pool": pool if isinstance(pool, str) else "callable", "cv": _told(settings.cv)}
    about |= {"class_weight": repr(settings.class_weight), "control": settings.control}
    about |= {} if settings.checkpoint is None else {"model": content.of_module(model)}
    return Session(settings, batches, reader, features.of, lend, pool == "token", about).run()


def _told(cv: Any) -> str:
    """Return the folds as text: their number, or a digest of the ids, which would be cut short."""
    return repr(cv) if cv is None or isinstance(cv, int) else content.chained("", cv)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
