"""What estimators take: tensors, numpy, lists, data frames and scipy.sparse in; the same kind of thing out.

scikit-learn is not needed to read any of them. The wording of some errors is its own, as its users know it.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.matrices import operator_of
from torchridge.streams.shared import shared

# A sparse matrix of up to this many bytes, made dense, is made dense.
DENSE_BYTES = 2**30


class Container(NamedTuple):
    """The kind of thing that answers are given back as."""

    tensor: bool
    device: torch.device
    dtype: torch.dtype

    def give(self, value: Tensor) -> Any:
        """Return a tensor of numbers as this kind."""
        value = value.detach().to(self.device, self.dtype)
        return value if self.tensor else value.numpy()

    def kind(self, value: Any) -> Any:
        """Return an array of counts or float64 numbers as this kind, in its own dtype."""
        return torch.as_tensor(np.ascontiguousarray(value), device=self.device) if self.tensor else value


class Table(NamedTuple):
    """Features as they were read."""

    X: Any  # (n, d) a real tensor where it is computed on, or a scipy CSR matrix that is too large to be made dense
    container: Container
    names: Any  # (d,) of objects, or None

    @property
    def sparse(self) -> bool:
        """Whether X is still sparse."""
        return not isinstance(self.X, Tensor)


def is_sparse(X: Any) -> bool:
    """Whether X is a scipy.sparse matrix or array."""
    return hasattr(X, "tocsr") and hasattr(X, "nnz")


def read_table(X: Any, device: Any = None, name: str = "X", *, sparse: bool = False) -> Table:
    """Return features of shape (n, d) on `device` (by default where they are), and what to give answers back as.

    With `sparse` a sparse matrix in the memory of the CPU stays one, whatever its size; else only if it has to.
    """
    names = feature_names(X)
    keep = sparse and torch.device(device or getattr(X, "device", "cpu")).type == "cpu"
    if isinstance(X, Tensor):
        values = _from_tensor(X, name, keep)
        values = values.to(device or X.device) if isinstance(values, Tensor) else values
        dtype = X.dtype if X.is_floating_point() else torch.float64
        return Table(values, Container(True, X.device, dtype), names)
    if is_sparse(X):
        rows = _from_sparse(X, device, keep)
        array_dtype = X.dtype
    else:
        array = as_array(X, name)
        _two_dimensional(array, name)
        array_dtype = array.dtype
        rows = as_tensor(array).to(device or "cpu")
    dtype = torch.float32 if array_dtype == np.float32 else torch.float64
    return Table(rows, Container(False, torch.device("cpu"), dtype), names)


def _from_tensor(X: Tensor, name: str, keep: bool) -> Any:
    if X.is_complex():
        raise ValueError(f"Complex data not supported: `{name}` is {X.dtype}.")
    _shape(tuple(X.shape), name)
    if X.layout is not torch.strided:
        if X.numel() * 8 > DENSE_BYTES or (keep and has_scipy()):
            return _to_scipy(X.detach())
        X = X.to_dense()
    return X.detach()


def _to_scipy(X: Tensor) -> Any:
    """Return a sparse tensor as a scipy CSR matrix, which shares its memory if it is CSR already."""
    try:
        from scipy.sparse import csr_matrix
    except ImportError:
        raise ImportError(f"{too_large(X.shape)} That needs SciPy: `pip install scipy`.") from None
    if X.device.type != "cpu":
        raise ValueError(f"{too_large(X.shape)} This one is on {X.device}: pass `X.cpu()`.")
    rows = X if X.layout is torch.sparse_csr else X.to_sparse_csr()
    values = rows.values() if rows.dtype in (torch.float32, torch.float64) else rows.values().double()
    parts = tuple(a.numpy() for a in (values, rows.col_indices(), rows.crow_indices()))
    return csr_matrix(parts, shape=tuple(X.shape))


def has_scipy() -> bool:
    """Whether SciPy is installed."""
    return importlib.util.find_spec("scipy") is not None


def _from_sparse(X: Any, device: Any, keep: bool) -> Any:
    if X.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: `X` is {X.dtype}.")
    _shape(tuple(X.shape), "X")
    if keep or X.shape[0] * X.shape[1] * 8 > DENSE_BYTES:
        return X.tocsr()
    return as_tensor(_real(X.toarray(), "X")).to(device or "cpu")


def fits(table: Table) -> bool:
    """Whether a sparse table may be made dense."""
    return bool(table.X.shape[0] * table.X.shape[1] * 8 <= DENSE_BYTES)


def filled(table: Table) -> Table:
    """Return a sparse table as a dense one."""
    return table._replace(X=as_tensor(_real(table.X.toarray(), "X")))


def take(X: Any, index: Tensor) -> Any:
    """Return some rows of a tensor or a scipy.sparse matrix."""
    return X[index.to(X.device)] if isinstance(X, Tensor) else X[index.cpu().numpy()]


def check_entries(X: Any) -> None:
    """Raise if a scipy.sparse matrix in rows holds NaN or infinity, in the words of `_check.finite`."""
    if X.dtype.kind == "f" and not np.isfinite(X.data.sum(dtype=np.float64)):
        operator_of(X, "sparse")


def too_large(shape: Any) -> str:
    """Return the error of a sparse matrix that cannot be made dense."""
    return (
        f"a sparse `X` of shape {tuple(shape)} does not fit in {DENSE_BYTES / 2**30:g} GiB when made dense. What "
        f"only multiplies with it does without that: `Ridge`, `RidgeClassifier`, `LogisticRegression`, and their CV "
        f"classes with `cv`='gcv' or folds, on the CPU. Otherwise reduce its columns, or stream dense batches through "
        f"`partial_fit`."
    )


def as_array(values: Any, name: str) -> Any:
    """Return real numbers as a numpy array of float32 or float64."""
    if hasattr(values, "to_numpy") and hasattr(values, "columns"):  # a data frame, of pandas or polars
        array = values.to_numpy()
        array = _from_objects(array, name, values.columns) if array.dtype == object else array
    else:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return _real(array, name)


def _real(array: Any, name: str) -> Any:
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: `{name}` is {array.dtype}.")
    if array.dtype.kind in "USmM":
        raise ValueError(f"`{name}` should be numbers, got an array of {array.dtype}. Encode its columns first.")
    if array.dtype == object:
        return _from_objects(array, name)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def is_missing(value: Any) -> bool:
    """Whether a label or a number is None, NaN or pandas' NA."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _from_objects(array: Any, name: str, columns: Any = None) -> Any:
    """Return objects as float64, or raise, for pandas' NA with its place."""
    try:
        return array.astype(np.float64)
    except TypeError:
        missing = [i for i, v in enumerate(array.reshape(-1)) if type(v).__name__ in ("NAType", "NaTType")]
        if not missing:
            raise
    place = np.unravel_index(missing[0], array.shape)
    column = f", column {place[1] if columns is None else columns[place[1]]!r}" if array.ndim == 2 else ""
    raise ValueError(
        f"`{name}` holds a missing value (NA), first in row {place[0]}{column} ({len(missing)} such values); expected "
        f"finite numbers. Drop or impute these rows."
    )


def as_tensor(array: Any) -> Tensor:
    """Return a tensor that shares the memory of an array if it can."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    return shared(array)


def tensor_of(value: Any) -> Tensor:
    """Return a tensor as it is, and a number or an array, which may be read-only, as a tensor of its memory."""
    return value.detach() if isinstance(value, Tensor) else as_tensor(np.asarray(value))


def _two_dimensional(array: Any, name: str) -> None:
    _shape(array.shape, name)


def _shape(shape: tuple[int, ...], name: str) -> None:
    if len(shape) != 2:
        raise ValueError(
            f"Expected 2D array, got {len(shape)}D array instead: `{name}` has shape {shape}. Reshape your data either "
            f"using X.reshape(-1, 1) if it has a single feature or X.reshape(1, -1) if it contains a single sample."
        )
    for size, what in ((shape[0], "sample"), (shape[1], "feature")):
        if size < 1:
            raise ValueError(
                f"`{name}`: found array with {size} {what}(s) (shape={shape}) while a minimum of 1 is required."
            )


def feature_names(X: Any) -> Any:
    """Return the column names of a data frame if all are strings, else None.

    Raises:
        TypeError: if only some are strings.
    """
    columns = getattr(X, "columns", None)
    if columns is None or isinstance(X, Tensor) or is_sparse(X):
        return None
    names = np.asarray(columns, dtype=object)
    strings = sum(isinstance(n, str) for n in names)
    if 0 < strings < len(names):
        kinds = sorted({type(n).__name__ for n in names})
        raise TypeError(
            f"Feature names are only supported if all input features have string names, but your input has {kinds} as "
            f"feature name / column name types. Convert them, e.g. `X.columns = X.columns.astype(str)`."
        )
    return names if strings else None


def read_target(y: Any, table: Table) -> Tensor:
    """Return regression targets (n,) or (n, t), where the features are."""
    n = table.X.shape[0]
    if y is None:
        raise ValueError("this estimator requires y to be passed, but the target y is None.")
    target = _from_target_tensor(y) if isinstance(y, Tensor) else as_tensor(as_array(y, "y"))
    if target.ndim not in (1, 2):
        raise ValueError(f"`y` should have shape (n,) or (n, t), got {tuple(target.shape)}.")
    same_length(target.shape[0], n)
    _check.finite(target, "y")
    return beside(table, target)


def _from_target_tensor(y: Tensor) -> Tensor:
    if y.is_complex():
        raise ValueError(f"Complex data not supported: `y` is {y.dtype}.")
    return y.detach() if y.is_floating_point() else y.detach().double()


def same_length(got: int, n: int) -> None:
    """Raise unless `y` has as many rows as `X`."""
    if got != n:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: `X` has {n}, `y` {got}. Pass one y a row."
        )


def read_weight(sample_weight: Any, table: Table) -> Tensor | None:
    """Return sample weights (n,), or None."""
    if sample_weight is None:
        return None
    n = table.X.shape[0]
    if isinstance(sample_weight, Tensor):
        weight = sample_weight.detach()
    else:
        weight = as_tensor(as_array(sample_weight, "sample_weight"))
    if weight.ndim == 0:
        weight = weight.expand(n).clone()
    if weight.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got `sample_weight` of {tuple(weight.shape)}.")
    if weight.shape[0] != n:
        raise ValueError(f"`sample_weight` has {weight.shape[0]} rows, expected {n}, as `X` has.")
    _check.non_negative(weight, "sample_weight")
    if not bool((weight > 0).any()):
        raise ValueError("`sample_weight`: sample weights are zero in every row; expected at least one positive.")
    return beside(table, weight.double())


def beside(table: Table, value: Tensor) -> Tensor:
    """Return a tensor where the features are."""
    return value if table.sparse else value.to(table.X.device)
