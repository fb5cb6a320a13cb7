"""What a fitted estimator holds, in types that every format of files knows: dictionaries, arrays, numbers and names.

pickle would take tensors and solutions as they are; skops, which executes nothing, builds arrays but not tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge.estimators._input import Container
from torchridge.linear.logistic.solution import LogisticSolution
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.saving import values_of
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.moments.moments import Moments

_KIND = "torchridge"  # the key of a dictionary that stands for something else
_SOLUTIONS = {kind.__name__: kind for kind in (RidgeSolution, LogisticSolution)}
_HIDDEN = {torch.bfloat16: torch.int16}  # what NumPy has no name for, by what has its bits


def plain(value: Any) -> Any:
    """Return a value with everything of torch and torchridge in it as dictionaries of arrays."""
    if isinstance(value, Tensor) and value.layout is torch.strided and type(value) is Tensor:
        own = value.detach().cpu()
        array = (own.view(_HIDDEN[own.dtype]) if own.dtype in _HIDDEN else own).numpy()
        return {_KIND: "tensor", "array": array, "dtype": _name(value.dtype), "device": str(value.device)}
    if isinstance(value, torch.dtype):
        return {_KIND: "dtype", "name": _name(value)}
    if isinstance(value, torch.device):
        return {_KIND: "device", "name": str(value)}
    if isinstance(value, RidgeSolution):
        return {_KIND: "ridge", "values": plain(values_of(value, "weight" if value.dual is None else "dual"))}
    if type(value) in _SOLUTIONS.values():
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {_KIND: "solution", "class": type(value).__name__, "fields": fields}
    if isinstance(value, Diagnosis):
        names = value.keys()
        return {_KIND: "diagnosis", "known": {name: plain(value[name]) for name in names}}
    if isinstance(value, Moments):
        return {_KIND: "moments", "state": plain(value.state_dict())}
    if isinstance(value, Container):
        return {_KIND: "container", "fields": plain(value._asdict())}
    if type(value) is dict:
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if type(value) is list else value


def restored(value: Any) -> Any:
    """Return what `plain` was given."""
    if type(value) is list:
        return [restored(inner) for inner in value]
    if type(value) is not dict:
        return value
    if _KIND not in value:
        return {name: restored(inner) for name, inner in value.items()}
    return _MAKE[value[_KIND]](value)


def _tensor(value: dict[str, Any]) -> Tensor:
    array = np.asarray(value["array"])
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())  # a mapped file is not written to
    return tensor.view(getattr(torch, value["dtype"])).to(value["device"])


def _moments(value: dict[str, Any]) -> Moments:
    moments = Moments()
    moments.load_state_dict(restored(value["state"]))
    return moments


_MAKE: dict[str, Any] = {
    "tensor": _tensor,
    "dtype": lambda value: getattr(torch, value["name"]),
    "device": lambda value: torch.device(value["name"]),
    "ridge": lambda value: RidgeSolution(**RidgeSolution.fields_of(restored(value["values"]))),
    "solution": lambda value: _SOLUTIONS[value["class"]](**restored(value["fields"])),
    "diagnosis": lambda value: Diagnosis.of(**restored(value["known"])),
    "moments": _moments,
    "container": lambda value: Container(**restored(value["fields"])),
}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
