"""`probe_layers`: every layer of a frozen model in one forward pass. `LinearProbe`: features one already has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from torchridge import _check
from torchridge._files import content
from torchridge.probing.features.batches import Reader, as_tensor, numbered
from torchridge.probing.features.chunks import Features
from torchridge.probing.features.frozen import frozen, hooked
from torchridge.probing.features.layers import find_layers
from torchridge.probing.features.pooling import Pool, check_pool
from torchridge.probing.report import ProbeReport
from torchridge.probing.session import Session
from torchridge.probing.settings import Settings


def probe_layers(
    model: nn.Module,
    batches: Iterable[Any],
    layers: str | Sequence[str] = "*",
    pool: Pool = "mean",
    *,
    target: Any = None,
    task: str = "regression",
    readout: str | Sequence[str] = "ridge",
    cv: int | Tensor = 5,
    groups: Any = None,
    class_weight: str | Mapping[int, float] | None = None,
    sample_weight: Any = None,
    metrics: Any = (),
    mask: Any = None,
    **options: Any,
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
        task: "regression" or "classification".
        readout: "ridge", "lda", "logistic", or several.
        cv: number of folds, or (n,) fold ids in the order of the stream, as for `LinearProbe`.
        groups: a key, or (n,) labels in the order of the stream. Rows of one group are never on both sides of a fold.
        class_weight: a mapping of class to weight, or "balanced".
        sample_weight: a key, or (n,) weights in the order of the stream.
        metrics: what needs predictions: "accuracy", callables, or several by name, as for `LinearProbe`.
        mask: the attention mask, (n, T): a key of the inputs, a position in their tuple, or a callable of the inputs.
            "attention_mask" and "src_key_padding_mask" (true at padding) are found by themselves.
        **options: as for `LinearProbe`; and `checkpoint`, a file to go on from if it is there, written every
            `checkpoint_every` batches (100). Resumed, the report is the same, bit for bit. Over ranks each has a file
            of its own beside that name, for as many ranks to go on from.

    Returns:
        `ProbeReport`, one probe for each layer and readout.

    Raises:
        ValueError: on patterns that match nothing, masks, labels or groups that do not fit, NaN or infinity, moments
            that do not fit in memory, and a second pass whose order differs from the first.
        TypeError: on batches and labels of the wrong kind.

    Cost: one forward pass; n·d² flops a layer for the moments; K + 1 eigendecompositions of (d, d) for each readout.
    Memory: 8·K·d² bytes a layer (times classes where class_weight="balanced"), whatever n.

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
    chosen = {"task": task, "readout": readout, "cv": cv, "class_weight": class_weight, "metrics": metrics}
    settings = Settings(**chosen, **known_options(options))
    reader = Reader(target, groups, sample_weight, mask)
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


class LinearProbe:
    """Fit the readouts of `probe_layers` to features one already has.

    Args:
        task: "regression" or "classification".
        readout: "ridge", "lda", "logistic", or several.

    Keyword Args:
        cv: number of folds, or (n,) fold ids in the order of the rows. Row i of the class that is met c-th goes to
            fold (i + c) mod K, in a regression row i to i mod K; a group goes whole to the lightest fold.
        class_weight: a mapping of class to weight, or "balanced", n / (k n_c) by the rows of each training part, for
            which moments are kept by class.
        classes: the classes, where they are known beforehand.
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

    def __init__(self, task: str = "regression", readout: str | Sequence[str] = "ridge", **options: Any) -> None:
        options = known_options({"task": task, "readout": readout, **options})
        names = (readout,) if isinstance(readout, str) else readout
        if "logistic" in names and options.get("keep") is None:
            # The features are in memory anyway: kept as they are, they are views.
            options |= {"keep": "memory", "keep_bytes": options.get("keep_bytes") or 2**62}
            options.setdefault("keep_dtype", None)
        self.settings = Settings(**options)

    def fit(
        self,
        features: Tensor | Mapping[str, Tensor],
        labels: Any,
        *,
        groups: Any = None,
        sample_weight: Any = None,
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
            TypeError: on features that are no tensors.
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
        session = Session(self.settings, batches, reader, lambda b: (b.inputs, None), nullcontext, False, {})
        return session.run()


def _floating(rows: Tensor) -> Tensor:
    return rows.detach() if rows.is_floating_point() else rows.double()


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, or raise on a name that `Settings` does not have."""
    unknown = [name for name in options if name not in Settings.__dataclass_fields__]
    if unknown:
        raise TypeError(f"unknown options {unknown}; expected some of {list(Settings.__dataclass_fields__)}.")
    return options


def _told(cv: Any) -> str:
    """Return the folds as text: their number, or a digest of the ids, which would be cut short."""
    return repr(cv) if cv is None or isinstance(cv, int) else content.chained("", cv)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
