"""What a solution is in a file: its fields by name, with its weights or its dual form."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchridge import _check
from torchridge.linear import saved
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.dual_solution import DualForm

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution


def save(solution: RidgeSolution, path: str | Path, names: dict[str, Any] | None, form: str) -> None:
    """Write a solution in the form "weight", "dual", or the one that it has, "auto"."""
    form = "dual" if form == "auto" and solution.dual is not None else "weight" if form == "auto" else form
    _check.option(form, "form", ("weight", "dual"))
    if form == "dual" and solution.dual is None:
        raise ValueError("`form`='dual': this solution holds weights. Use form='weight'.")
    left_out = {"diagnosis", "dual", *(["weight"] if form == "dual" else [])}
    values = {f.name: getattr(solution, f.name) for f in fields(solution) if f.name not in left_out}
    if form == "dual" and solution.dual is not None:
        values |= {"form": form, **{f"dual.{name}": value for name, value in solution.dual.state().items()}}
    values |= {f"diagnosis.{name}": value for name, value in dict(solution.diagnosis).items()}
    saved.write(path, solution.KIND, {k: v for k, v in values.items() if v is not None}, dict(names or {}), "path")


def fields_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a solution from the values of a file."""
    known = dict.fromkeys(("dof", "condition", "rank", "residual_variance", "unit_variance"))
    known |= {k.removeprefix("diagnosis."): values.pop(k) for k in [*values] if k.startswith("diagnosis.")}
    kept = {k.removeprefix("dual."): values.pop(k) for k in [*values] if k.startswith("dual.")}
    if values.pop("form", "weight") == "dual":
        values |= {"dual": DualForm.of_state(kept), "weight": None}
    return {"diagnosis": Diagnosis.of(**known), **values}
