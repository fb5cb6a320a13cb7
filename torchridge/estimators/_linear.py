"""What every linear estimator does once it has weights: predict, answer in kind, become a layer, be streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from torchridge import _check
from torchridge._ranks import Group
from torchridge.estimators import _few_rows
from torchridge.estimators._few_rows import Weights
from torchridge.estimators._input import Container, Table, as_tensor, check_entries, is_sparse, read_table, tensor_of
from torchridge.estimators._protocol import Estimator, not_fitted
from torchridge.estimators._ranks import add_ranks, own_moments
from torchridge.exceptions import warn
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.moments.moments import Moments
from torchridge.streams.sparse import check_width, filled_runs

_Self = TypeVar("_Self", bound="LinearModel")

# Found by the first look at them after `partial_fit`, which gathers moments only.
_SOLVED_LATE = ("coef_", "intercept_", "alpha_", "best_score_", "solution_", "solver_")


class LinearModel(Estimator):
    """A model X coef_ᵀ + intercept_."""

    device: Any
    fit_intercept: bool
    coef_: Any
    intercept_: Any
    n_features_in_: int
    feature_names_in_: Any
    moments_: Moments
    solution_: Any

    def __getattr__(self, name: str) -> Any:
        # Not a property: `dir`, `vars` and scikit-learn's picture in a notebook would make the weights.
        if name == "coef_" and (solution := self._unread()) is not None:
            self.coef_ = _given(solution.weight, self._container)
            return self.coef_
        if name in _SOLVED_LATE and "moments_" in self.__dict__ and "coef_" not in self.__dict__:
            self._solve_moments()
            if name in self.__dict__:
                return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _solve_moments(self) -> None:
        raise NotImplementedError

    def _unread(self) -> RidgeSolution | None:
        """Return the solution in its dual form, as long as its weights have neither been read nor set by the user."""
        solution = self.__dict__.get("solution_")
        unread = "coef_" not in self.__dict__ and getattr(solution, "dual", None) is not None
        return solution if unread else None

    def _read(self, X: Any, *, sparse: bool = False) -> Table:
        """Read rows for a model that is fitted, and compare their columns with those it was fitted on."""
        table = read_table(X, self.device, sparse=sparse)
        self._check_features(table)
        return table

    def _note_features(self, table: Table) -> None:
        self.n_features_in_ = int(table.X.shape[1])
        self.__dict__.pop("feature_names_in_", None)
        if table.names is not None:
            self.feature_names_in_ = table.names

    def _check_features(self, table: Table) -> None:
        _check_names(type(self).__name__, table.names, getattr(self, "feature_names_in_", None))
        if (got := table.X.shape[1]) != self.n_features_in_:
            raise ValueError(
                f"X has {got} features, but {type(self).__name__} is expecting {self.n_features_in_} features as input."
            )

    def _check_fitted(self) -> None:
        if not {"coef_", "moments_"} & self.__dict__.keys() and self._unread() is None:
            raise not_fitted(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
                f"using this estimator."
            )

    def _keep_solution(self, found: RidgeSolution | Weights, container: Container, vector: bool) -> None:
        """Take over a solution; `vector` if y came as (n,). Of a dual form no weights are made."""
        bias, self.solution_ = found.bias, None
        if isinstance(found, RidgeSolution):
            self.solution_ = found
        if self.solution_ is None or self.solution_.dual is None:
            self.coef_ = _given(found.weight, container)
        else:
            self.__dict__.pop("coef_", None)
            self._container, bias = container, bias.clone()  # what is written to `intercept_` is not the solution's
        if not self.fit_intercept:
            self.intercept_ = 0.0
        else:
            given = container.give(bias)
            self.intercept_ = given[0] if vector else given

    def _raw(self, X: Any) -> Any:
        """Return X coef_ᵀ + intercept_ in the kind that X came in."""
        self._check_fitted()
        table = self._read(X, sparse=True)
        if (solution := self._unread()) is not None:
            return table.container.give(_few_rows.predict(solution, table.X, tensor_of(self.intercept_)))
        if table.sparse:
            check_entries(table.X)
            values = table.X @ np.asarray(_plain(self.coef_)).T + _plain(self.intercept_)
            return table.container.give(as_tensor(np.asarray(values)))
        _check.finite(table.X, "X")
        return table.container.give(self._apply(table.X))

    def _apply(self, X: Tensor) -> Tensor:
        weight, bias = tensor_of(self.coef_), tensor_of(self.intercept_)
        dtype = torch.promote_types(X.dtype if X.is_floating_point() else torch.float64, weight.dtype)
        dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        weight = weight.to(X.device, dtype)
        return X.to(dtype) @ (weight if weight.ndim == 1 else weight.T) + bias.to(X.device, dtype)

    def to_linear(self) -> nn.Linear:
        """Return an `nn.Linear` of this model's weights, on their device, in their dtype; (d,) becomes one output."""
        self._check_fitted()
        weight = tensor_of(self.coef_)
        weight = weight[None] if weight.ndim == 1 else weight
        layer = nn.Linear(weight.shape[1], weight.shape[0], self.fit_intercept, weight.device, weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if self.fit_intercept:
                layer.bias.copy_(tensor_of(self.intercept_))
        return layer

    def _forget(self) -> None:
        """Forget what was streamed, and what was solved from it."""
        for name in ("moments_", "_own_moments", "_container", *_SOLVED_LATE):
            self.__dict__.pop(name, None)

    def _add_rows(self, table: Table, y: Tensor, weight: Tensor | None, fold: Any = None) -> None:
        """Add checked rows to the moments; the next look at the weights solves anew."""
        first = "moments_" not in self.__dict__
        moments = Moments() if first else own_moments(self)
        if table.sparse:
            moments = with_sparse_rows(moments, table.X, y, weight, fold)
        else:
            moments.update(table.X, y, weight, fold)
        if first:
            self._forget()
            self.moments_, self._container = moments, table.container
            self._note_features(table)
        self.moments_ = moments
        for name in (*_SOLVED_LATE, "_own_moments"):
            self.__dict__.pop(name, None)

    def all_reduce(self: _Self, process_group: Group | None = None) -> _Self:
        """Add up what `partial_fit`, or `fit` from batches, has gathered on every rank of a process group.

        Every rank calls it, also one that was given no rows, and is then fitted to the rows of all. `partial_fit` goes
        on with this rank's rows alone, and `state_dict` holds those, for any number of ranks to load.

        Args:
            process_group: a `torch.distributed.ProcessGroup`, or "world" for the default group, as is None.

        Raises:
            RankError: if another rank died, failed, or has other columns, targets, classes or parameters, within
                the group's timeout.
            ValueError: if the model was fitted to rows at once, or no rank has rows.
        """
        add_ranks(self, process_group)
        return self

    def _read_batch(self, X: Any) -> Table:
        if "moments_" in self.__dict__:
            return self._read(X, sparse=True)
        return read_table(X, self.device, sparse=True)

    def _fit_stream(self: _Self, stream: Any, sample_weight: Any) -> _Self:
        """Fit to an iterable of batches; a refused batch leaves the model as it was."""
        if sample_weight is not None:
            raise ValueError("`sample_weight` of batches belongs into them: iterate over (X, y, sample_weight).")
        before = dict(self.__dict__)
        self._forget()
        try:
            for X, y, weight in batches(stream):
                self._gather(X, y, weight)
            if "moments_" not in self.__dict__:
                raise ValueError(
                    "`X` gave no batch; expected an iterable of (X, y). An exhausted generator gives none."
                )
        except BaseException:
            self.__dict__ = before
            raise
        return self

    def _gather(self, X: Any, y: Any, sample_weight: Any) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what `partial_fit` has gathered, safe for `torch.load(weights_only=True)`."""
        if "moments_" not in self.__dict__:
            raise not_fitted("nothing was streamed yet; `state_dict` holds what `partial_fit` gathers.")
        names = getattr(self, "feature_names_in_", None)
        container = self._container
        return {
            "moments": own_moments(self).state_dict(),
            "feature_names": None if names is None else [str(n) for n in names],
            "tensor": container.tensor,
            "device": str(container.device),
            "dtype": str(container.dtype).removeprefix("torch."),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; `partial_fit` goes on from there, bit for bit."""
        moments = Moments()
        moments.load_state_dict(state["moments"])
        container = Container(bool(state["tensor"]), torch.device(state["device"]), getattr(torch, state["dtype"]))
        self._forget()
        self.moments_, self._container = moments, container
        self.n_features_in_ = moments.n_features
        self.__dict__.pop("feature_names_in_", None)
        if state["feature_names"] is not None:
            self.feature_names_in_ = np.asarray(state["feature_names"], dtype=object)

    _container: Container


def with_sparse_rows(moments: Moments, X: Any, y: Tensor, weight: Tensor | None, fold: Any = None) -> Moments:
    """Return moments with sparse rows added, which are filled a run at a time; those given stay as they are.

    Raises:
        ValueError: on more columns than moments are gathered of, NaN or infinity.
    """
    check_width(int(X.shape[1]))
    check_entries(X)
    if isinstance(fold, Tensor):
        _check.shape(fold, [(X.shape[0],)], "fold")
    result = moments.clone()
    for part, rows in filled_runs(X):
        ids = fold[part] if isinstance(fold, Tensor) else fold
        result.update(rows, y[part], None if weight is None else weight[part], ids)
    return result


def _given(weight: Tensor, container: Container) -> Any:
    """Return weights (t, d), or (d,) of one target, as the caller's kind of array."""
    return container.give(weight[0] if weight.shape[0] == 1 else weight)


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def is_stream(X: Any, y: Any) -> bool:
    """Whether X is an iterable of batches (X, y) or (X, y, sample_weight), rather than rows."""
    if y is not None or isinstance(X, (np.ndarray, Tensor, str, bytes)) or hasattr(X, "columns") or is_sparse(X):
        return False
    if hasattr(X, "__array__"):
        return False
    if isinstance(X, (list, tuple)):
        return bool(X) and isinstance(X[0], (tuple, list)) and len(X[0]) in (2, 3) and np.ndim(X[0][0]) == 2
    return isinstance(X, Iterable)


def batches(stream: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (X, y, sample_weight) of every batch."""
    for number, batch in enumerate(stream):
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise ValueError(
                f"`X`: batch {number} should be (X, y) or (X, y, sample_weight), got {type(batch).__name__}."
            )
        yield (*batch, None) if len(batch) == 2 else tuple(batch)


def _check_names(estimator: str, names: Any, fitted: Any) -> None:
    """Compare column names with those seen by `fit`, in scikit-learn's words."""
    if fitted is None and names is None:
        return
    if fitted is None:
        warn(f"X has feature names, but {estimator} was fitted without feature names")
    elif names is None:
        warn(f"X does not have valid feature names, but {estimator} was fitted with feature names")
    elif list(fitted) != list(names):
        raise ValueError(_names_apart(set(names) - set(fitted), set(fitted) - set(names)))


def _names_apart(unseen: set[str], missing: set[str]) -> str:
    message = "The feature names should match those that were passed during fit.\n"
    for some, title in ((unseen, "unseen at fit time"), (missing, "seen at fit time, yet now missing")):
        if some:
            listed = [f"- {name}\n" for name in sorted(some)]
            message += f"Feature names {title}:\n" + "".join(listed[:5]) + ("- ...\n" if len(listed) > 5 else "")
    return message if unseen or missing else message + "Feature names must be in the same order as they were in fit.\n"
