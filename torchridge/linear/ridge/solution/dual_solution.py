"""The dual form of a solution: coefficients of rows in place of weights of features, for thousands of targets.

    ŷ(x) = ȳ + Σ_i c_i k(x, x_i),   k(x, x_i) = (x − x̄)ᵀ D⁻¹ (x_i − x̄),   c = √s ∘ dual coefficients

so that W = cᵀ (X − x̄) D⁻¹ need not be made: n × t numbers in place of d × t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchridge.linear.ridge.solution.diagnosis import Late
from torchridge.solvers.device import memory
from torchridge.solvers.iterative.operators import Operator
from torchridge.solvers.kernels import dual_weights, gram_matrix
from torchridge.solvers.least_squares import target_scores

# Weights of more than this are held against the memory of the device before they are made.
_ASK_BYTES = 2**30

# Columns that a kernel is summed over at once: what stays near the processor.
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, eq=False)
class DualForm:
    """What a solution keeps if its weights are not made.

    Attributes:
        coef: (n, L, t) c, in the dtype that was solved in; L = 1 but for a path.
        rows: (n, d) the rows that were fitted, not copied; None if their kernel was given.
        center: (d,) x̄, zero without an intercept; for a given kernel its mean row (n,).
        target_center: (t,) ȳ, zero without an intercept.
        scale: (d,) D⁻¹, zero for a feature that is not penalized; None if all are one.
        free: (q,) the features that are not penalized, or None.
        free_weight: (q, L, t) their weights.
        dtype: what predictions and weights are rounded to.
        check: raises if the rows were changed in place since the fit.
    """

    coef: Tensor
    rows: Tensor | None
    center: Tensor
    target_center: Tensor
    scale: Tensor | None
    free: Tensor | None
    free_weight: Tensor | None
    dtype: torch.dtype
    check: Callable[[], None] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        if self.check is not None:
            self.check()
        return {**self.__dict__, "check": None}

    def state(self) -> dict[str, Tensor | str]:
        """Return what a file holds of it."""
        self.checked()
        values = {name: value for name, value in self.__dict__.items() if isinstance(value, Tensor)}
        return {**values, "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> DualForm:
        """Return the dual form that a file holds, or raise `ValueError`."""
        dtype = {"float32": torch.float32, "float64": torch.float64}.get(state.pop("dtype"))
        empty = dict.fromkeys(("rows", "scale", "free", "free_weight"))
        form = cls(**{**empty, **state}, dtype=dtype)  # type: ignore[arg-type]
        width = form.features if form.rows is None else form.rows.shape[1]
        n = form.features if form.rows is None else len(form.rows)
        if (
            dtype is None
            or width != form.features
            or form.coef.shape != (n, *form.coef.shape[1:2], len(form.target_center))
        ):
            raise ValueError(f"its dual coefficients of shape {tuple(form.coef.shape)} do not fit its rows")
        return form

    @property
    def features(self) -> int:
        """How many numbers a row to predict has: d, or n for a given kernel."""
        return len(self.center)

    def at(self, index: int) -> DualForm:
        """Return one strength of a path."""
        index = index % self.coef.shape[1]
        pick = slice(index, index + 1)
        own = None if self.free_weight is None else self.free_weight[:, pick]
        return replace(self, coef=self.coef[:, pick], free_weight=own)

    def of_targets(self, part: Any) -> DualForm:
        """Return some targets."""
        own = None if self.free_weight is None else self.free_weight[..., part]
        return replace(self, coef=self.coef[..., part], target_center=self.target_center[part], free_weight=own)

    def weight(self) -> Tensor:
        """Return the weights (L, t, d). Cost n d L t."""
        if self.rows is None:
            raise ValueError(
                "a kernel that was given has no features, so the solution has no `weight`. Use `predict` with the "
                "kernel of new rows, `score`, or `dual_coef`."
            )
        self.checked()
        X, (_, L, t), d = self.rows.detach(), self.coef.shape, self.features
        _refuse_beyond_memory(L * t, d, self.dtype, X.device)
        result = torch.empty(L * t, d, dtype=self.dtype, device=X.device)
        flat = self.coef.flatten(1)
        for part in gram_matrix.column_chunks(X, flat.dtype):
            x = self._centred(X[:, part], part)
            for some in target_scores.target_batches(L * t, x.shape[1], flat.dtype.itemsize, None):
                result[some, part] = (flat[:, some].T @ x).to(self.dtype)
        if self.free is not None and self.free_weight is not None:
            result[:, self.free] = self.free_weight.flatten(1).T.to(self.dtype)
        if not bool(torch.isfinite(result.sum(1, dtype=torch.float64)).all()):
            raise ValueError(f"the weights are too large for {self.dtype}. Rescale `X` or `y`, or raise `alpha`.")
        return result.view(L, t, d)

    def predictions(self, X: Tensor, max_bytes: int | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield runs of rows of X (m, d), runs of targets, and their predictions (L, rows, targets), not rounded.

        Within `max_bytes` (by default 256 MiB) above what is yielded. Cost n d m, and n m L t.
        """
        self.checked()
        most = 2**28 if max_bytes is None else max_bytes
        (n, L, t), size = self.coef.shape, self.coef.element_size()
        step = max(1, min(len(X), most // (4 * size * (n + L))))
        for i in range(0, len(X), step):
            rows = slice(i, min(i + step, len(X)))
            kernel = self._kernel(X[rows], most // 4)  # (rows, n)
            free = None if self.free is None else X[rows, self.free].to(self.coef.dtype) - self.center[self.free]
            for part in target_scores.target_batches(t, 2 * L * len(kernel) + n * L, size, most // 4):
                yield rows, part, self._predicted(kernel, free, part)

    def products(self, X: Operator, max_bytes: int | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield predictions of a sparse X or an operator (m, d), as `predictions` does. Cost: n products with X."""
        self.checked()
        most = 2**28 if max_bytes is None else max_bytes
        (n, L, t), m, size = self.coef.shape, int(X.shape[0]), self.coef.element_size()
        kernel = self.coef.new_empty(m, n)
        step = max(1, most // (4 * 8 * (self.features + m)))
        for i in range(0, n, step):
            rows = slice(i, min(i + step, n))
            columns = self._kept(rows).double()
            kernel[:, rows] = (X.matmul(columns) - self.center.double() @ columns).to(kernel.dtype)
        free = None if self.free is None else X.columns(self.free).to(kernel.dtype) - self.center[self.free]
        for part in target_scores.target_batches(t, 2 * L * m + n * L, size, most // 4):
            yield slice(0, m), part, self._predicted(kernel, free, part)

    def _kept(self, rows: slice) -> Tensor:
        """Return some of the rows that were fitted as columns (d, rows), centred, times D⁻¹."""
        if self.rows is None:
            return torch.eye(self.features, dtype=self.coef.dtype, device=self.coef.device)[:, rows]
        return self._centred(self.rows.detach()[rows], slice(None)).T

    def _predicted(self, kernel: Tensor, free: Tensor | None, part: slice) -> Tensor:
        coef = self.coef[:, :, part]
        out = (kernel @ coef.flatten(1)).reshape(len(kernel), *coef.shape[1:]) + self.target_center[part]
        if free is not None and self.free_weight is not None:
            out = out + (free @ self.free_weight[:, :, part].flatten(1)).reshape(out.shape)
        return out.movedim(1, 0)

    def _kernel(self, X: Tensor, most: int) -> Tensor:
        """Return the kernel of new rows with the rows that were fitted, (m, n)."""
        if self.rows is None:
            return X.to(self.coef.dtype) - self.center
        kept, kernel = self.rows.detach(), X.new_zeros(len(X), len(self.coef), dtype=self.coef.dtype)
        step = max(64, min(most, _CHUNK_BYTES) // (2 * kernel.element_size() * (len(X) + len(kept))))
        for j in range(0, self.features, step):
            part = slice(j, j + step)
            new = X[:, part].to(kernel.dtype, copy=True).sub_(self.center[part])
            kernel = kernel.addmm_(new, self._centred(kept[:, part], part).T)
        return kernel

    def _centred(self, x: Tensor, part: slice) -> Tensor:
        x = x.to(self.coef.dtype, copy=True).sub_(self.center[part])
        return x if self.scale is None else x.mul_(self.scale[part])

    def checked(self) -> None:
        """Raise if the rows were changed in place since the fit."""
        if self.check is not None:
            self.check()


def _refuse_beyond_memory(columns: int, d: int, dtype: torch.dtype, device: torch.device) -> None:
    size = columns * d * dtype.itemsize
    there = memory(device) if size > _ASK_BYTES else None
    if there is not None and size > there:
        raise ValueError(
            f"`weight` would take {size / 2**30:.3g} GiB: {columns} targets (× strengths) of {d} features, and "
            f"{device} has {there / 2**30:.3g} GiB. Use `predict` and `score`, which do not need it, or take some "
            f"targets, e.g. `solution.of_targets(slice(0, 100)).weight`."
        )


@dataclass(frozen=True, eq=False)
class EachVariance(Late):
    """The sampling variance of each weight for unit noise if each target has its own strength, (t, d).

    Attributes:
        form: whose weights they are.
        alpha: (t,).
        spectrum: returns √s times the basis (n, m) of the rows' gram matrix, and its eigenvalues (m,).
    """

    form: DualForm
    alpha: Tensor
    spectrum: Callable[[], tuple[Tensor, Tensor]]

    def __call__(self) -> Tensor:
        """Return the variances, NaN for a feature that is not penalized. Cost n² d, and n d t."""
        form = self.form
        if form.rows is None:
            return self.alpha.new_full((len(self.alpha), form.features), torch.nan)
        form.checked()
        rows, place = form.rows.detach(), (form.center, form.scale, form.free)
        return dual_weights.spread(rows, *place, *self.spectrum(), self.alpha).T

    def settled(self) -> EachVariance:
        """Return the same with the spectrum in place of what finds it."""
        return self if isinstance(self.spectrum, partial) else of_spectrum(self.form, self.alpha, *self.spectrum())

    def of_targets(self, part: Any) -> EachVariance:
        """Return some targets."""
        return replace(self, form=self.form.of_targets(part), alpha=self.alpha[part])


def of_spectrum(form: DualForm, alpha: Tensor, basis: Tensor, eigvals: Tensor) -> EachVariance:
    """Return sampling variances whose spectrum is known already."""
    return EachVariance(form, alpha, partial(_pair, basis, eigvals))


def _pair(basis: Tensor, eigvals: Tensor) -> tuple[Tensor, Tensor]:
    return basis, eigvals


def weight_of(form: DualForm, path: bool) -> Callable[[], Tensor]:
    """Return what makes the weights of a solution: (t, d), or (L, t, d) of a path."""
    return partial(_made, form, path)


def _made(form: DualForm, path: bool) -> Tensor:
    weight = form.weight()
    return weight if path else weight[0]


class MadeWhenRead:
    """A field of a frozen dataclass that holds a tensor, or a function that makes it when it is first read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name]
        if callable(value):
            value = instance.__dict__[self._name] = value()
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value
