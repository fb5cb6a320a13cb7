"""`fit_head_`: a network's last layer replaced by its closed-form optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchridge._ranks import Group
from torchridge.probing.features.batches import Batch, Column, Reader, check_batches
from torchridge.probing.features.frozen import call, frozen
from torchridge.probing.layer_probe import Probe
from torchridge.probing.session import Session
from torchridge.probing.settings import Metrics, Settings, Task
from torchridge.probing.tasks import task_of_batches


def fit_head_(
    head: nn.Linear,
    batches: Iterable[Any],
    *,
    model: nn.Module | None = None,
    target: str | int | Callable[[Any], Any] | None = None,
    groups: Column = None,
    sample_weight: Column = None,
    task: Task = "auto",
    readout: str | None = None,
    cv: int | Tensor = 5,
    class_weight: str | Mapping[int, float] | None = None,
    metrics: Metrics = (),
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
) -> Probe:
    """Replace the weights of a linear layer, in place, by those of a readout of its inputs.

    The model runs over the batches once, frozen; the inputs of `head` are its features. The objective and the choice
    of its strength are those of `probe_layers`. Everything is checked and solved before a weight is touched.

    Args:
        head: the layer; `head.out_features` targets, or classes 0 … out_features − 1 in the order of its rows.
        batches: as in `probe_layers`; without `model`, pairs of features (n, d) and labels.
        model: what `head` is the last layer of.
        target: as in `probe_layers`.
        groups: as in `probe_layers`.
        sample_weight: as in `probe_layers`.
        task: as in `probe_layers`.
        readout: by default "ridge" in a regression, and "lda" in a classification, whose outputs are logits of class
            probabilities; those of "ridge" predict −1 and 1.
        cv: as in `probe_layers`: with K folds, row i goes to fold i mod K; of classes, row i of each class.
        class_weight: as in `probe_layers`.
        metrics: as in `probe_layers`.
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
        checkpoint: as in `probe_layers`.
        checkpoint_every: as in `probe_layers`.
        process_group: as for `LinearProbe`.

    Returns:
        The `Probe` that was written into the layer.

    Raises:
        ValueError: if labels do not fit `head.out_features`, or the head does not run in the model's forward.
        TypeError: if `head` is not an `nn.Linear`.

    Cost: one forward pass, and as `LinearProbe`.

    Example:
        >>> import torch
        >>> from torchridge.probing import fit_head_
        >>> head = torch.nn.Linear(2, 1)
        >>> X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]] * 5)
        >>> _ = fit_head_(head, [(X, X @ torch.tensor([2.0, -1.0]) + 3)], task="regression", alphas=[0.0])
        >>> head.weight.detach().round(decimals=4), head.bias.detach().round(decimals=4)
        (tensor([[ 2., -1.]]), tensor([3.]))
    """
    if not isinstance(head, nn.Linear):
        raise TypeError(f"`head` should be an nn.Linear, got {type(head).__name__}. Pass the layer itself: model.fc.")
    if head.bias is None:
        raise ValueError("`head` has no bias, and readouts have an intercept. Give it one: nn.Linear(..., bias=True).")
    if readout is not None and not isinstance(readout, str):
        raise ValueError(f"`readout`: a layer holds one readout, got {readout!r}.")
    reader = Reader(target, groups, sample_weight, None)
    check_batches(batches)
    task, batches = task_of_batches(task, batches, reader, process_group)
    classes = torch.arange(max(head.out_features, 2)) if task == "classification" else None
    settings = Settings(
        task=task,
        readout=readout or ("lda" if task == "classification" else "ridge"),
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
    features = HeadInputs(model, head)
    probe = Session(settings, batches, reader, features.of, features.lend, False, {}).run().best
    weight, bias = _rows_for(probe, head)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return probe


class HeadInputs:
    """The inputs of a layer, caught as the model runs; without a model, the inputs of the batches."""

    def __init__(self, model: nn.Module | None, head: nn.Linear) -> None:
        self.model, self.head = model, head
        self.caught: Tensor | None = None

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Hold the model frozen and the hook on the head."""

        def catch(module: nn.Module, inputs: Any) -> None:
            self.caught = inputs[0].detach()

        handle = None
        with nullcontext() if self.model is None else frozen(self.model):
            try:
                handle = self.head.register_forward_pre_hook(catch)
                yield
            finally:
                if handle is not None:
                    handle.remove()

    def of(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the rows of one batch."""
        self.caught = batch.inputs.detach() if self.model is None else None
        if self.model is not None:
            call(self.model, batch.inputs)
        rows = self.caught
        if rows is None:
            raise ValueError("`head` does not run in the model's forward. Pass a layer of this `model`.")
        if rows.ndim != 2 or rows.shape[1] != self.head.in_features:
            raise ValueError(f"`head` takes rows (n, {self.head.in_features}), got inputs of {tuple(rows.shape)}.")
        return {"head": rows.clone().to(torch.float64 if rows.dtype is torch.float64 else torch.float32)}, None


def _rows_for(probe: Probe, head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weights and biases for every output of the head."""
    weight, bias = probe.weight, probe.bias
    if probe.classes is not None:
        wanted = list(range(max(head.out_features, 2)))
        if probe.classes.tolist() != wanted:
            extra = [c for c in probe.classes.tolist() if c not in wanted]
            raise ValueError(f"`head` has {head.out_features} outputs, but `labels` hold {extra}. Number them from 0.")
        if head.out_features == 2:  # the one discriminant d stands for the logits −d/2 and d/2
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    if weight.shape[0] != head.out_features:
        raise ValueError(f"`head` has {head.out_features} outputs, but `labels` give {weight.shape[0]} targets.")
    return weight, bias
