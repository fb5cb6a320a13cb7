"""`Moments`: what ridge regression needs of its data, gathered row by row, merged, and taken away again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers.device import sent
from torchridge.solvers.moments import blocks, one_pass
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.folds import check_fold
from torchridge.solvers.moments.one_pass import Workspace
from torchridge.solvers.moments.rows import Rows, result_dtype
from torchridge.solvers.moments.saved import DTYPES, check_parts, cloned, least_weight


class Moments:
    r"""Weighted count, means, and centred second moments of rows (x, y), per fold if folds are given.

    Holds, for rows of weight s (1 if none is given),

        gram = Σ s (x − x̄)(x − x̄)ᵀ,   cross = Σ s (x − x̄)(y − ȳ)ᵀ,   yy = Σ s (y − ȳ)²

    which is everything that `ridge`, `ridge_path` and `ridge_cv` need: the rows themselves can be let go. Rows are
    centred as they come and summed in `dtype`, float64 unless you say otherwise, whatever the dtype of the rows.

    Args:
        dtype: of the sums. float32 halves the time and memory, and squares the rounding of float32 data.
        device: of the sums; that of the first rows by default.

    Shape:
        - ``X``: (n, d); ``y``: (n,) or (n, t); ``sample_weight``: (n,); ``fold``: an int or (n,) ids
        - gram (d, d), cross (d, t), mean (d,)

    Raises:
        ValueError: on another `dtype`.

    Cost: n·d·(d/2 + t) multiply-adds; working memory 3 d² numbers and 64 MiB above the rows, whatever n.

    Sources: Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115.

    Example:
        >>> import torch
        >>> from torchridge import Moments, ridge
        >>> X, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, 3.0, 5.0])
        >>> moments = Moments()
        >>> for i in range(3):
        ...     _ = moments.update(X[i : i + 1], y[i : i + 1])
        >>> ridge(moments, alpha=0.0).weight
        tensor([[2.]])
    """

    def __init__(self, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None) -> None:
        _check.option(dtype, "dtype", (torch.float64, torch.float32))
        self.dtype = dtype
        self.device = None if device is None else torch.device(device)
        self.result_dtype = torch.float64  # of answers: what the first rows were, as `ridge` does for data
        self.vector_target = False
        self._blocks: dict[int | None, Block] = {}  # by fold id; None if no folds are kept

    def update(
        self,
        X: Tensor,
        y: Tensor,
        sample_weight: Tensor | None = None,
        fold: int | Tensor | None = None,
        *,
        flatten: bool = False,
    ) -> Moments:
        """Add rows, and return self. A refused batch leaves the moments as they were.

        Args:
            X: (n, d), any real dtype.
            y: (n,) or (n, t), any real dtype.
            sample_weight: (n,), not negative. A weight of 2 is the row twice; of 0, the row left out.
            fold: the fold all the rows belong to, or (n,) integer ids, one a row. Ids need not be known beforehand.
            flatten: fold the leading dimensions of X, y, sample_weight and fold into rows.

        Raises:
            ValueError: on wrong shapes, NaN or infinity (naming the first row), negative weights, or rows that do not
                fit what is held: other d or t, folds with rows that had none.
            TypeError: if a tensor is expected and something else came.
        """
        return self._update(Rows(*_check.rows(X, y, sample_weight, flatten=flatten, values=False)), fold, flatten)

    def _update(
        self, rows: Rows, fold: int | Tensor | None, flatten: bool = False, work: Workspace | None = None
    ) -> Moments:
        """Add rows that `_check.rows` returned, as `update` does; `work` saves a long stream from getting it anew.

        Raises:
            ValueError: as `update`.
        """
        if rows.X.is_meta:
            raise ValueError("`X` is on the meta device, which holds no values to sum. Pass the rows themselves.")
        self._check_fits(rows)
        for name, value in (("X", rows.X), ("y", rows.y)):
            _check.exact_integers(value, name, self.dtype)
        ids = check_fold(fold, set(self._blocks), rows.X.shape[0], flatten)
        device = self.device or rows.X.device
        merged = self._merged(self._blocks_of(rows, ids, None, device, work))
        if least_weight(list(merged.values()), rows) == 0 and rows.sample_weight is not None:
            kept = (rows.sample_weight > 0).nonzero()[:, 0]
            merged = self._merged(self._blocks_of(rows, ids, kept, device, work))
        if not self._blocks:
            self.result_dtype, self.vector_target = result_dtype(rows.X.dtype), rows.vector_target
        self.device = next(iter(merged.values())).gram.device  # with its number, if "cuda" has none
        self._blocks.update(merged)
        return self

    def _blocks_of(
        self, rows: Rows, ids: int | Tensor | None, kept: Tensor | None, device: torch.device, work: Workspace | None
    ) -> dict[int | None, Block]:
        """Return the moments of the rows `kept` (default: all), by fold."""
        if not isinstance(ids, Tensor):
            return {ids: one_pass.block_of(*rows[:3], kept, self.dtype, device, work)}
        host = ids.cpu() if kept is None else ids[kept.to(ids.device)].cpu()
        places = torch.arange(len(host)) if kept is None else kept.cpu()
        parts = {k: sent(places[host == k], rows.X.device) for k in torch.unique(host).tolist()}
        return {k: one_pass.block_of(*rows[:3], index, self.dtype, device, work) for k, index in parts.items()}

    def _merged(self, added: Mapping[Any, Block]) -> dict[int | None, Block]:
        return {k: blocks.merge([self._blocks[k], b]) if k in self._blocks else b for k, b in added.items()}

    def _check_fits(self, rows: Rows) -> None:
        got = (rows.X.shape[1], rows.y.shape[1])
        if self._blocks and got != (self.n_features, self.n_targets):
            raise ValueError(
                f"`X` and `y` have {got[0]} features and {got[1]} targets, but these moments hold "
                f"{self.n_features} and {self.n_targets}. Start new `Moments()` for other data."
            )

    @property
    def n_samples(self) -> int:
        """How many rows came in."""
        return sum(b.rows for b in self._blocks.values())

    @property
    def n_features(self) -> int:
        """Columns of X; 0 before the first rows."""
        return int(next(iter(self._blocks.values())).cross.shape[0]) if self._blocks else 0

    @property
    def n_targets(self) -> int:
        """Columns of y; 0 before the first rows."""
        return int(next(iter(self._blocks.values())).cross.shape[1]) if self._blocks else 0

    @property
    def folds(self) -> tuple[int, ...]:
        """The fold ids seen so far, in order; empty if rows came without."""
        return tuple(sorted(k for k in self._blocks if k is not None))

    @property
    def weight_sum(self) -> float:
        """Σ s, the sum of the sample weights."""
        return float(sum(float(b.weight) for b in self._blocks.values()))

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the features, (d,)."""
        return self.block().mean_x

    @property
    def target_mean(self) -> Tensor:
        """Weighted mean of the targets, (t,)."""
        return self.block().mean_y

    @property
    def gram(self) -> Tensor:
        """Σ s (x − x̄)(x − x̄)ᵀ, (d, d), over all folds."""
        return self.block().gram

    @property
    def cross(self) -> Tensor:
        """Σ s (x − x̄)(y − ȳ)ᵀ, (d, t), over all folds."""
        return self.block().cross

    def block(self, fold: int | None = None) -> Block:
        """Return the moments of one fold, or of all rows.

        Raises:
            ValueError: if there are no rows, or no such fold.
        """
        if not self._blocks:
            raise ValueError("these `Moments` hold no rows yet. Call `update(X, y)` first.")
        if fold is not None:
            _check.option(fold, "fold", self.folds)
            return self._blocks[fold]
        parts = list(self._blocks.values())
        return parts[0] if len(parts) == 1 else blocks.merge(parts)

    def without(self, fold: int) -> Block:
        """Return the moments of all folds but one, merged from them (no subtraction, hence no cancellation).

        Raises:
            ValueError: if there is no such fold, or no other.
        """
        _check.option(fold, "fold", self.folds)
        rest = [b for k, b in self._blocks.items() if k != fold]
        if not rest:
            raise ValueError("`fold`: nothing is left without it; cross-validation needs at least two folds.")
        return blocks.merge(rest)

    def _like(self, parts: dict[int | None, Block]) -> Moments:
        result = Moments(dtype=self.dtype, device=self.device)
        result.result_dtype, result.vector_target = self.result_dtype, self.vector_target
        result._blocks = parts
        return result

    def _check_pair(self, other: Moments) -> None:
        sizes = [(m.n_features, m.n_targets, m.dtype, m.device) for m in (self, other)]
        if sizes[0] != sizes[1] or (None in self._blocks) != (None in other._blocks):
            raise ValueError(
                f"moments do not fit together: features, targets, dtype and device are {sizes[0]} and {sizes[1]}, "
                f"folds {self.folds} and {other.folds}. Bring both to one form, e.g. with `.to(...)`."
            )

    def __add__(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        if not isinstance(other, Moments):
            return NotImplemented
        if not self._blocks or not other._blocks:
            return (self if self._blocks else other).clone()
        self._check_pair(other)
        result = self.clone()
        result._blocks.update(result._merged({k: cloned(b) for k, b in other._blocks.items()}))
        return result

    def __sub__(self, other: Moments) -> Moments:
        """Moments of the rows of self without those of other, which must be among them: forgetting data.

        Subtraction cancels: if most of the weight is taken away, digits go with it.
        """
        if not isinstance(other, Moments):
            return NotImplemented
        if not other._blocks:
            return self.clone()
        self._check_pair(other)
        extra = {k: b.rows for k, b in other._blocks.items() if k not in self._blocks or b.rows > self._blocks[k].rows}
        if extra:
            raise ValueError(
                f"cannot take away rows that are not held: {sum(extra.values())} rows"
                + ("" if None in extra else f" of folds {sorted(k for k in extra if k is not None)}")
                + f" against {self.n_samples} held. Only data that came in by `update` or `+` can be forgotten."
            )
        result = self.clone()
        result._blocks.update({k: blocks.remove(self._blocks[k], b) for k, b in other._blocks.items()})
        result._blocks = {k: b for k, b in result._blocks.items() if b.rows}
        return result

    def clone(self) -> Moments:
        """Return a copy that shares no memory."""
        return self._like({k: cloned(b) for k, b in self._blocks.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Moments:
        """Return the moments on another device or in another dtype."""
        result = Moments(dtype=dtype or self.dtype, device=device or self.device)
        result.result_dtype, result.vector_target = self.result_dtype, self.vector_target
        result._blocks = {
            k: Block(b.rows, *(a.to(result.device, result.dtype) for a in b[1:])) for k, b in self._blocks.items()
        }
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors, strings and ints, safe for `torch.load(weights_only=True)`."""
        parts = [{"fold": k, **b._asdict()} for k, b in self.clone()._blocks.items()]
        names = {"dtype": self.dtype, "result_dtype": self.result_dtype}
        return {"blocks": parts, "vector_target": self.vector_target, **{k: str(v) for k, v in names.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned. A refused state leaves the moments as they were.

        Raises:
            ValueError: on what `state_dict` does not return.
        """
        try:
            dtypes = [DTYPES[state[name]] for name in ("dtype", "result_dtype")]
            parts = {p["fold"]: Block(*(p[name] for name in Block._fields)) for p in state["blocks"]}
            vector = bool(state["vector_target"])
            check_parts(parts)
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"`state` is not what `Moments.state_dict()` returns: {error!r}.") from None
        device = self.device or (next(iter(parts.values())).gram.device if parts else None)
        loaded = {k: Block(b.rows, *(a.to(device, dtypes[0], copy=True) for a in b[1:])) for k, b in parts.items()}
        self.dtype, self.result_dtype = dtypes
        self.device, self.vector_target, self._blocks = device, vector, loaded

    def __repr__(self) -> str:
        folds = f", folds={len(self.folds)}" if self.folds else ""
        sizes = f"n_samples={self.n_samples}, n_features={self.n_features}, n_targets={self.n_targets}"
        return f"Moments({sizes}{folds}, dtype={self.dtype}, device={self.device})"
