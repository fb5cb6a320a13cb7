"""What a solution is in a file: its fields by name, with its weights or its dual form."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchridge import _check
from torchridge.linear import saved
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.dual_solution import DualForm, EachVariance, of_spectrum

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution


def save(solution: RidgeSolution, path: str | Path, names: dict[str, Any] | None, form: str) -> None:
    """Write a solution in the form "weight", "dual", or the one that it has, "auto"."""
    form = "dual" if form == "auto" and solution.dual is not None else "weight" if form == "auto" else form
    _check.option(form, "form", ("weight", "dual"))
    if form == "dual" and solution.dual is None:
        raise ValueError("`form`='dual': this solution holds weights. Use form='weight'.")
    saved.write(path, solution.KIND, values_of(solution, form), dict(names or {}), "path")


def values_of(solution: RidgeSolution, form: str) -> dict[str, Any]:
    """Return what a file holds of a solution, by name: in the form "dual" no weights are made, nor what is as large."""
    left_out = {"diagnosis", "dual", *(["weight"] if form == "dual" else [])}
    values = {f.name: getattr(solution, f.name) for f in fields(solution) if f.name not in left_out}
    late: dict[str, EachVariance] = {}
    if form == "dual" and solution.dual is not None:
        values |= {"form": form, **{f"dual.{name}": value for name, value in solution.dual.state().items()}}
        late = solution.diagnosis.late
    diagnosis = {name: solution.diagnosis[name] for name in [*solution.diagnosis.keys()] if name not in late}
    for name, variance in late.items():
        diagnosis |= zip((f"{name}.basis", f"{name}.eigvals"), variance.spectrum(), strict=True)
    values |= {f"diagnosis.{name}": value for name, value in diagnosis.items()}
    return {name: value for name, value in values.items() if value is not None}


def fields_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a solution from the values of a file."""
    known: dict[str, Any] = dict.fromkeys(("dof", "condition", "rank", "residual_variance", "unit_variance"))
    known |= {k.removeprefix("diagnosis."): values.pop(k) for k in [*values] if k.startswith("diagnosis.")}
    kept = {k.removeprefix("dual."): values.pop(k) for k in [*values] if k.startswith("dual.")}
    if values.pop("form", "weight") == "dual":
        form, name = DualForm.of_state(kept), "unit_variance"
        values |= {"dual": form, "weight": None}
        if f"{name}.basis" in known:
            basis, eigvals = known.pop(f"{name}.basis"), known.pop(f"{name}.eigvals")
            known[name] = of_spectrum(form, values["alpha"], basis, eigvals)
    return {"diagnosis": Diagnosis.of(**known), **values}
