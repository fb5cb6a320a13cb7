"""A probe that runs alongside training: moments fade with time, and are read out every k steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.types import Labels
from torchridge.probing.features.batches import as_tensor
from torchridge.probing.labelled import Labelled
from torchridge.probing.layer_probe import Probe
from torchridge.probing.readouts.table import names
from torchridge.probing.settings import Task
from torchridge.solvers.moments import targets

if TYPE_CHECKING:
    from torchridge.tensorboard import ScalarWriter


class OnlineProbe:
    """Follow how well features predict labels while the network that makes them changes.

    Before step k adds its rows, all that is held is multiplied by `decay`, so a row of age a weighs decay^a. The
    readout is that of the faded rows; at every readout the next batch is predicted first and learned afterwards, so
    `score` is one on unseen rows.

    Args:
        task: "classification", "regression", or "auto": integer and boolean labels are classes.
        readout: "ridge" or "lda".
        alpha: α of ridge for the faded rows, 1 by default.
        shrinkage: of LDA, between 0 and 1, 1e-3 by default.
        decay: between 0 (the last batch alone) and 1 (nothing fades); 0.99 forgets half in 69 steps.
        every: steps from one readout to the next.
        standardize: as in `LinearProbe`.
        writer: anything with `add_scalar`, for the score.
        tag: under which it is written.

    Raises:
        ValueError: on an unknown task or readout, a strength out of range or of another readout, a decay out of range,
            or steps of less than 1.

    Cost: d² + d·t flops a row; d³ at a readout, every `every` steps.

    Example:
        >>> import torch
        >>> from torchridge.probing import OnlineProbe
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> online = OnlineProbe("regression", decay=0.9, alpha=1e-9)
        >>> for step in range(3):
        ...     _ = online.update(X, 2 * X[:, 0] + step // 2)
        >>> round(online.probe.bias.item(), 2)
        0.37
    """

    def __init__(
        self,
        task: Task = "auto",
        readout: str = "ridge",
        *,
        alpha: float | None = None,
        shrinkage: float | None = None,
        decay: float = 0.99,
        every: int = 1,
        standardize: bool = False,
        writer: ScalarWriter | None = None,
        tag: str = "probe",
    ) -> None:
        self._held = Labelled(task)
        _check.option(readout, "readout", names(task, at=True))
        self.readout, self.standardize, self.writer, self.tag = readout, standardize, writer, tag
        self.strength = _strength(readout, alpha, shrinkage)
        self.decay = _check.number(decay, "decay")
        if self.decay > 1:
            raise ValueError(f"`decay` should lie between 0 and 1, got {self.decay:g}.")
        self.every = _check.integer(every, "every", minimum=1)
        self.step = 0
        self.probe: Probe | None = None
        self.score: float | None = None
        self.history: list[tuple[int, float]] = []

    def update(self, features: Tensor, labels: Labels, sample_weight: Tensor | None = None) -> OnlineProbe:
        """Take the rows of one training step, (n, d) and (n,), and return self. Gradients do not flow.

        Raises:
            ValueError: on shapes that do not fit, NaN or infinity; nothing fades then.
            TypeError: on the wrong kinds.
        """
        fresh = self._held.measured(features, labels, sample_weight)
        if self.probe is not None and self.step % self.every == 0:
            self._judge(self.probe, features.detach(), as_tensor(labels, "labels"))
        held = self._held.block
        if held is not None:
            self._held.block = targets.reweighted(held, self.decay) if self.decay > 0 else None
        self._held.add(fresh)
        self.step += 1
        if self.step % self.every == 0:
            self.probe = self._read()
        return self

    def _read(self) -> Probe | None:
        enough = self._held.task == "regression" or len(self._held.codes) > 1
        return self._held.solve(self.readout, self.strength, self.standardize) if enough else self.probe

    def _judge(self, probe: Probe, features: Tensor, labels: Tensor) -> None:
        measure: Callable[[Tensor, Tensor], Tensor] = _accuracy if probe.classes is not None else _r2
        self.score = float(measure(probe.predict(features).cpu(), labels))
        self.history.append((self.step, self.score))
        if self.writer is not None:
            self.writer.add_scalar(f"{self.tag}/{self.readout}", self.score, self.step)


def _strength(readout: str, alpha: float | None, shrinkage: float | None) -> float:
    """Return the strength of the readout, or raise on one that belongs to another."""
    if readout == "ridge":
        if shrinkage is not None:
            raise ValueError("`shrinkage` belongs to readout='lda', and `readout` is 'ridge'. Pass `alpha`.")
        return 1.0 if alpha is None else _check.number(alpha, "alpha")
    if alpha is not None:
        raise ValueError("`alpha` belongs to readout='ridge', and `readout` is 'lda'. Pass `shrinkage`.")
    value = 1e-3 if shrinkage is None else _check.number(shrinkage, "shrinkage")
    if value > 1:
        raise ValueError(f"`shrinkage` should lie between 0 and 1, got {value:g}.")
    return value


def _accuracy(predicted: Tensor, labels: Tensor) -> Tensor:
    return (predicted == labels).double().mean()


def _r2(predicted: Tensor, labels: Tensor) -> Tensor:
    labels = labels.double().reshape(predicted.shape)
    spread = (labels - labels.mean(0)).square().sum()
    return 1 - (predicted - labels).square().sum() / torch.where(spread > 0, spread, torch.ones_like(spread))
