"""Continual learning: classes and tasks are added, and any of them can be forgotten, as if it had never been."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from torchridge.linear.types import Labels
from torchridge.probing.labelled import Labelled
from torchridge.probing.layer_probe import Probe
from torchridge.probing.settings import Task
from torchridge.solvers.moments.blocks import Block


class ContinualProbe:
    """A readout of features that is at every moment the one of all the data held, in whatever order it came.

    Moments add up, so nothing is forgotten by learning something new, and data is forgotten by taking its moments
    away. Moments of named tasks are kept apart as well; `forget` takes them away from the total.

    Args:
        task: "classification", "regression", or "auto": integer and boolean labels are classes.

    Cost: d² a task and for the total; n·d² / 2 for an update.

    Example:
        >>> import torch
        >>> from torchridge.probing import ContinualProbe
        >>> X = torch.tensor([[0.0], [1.0], [5.0], [6.0], [9.0], [10.0]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> probe = ContinualProbe().update(X[:4], y[:4], name="first").update(X[4:], y[4:], name="second")
        >>> probe.lda().predict(X)
        tensor([0, 0, 1, 1, 2, 2])
        >>> probe.forget("second").lda().predict(X)
        tensor([0, 0, 1, 1, 1, 1])
    """

    def __init__(self, task: Task = "auto") -> None:
        self._total = Labelled(task)
        self._tasks: dict[Hashable, Block] = {}

    def update(
        self, features: Tensor, labels: Labels, *, name: Hashable = None, sample_weight: Tensor | None = None
    ) -> ContinualProbe:
        """Add rows, (n, d) and (n,), and return self; with `name` they can be forgotten by it.

        Raises:
            ValueError: on shapes that do not fit, NaN or infinity; nothing is changed then.
            TypeError: on the wrong kinds.
        """
        block = self._total.measured(features, labels, sample_weight)
        self._total.add(block)
        if name is not None:
            apart = Labelled(self._total.task)
            apart.codes, apart.block = self._total.codes, self._tasks.get(name)
            apart.add(block)
            assert apart.block is not None
            self._tasks[name] = apart.block
        return self

    def forget(
        self,
        name: Hashable = None,
        features: Tensor | None = None,
        labels: Labels | None = None,
        sample_weight: Tensor | None = None,
    ) -> ContinualProbe:
        """Take away a named task, or the given rows, which must be among those that came in; return self.

        Raises:
            ValueError: if there is no such task, or more rows are given than are held.
        """
        if features is not None:
            self._total.take_away(self._total.measured(features, labels, sample_weight))
            return self
        if name not in self._tasks:
            raise ValueError(f"`name`={name!r} is not a task; there are {list(self._tasks)}. Name tasks in `update`.")
        self._total.take_away(self._tasks.pop(name))
        return self

    @property
    def n_samples(self) -> int:
        """Rows that are held."""
        return 0 if self._total.block is None else self._total.block.rows

    @property
    def tasks(self) -> tuple[Hashable, ...]:
        """Names of the tasks that are held."""
        return tuple(self._tasks)

    def ridge(self, alpha: float = 1.0, *, standardize: bool = False) -> Probe:
        """Return the ridge readout of everything held, Σ s ‖y − Wx − b‖² + α ‖W‖²; classes are −1 and 1."""
        return self._total.solve("ridge", float(alpha), standardize)

    def lda(self, shrinkage: float = 1e-3, *, standardize: bool = False) -> Probe:
        """Return the discriminants of everything held."""
        return self._total.solve("lda", float(shrinkage), standardize)
