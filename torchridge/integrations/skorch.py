"""skorch: the penalty once per optimizer step of a `NeuralNet`, and its value in the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from torchridge.integrations._penalized import attach, missing, penalize_steps
from torchridge.training.penalties.attach import penalty
from torchridge.training.penalties.regularizers import RegularizerLike
from torchridge.training.penalties.step import StepPenalty, Unused

if TYPE_CHECKING:
    from skorch import NeuralNet

if TYPE_CHECKING:
    from skorch.callbacks import Callback
else:
    try:
        from skorch.callbacks import Callback
    except ModuleNotFoundError as error:
        raise missing("skorch") from error

__all__ = ["L2Regularization"]


class L2Regularization(Callback):  # type: ignore[misc]
    """Penalize each optimizer step of a skorch net, and record the penalty of each epoch as `l2_penalty`.

    The objective is loss + λ Σ W² over the weights that `regularize` finds, as `weight_decay = 2 * λ` in SGD and Adam.
    It is not in `train_loss`. As every callback's, its parameters can be searched: `callbacks__l2__regularizer`.

    Args:
        regularizer: A number λ, or what `regularize` takes for the weights; None leaves the regularizers that the
            module carries already.
        bias: As for `regularize`.
        rules: As for `regularize`.
        embeddings: As for `regularize`.
        inert: As for `regularize`.
        unused: As for `penalize_step`.

    Raises:
        ValueError: When training begins, as `regularize` and `penalize_step`.

    Cost: as `penalize_step`, and one penalty an epoch.

    Example:
        >>> from skorch import NeuralNetRegressor
        >>> net = NeuralNetRegressor(nn.Linear(2, 1), callbacks=[("l2", L2Regularization(1e-4))])
    """

    def __init__(
        self,
        regularizer: RegularizerLike = None,
        bias: RegularizerLike = None,
        rules: Any = (),
        embeddings: bool = True,
        inert: Any = "warn",
        unused: Unused = "penalize",
    ) -> None:
        self.regularizer = regularizer
        self.bias = bias
        self.rules = rules
        self.embeddings = embeddings
        self.inert = inert
        self.unused = unused

    def on_train_begin(self, net: NeuralNet, X: object = None, y: object = None, **kwargs: object) -> None:
        """Attach the regularizers and hang the penalty on the optimizers; again after a warm start."""
        options = {"bias": self.bias, "rules": self.rules, "embeddings": self.embeddings, "inert": self.inert}
        model = _module(net)
        attach(model, self.regularizer, options)
        optimizers = [getattr(net, f"{name}_") for name in net._optimizers]
        self.hooks_: list[StepPenalty] = penalize_steps(optimizers, model, self.unused)

    def on_epoch_end(
        self, net: NeuralNet, dataset_train: object = None, dataset_valid: object = None, **kwargs: object
    ) -> None:
        """Record the penalty of the weights."""
        net.history.record("l2_penalty", float(penalty(_module(net), activity=False)))

    def on_train_end(self, net: NeuralNet, X: object = None, y: object = None, **kwargs: object) -> None:
        """Take the penalty off the optimizers."""
        for hook in self.hooks_:
            hook.remove()
        self.hooks_ = []


def _module(net: NeuralNet) -> nn.Module:
    """The net's module, or all of several as one, without wrapping what is a single one."""
    modules = [getattr(net, f"{name}_") for name in net._modules]
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)
