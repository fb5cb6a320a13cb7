"""What is known of a solution apart from its weights, as properties that are worked out when they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.diagnosis import Diagnosis


class Diagnosed:
    """A solution with a diagnosis: the properties that cost something when they are first read."""

    if TYPE_CHECKING:

        @property
        def diagnosis(self) -> Diagnosis:
            """What they are read from."""

        @property
        def solver(self) -> str:
            """What solved it."""

        @property
        def shape(self) -> tuple[int, ...]:
            """That of the weights."""

    @property
    def dof(self) -> Tensor:
        """Effective degrees of freedom, the intercept not counted; costs an eigendecomposition if one was not taken."""
        dof: Tensor = self.diagnosis["dof"]
        return dof

    @property
    def condition(self) -> float | Tensor:
        """Condition number of XᵀX + αD at the weakest strength, features scaled by their penalty; cost as `dof`."""
        condition: float | Tensor = self.diagnosis["condition"]
        return condition

    @property
    def rank(self) -> int | Tensor | None:
        """Numerical rank of the centred rows, as far as the solver resolved it; None for "cg". Cost as `dof`."""
        rank: int | Tensor | None = self.diagnosis["rank"]
        return rank

    @property
    def residual_variance(self) -> Tensor:
        """Σ s (y − ŷ)² / (n − dof − 1), the −1 with an intercept, (t,); NaN if dof is. Cost as `dof`."""
        variance: Tensor = self.diagnosis["residual_variance"]
        return variance

    @property
    def unit_variance(self) -> Tensor | None:
        """Sampling variance of each weight for unit noise; None from "cg". Cost as `dof`, and n² d if n < d."""
        variance: Tensor | None = self.diagnosis["unit_variance"]
        return variance

    @property
    def standard_errors(self) -> Tensor:
        """Standard error of each weight for independent noise of equal variance, shaped as `weight`.

        They are those of the sampling distribution of the ridge estimate about its own (shrunken) mean.
        """
        if self.solver == "cg":
            raise ValueError("`solver`='cg' gives no standard errors. Use a direct solver, e.g. 'cholesky' or 'dual'.")
        unit = self.unit_variance
        assert unit is not None
        unit = unit if unit.ndim == len(self.shape) else unit[..., None, :]
        return (self.residual_variance[..., :, None] * unit).sqrt()
