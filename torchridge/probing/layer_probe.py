"""One readout of one layer: its weights, its held-out scores, and how it predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor, nn

from torchridge.linear.curves import Curve, curve
from torchridge.linear.printing import listed, shaped
from torchridge.probing.readouts.table import READOUTS
from torchridge.solvers.device import sent

# The first of these that a probe has tells which layer is best.
RANKING = ("accuracy", "r2", "log_likelihood", "log_loss")


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """One readout of one layer, fitted to all rows at the strength that held-out rows prefer.

    Attributes:
        layer: name of the layer.
        readout: "ridge", "lda" or "logistic".
        weight: (t, d) in the units of the features: standardization is folded in. Two classes have one row.
        bias: (t,).
        strength: α of ridge, shrinkage of LDA, C of logistic.
        strengths: (L,) that were tried.
        criterion: what chose among them: "mse", "log_loss" or "log_likelihood"; larger is better, so that errors and
            losses carry a minus sign.
        strength_scores: (K, L) the criterion in every fold.
        fold_scores: (K,) held-out scores by name; larger is better, so that "mse" and "log_loss" carry a minus sign.
            "mse" and "r2" of classes are those of targets −1 and 1.
        control: mean held-out scores of the same readout fitted to shuffled labels.
        interval: 95 % bootstrap interval of accuracy or R², or None.
        classes: (k,) sorted, or None in a regression.
        dtype: of the features, and of `to_linear`.
        vector_target: whether labels came as (n,).

    Example:
        >>> import torch
        >>> from torchridge.probing import LinearProbe
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10)
        >>> probe = LinearProbe(task="classification", metrics="accuracy").fit(X, (X[:, 0] > 1.5).long()).best
        >>> probe.readout, probe.scores["accuracy"], probe.predict(torch.tensor([[0.2], [2.9]]))
        ('ridge', 1.0, tensor([0, 1]))
    """

    layer: str
    readout: str
    weight: Tensor
    bias: Tensor
    strength: float
    strengths: Tensor
    criterion: str
    strength_scores: Tensor
    fold_scores: dict[str, Tensor]
    control: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    classes: Tensor | None = None
    dtype: torch.dtype = torch.float32
    vector_target: bool = True

    def __repr__(self) -> str:
        strength = f"{self.strength:.6g}" + (f", of {len(self.strengths)}" if len(self.strengths) > 1 else "")
        return listed(
            f"Probe of {self.layer!r}",
            {
                "readout": self.readout,
                "weight": shaped(self.weight),
                "classes": None if self.classes is None else str(len(self.classes)),
                "strength": strength,
                "scores": ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items()) or None,
                "control": ", ".join(f"{name} {value:.4g}" for name, value in self.control.items()) or None,
                "interval": f"{self.interval[0]:.4g} to {self.interval[1]:.4g}" if self.interval else None,
            },
        )

    @property
    def scores(self) -> dict[str, float]:
        """Mean over folds of every score."""
        return {name: fmean(values.tolist()) for name, values in self.fold_scores.items()}

    @property
    def rank_score(self) -> tuple[str, float]:
        """The score that layers are compared by, and its value."""
        name = next(n for n in RANKING if n in self.fold_scores)
        return name, self.scores[name]

    def decision_function(self, X: Tensor) -> Tensor:
        """Return X Wᵀ + b in float64, (n, t).

        Raises:
            ValueError: on a shape that does not fit.
        """
        if not isinstance(X, Tensor) or X.ndim != 2 or X.shape[1] != self.weight.shape[1]:
            got = f"shape {tuple(X.shape)}" if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(f"`X` should be a tensor of shape (n, {self.weight.shape[1]}), got {got}.")
        return X.to(self.weight.device).double() @ self.weight.T + self.bias

    def predict(self, X: Tensor) -> Tensor:
        """Return the class of every row (n,), or in a regression its targets (n,) or (n, t)."""
        out = self.decision_function(X)
        if self.classes is None:
            return out[:, 0] if self.vector_target else out
        index = (out[:, 0] > 0).long() if out.shape[1] == 1 else out.argmax(1)
        return sent(self.classes, index.device)[index]

    def curve(self, target: int | None = None) -> Curve:
        """Return the score of every strength that was tried, the mean over targets.

        Raises:
            ValueError: on a `target`, or if the strength was given.
        """
        if target is not None:
            raise ValueError("`target`: the scores of a probe are means over its targets. Leave it out.")
        if not self.strength_scores.shape[0]:
            raise ValueError(f"the strength {self.strength:g} of this probe was given, so nothing was chosen.")
        chosen, folds = torch.tensor(self.strength, dtype=torch.float64), self.strength_scores[..., None]
        return curve(self.strengths, folds.mean(0), folds, chosen, READOUTS[self.readout].letter, self.criterion, None)

    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """Return the readout as `nn.Linear`, in the dtype of the features unless another is named."""
        t, d = self.weight.shape
        linear = nn.Linear(d, t, device=self.weight.device, dtype=dtype or self.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.bias)
        return linear
