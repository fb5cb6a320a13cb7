"""Lightning: the penalty once per optimizer step, and L2 in the module's own log."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from torchridge import _check
from torchridge.integrations._penalized import attach, missing, penalize_steps
from torchridge.training.monitor import L2Monitor
from torchridge.training.penalties.regularizers import RegularizerLike
from torchridge.training.penalties.step import StepPenalty, Unused

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["L2Callback"]


def _lightning() -> Any:
    """The name under which Lightning is in use: `lightning.pytorch`, or the older `pytorch_lightning`."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    raise missing("lightning")


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = _lightning().Callback


class L2Callback(Callback):  # type: ignore[misc]
    """Penalize each optimizer step of a LightningModule, and log L2 to the module's own loggers.

    The objective is loss + λ Σ W² over the weights that `regularize` finds, as `weight_decay = 2 * λ` in SGD and Adam:
    once per step under `accumulate_grad_batches`, unscaled under mixed precision, and after gradient clipping. It is
    not in the loss that the module logs.

    Args:
        regularizer: A number λ, or what `regularize` takes for the weights; None leaves the regularizers that the
            module carries already.
        every: Log the numbers of :class:`~torchridge.L2Monitor` at every n-th optimizer step; None for never.
        unused: As for `penalize_step`.
        **options: `bias`, `rules`, `embeddings` and `inert` of `regularize`.

    Raises:
        TypeError: If an option is none of `regularize`'s.
        ValueError: If `every` is not a positive integer; when training begins, as `regularize` and `penalize_step`,
            e.g. under DeepSpeed, whose optimizer holds none of the module's parameters.

    Cost: as `penalize_step`, and `L2Monitor` at the steps that are logged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[L2Callback(1e-4)], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        regularizer: RegularizerLike = None,
        *,
        every: int | None = 50,
        unused: Unused = "penalize",
        **options: Any,
    ) -> None:
        super().__init__()
        for name in options:
            if name not in ("bias", "rules", "embeddings", "inert"):
                raise TypeError(f"`{name}` is unknown; expected `bias`, `rules`, `embeddings` or `inert`.")
        self.every = None if every is None else _check.integer(every, "every", minimum=1)
        self._regularizer, self._unused, self._options = regularizer, unused, options
        self._hooks: list[StepPenalty] = []
        self._monitors: dict[int, L2Monitor] = {}
        self._logged: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the regularizers, before the module is wrapped."""
        attach(pl_module, self._regularizer, self._options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hang the penalty on the optimizers, whose states are loaded by now."""
        self._hooks = penalize_steps(trainer.optimizers, pl_module, self._unused)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log, if it is the turn of this step."""
        if self.every is None or trainer.global_step % self.every:
            return
        if id(optimizer) not in self._monitors:
            self._monitors[id(optimizer)] = L2Monitor(self, pl_module, optimizer)
        self._monitors[id(optimizer)].step(step=trainer.global_step)
        # Not by `pl_module.log`, which repeats a number at every step until the next one.
        for logger in pl_module.loggers:
            logger.log_metrics(self._logged, step=trainer.global_step)
        self._logged = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Take a number of the monitor's for the module's log."""
        self._logged[tag] = scalar_value

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the penalty off the optimizers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._monitors = [], {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the penalty off the optimizers."""
        self.on_train_end(trainer, pl_module)
