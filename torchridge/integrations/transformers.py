"""Hugging Face's Trainer: the penalty once per optimizer step, and weight decay on weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from torchridge import _check
from torchridge.integrations._penalized import attach, missing, penalize_steps
from torchridge.training.monitor import L2Monitor, Writer
from torchridge.training.parameters.decisions import DecayRules, decide
from torchridge.training.penalties.regularizers import RegularizerLike
from torchridge.training.penalties.step import StepPenalty, Unused

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise missing("transformers") from error

__all__ = ["L2TrainerCallback", "WeightDecayMixin", "decay_parameter_names"]


class L2TrainerCallback(TrainerCallback):  # type: ignore[misc]
    """Penalize each optimizer step of a `Trainer`.

    The objective is loss + λ Σ W² over the weights that `regularize` finds: once per step, whatever
    `gradient_accumulation_steps` is (a penalty in `compute_loss` counts once per micro-batch, divided or not by the
    version of transformers and by `num_items_in_batch`), unscaled under mixed precision, and after gradient clipping.
    It is not in the loss that the Trainer logs. With AdamW, the Trainer's default, it is still L2, on top of the
    decoupled `weight_decay` of its arguments.

    Under FSDP2 and DDP it acts as on one process. Under DeepSpeed the optimizer trains flat partitions, not the model's
    parameters, and the call is refused: use `weight_decay` with :class:`WeightDecayMixin` there.

    Args:
        regularizer: A number λ, or what `regularize` takes for the weights; None leaves the regularizers that the
            model carries already.
        writer: Where :class:`~torchridge.L2Monitor` writes, e.g. a `SummaryWriter`; None for nowhere.
        every: Write at every n-th optimizer step.
        unused: As for `penalize_step`.
        **options: `bias`, `rules`, `embeddings` and `inert` of `regularize`.

    Raises:
        TypeError: If an option is none of `regularize`'s.
        ValueError: If `every` is not a positive integer; when training begins, as `regularize` and `penalize_step`,
            and under DeepSpeed.

    Cost: as `penalize_step`, and `L2Monitor` at the steps that are written.

    Example:
        >>> from transformers import Trainer
        >>> callback = L2TrainerCallback(1e-4)  # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        regularizer: RegularizerLike = None,
        *,
        writer: Writer | None = None,
        every: int = 50,
        unused: Unused = "penalize",
        **options: Any,
    ) -> None:
        for name in options:
            if name not in ("bias", "rules", "embeddings", "inert"):
                raise TypeError(f"`{name}` is unknown; expected `bias`, `rules`, `embeddings` or `inert`.")
        self._every = _check.integer(every, "every", minimum=1)
        self._regularizer, self._unused, self._options = regularizer, unused, options
        self._writer = writer
        self._monitor: L2Monitor | None = None
        self._hooks: list[StepPenalty] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Attach the regularizers and hang the penalty on the optimizer.

        Raises:
            ValueError: Under DeepSpeed.
        """
        model, optimizer = _of(kwargs, "model"), _of(kwargs, "optimizer")
        if getattr(args, "deepspeed", None):
            raise ValueError(
                "`args` has `deepspeed`, whose optimizer trains flat partitions instead of the model's parameters; "
                "expected plain training, DDP or FSDP. Use `weight_decay` with `WeightDecayMixin`."
            )
        attach(model, self._regularizer, self._options)
        self._hooks = penalize_steps([optimizer], model, self._unused)
        if self._writer is not None:
            self._monitor = L2Monitor(self._writer, model, optimizer, every=self._every)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write, if it is the turn of this step."""
        if self._monitor is not None:
            self._monitor.step(step=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Take the penalty off the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._monitor = [], None


def decay_parameter_names(model: nn.Module, *, rules: DecayRules = (), embeddings: bool = True) -> list[str]:
    """Name the parameters that weight decay applies to, as `named_parameters` names them.

    Args:
        model: Any module, wrapped or not.
        rules: As for :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`; only whether they decay
            counts.
        embeddings: Likewise.

    Returns:
        The names, for an override of `Trainer.get_decay_parameter_names`.

    Raises:
        TypeError: As :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`.
        ValueError: As :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`.

    Cost: one walk over the modules.

    Example:
        >>> decay_parameter_names(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        ['0.weight']
    """
    decisions = decide(model, 1.0, rules=rules, embeddings=embeddings, layer_decay=None, layer_of=None, inert="keep")
    return [decision.judgement.sites[0].full_name for decision in decisions if decision.decay]


class WeightDecayMixin:
    """Let a `Trainer` decay the weights that `weight_decay_groups` decays, by `args.weight_decay`.

    Trainer's own rule looks for `bias` and `norm` in names: it decays BatchNorm, custom normalizations, layer scales,
    tokens and positions, and skips matrices that lie in a module with such a name. Put the mixin before `Trainer`.

    Attributes:
        decay_rules: As `rules` of :func:`decay_parameter_names`.
        decay_embeddings: Whether embeddings are decayed.

    Cost: one walk over the modules when the optimizer is made.

    Example:
        >>> from transformers import Trainer
        >>> class DecayingTrainer(WeightDecayMixin, Trainer):
        ...     decay_embeddings = False
    """

    decay_rules: DecayRules = ()
    decay_embeddings: bool = True

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that are decayed."""
        rules: Mapping[Any, Any] | Any = self.decay_rules
        return decay_parameter_names(model, rules=rules, embeddings=self.decay_embeddings)


def _of(given: Mapping[str, object], name: str) -> Any:
    """Return what the Trainer hands its callbacks under a name."""
    return given[name]
