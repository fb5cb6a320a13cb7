"""The table of solvers: how each fits a dense problem, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Solver(NamedTuple):
    """A way to solve one problem of rows or moments at its strengths."""

    fit: Callable[..., Any]  # of a `Dense` problem and the `Choice` that took it, to a `Fit`
    rows: bool = False  # whether it needs the rows, which moments do not hold
    shared: bool = False  # whether all targets must share their strengths
    penalized: bool = False  # whether every feature must be penalized


# Filled when the solvers are imported: a new one is a file and a line there.
SOLVERS: dict[str, Solver] = {}
