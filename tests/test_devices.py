"""Every public call on a CUDA device, pretended or real: it answers there, and as on the CPU."""

import ast
import importlib
import math
import pkgutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import device_calls
import matplotlib
import pytest
import torch
from pretended_cuda.marks import on_cuda
from torch import Tensor, nn

import torchridge
from torchridge.linear.ridge.solution.diagnosis import Diagnosis

matplotlib.use("Agg")

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

# How the answer was found, which is a device's own choice, and how near it is: no part of the answer.
WORK = {"solver", "reason", "n_iter", "gap", "residual", "check"}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """What a result holds, by where it is found in it."""
    if isinstance(value, nn.Module):
        value = dict(value.named_parameters())
    elif isinstance(value, torchridge.Moments):
        value = value.state_dict()
    elif isinstance(value, Diagnosis):
        value = dict(value)
    elif is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in WORK}
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in leaves(item, f"{path}.{name}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in leaves(item, f"{path}[{i}]").items()}
    return {path: value}


def assert_agree(got: Any, want: Any, tolerance: float, where: str) -> None:
    if isinstance(want, (bool, str, type(None), torch.dtype)) or not isinstance(want, (float, int, Tensor)):
        same = (
            got == want if not hasattr(want, "shape") else abs(got - want).max() <= tolerance * max(abs(want).max(), 1)
        )
        assert same, f"{where}: {got!r} against {want!r}"
        return
    got, want = (torch.as_tensor(a, device="cpu").detach().double() for a in (got, want))
    assert got.shape == want.shape, where
    assert got.isnan().equal(want.isnan()), f"{where}: NaN in other places"
    plain = want.isfinite()
    assert got[~plain].nan_to_num().equal(want[~plain].nan_to_num()), f"{where}: other infinities"
    size = max(float(want[plain].abs().max()) if plain.any() else 0.0, 1e-3)
    off = float((got[plain] - want[plain]).abs().max()) if plain.any() else 0.0
    assert off <= tolerance * size, f"{where}: {off:.2e} apart, of {size:.2e}"


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", device_calls.CALLS)
def test_a_call_answers_on_its_device_and_as_on_the_cpu(name: str, dtype: torch.dtype, device: torch.device) -> None:
    want = leaves(device_calls.run(name, torch.device("cpu"), dtype))
    got = leaves(device_calls.run(name, device, dtype))
    assert got.keys() == want.keys()
    elsewhere = [k for k, v in got.items() if isinstance(v, Tensor) and v.device.type != device.type]
    assert not elsewhere, f"on the host: {elsewhere}"
    for key, value in want.items():
        assert_agree(got[key], value, TOLERANCE[dtype], key or name)


def public_names() -> set[str]:
    modules = [m.name for m in pkgutil.walk_packages(torchridge.__path__, "torchridge.")]
    modules = ["torchridge", *(m for m in modules if not any(part.startswith("_") for part in m.split(".")))]
    names = {n for m in modules for n in getattr(importlib.import_module(m), "__all__", ())}
    return {n for n in names if not n.endswith("Warning")}


def test_every_public_name_is_called_on_a_device_or_says_why_not() -> None:
    tree = ast.parse(Path(device_calls.__file__).read_text())
    body = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    nodes = [node for part in body for node in ast.walk(part)]
    used = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    missing = public_names() - used - device_calls.EXEMPT.keys()
    assert not missing, f"not in the table of device_calls.py: {sorted(missing)}"
    assert all(math.isfinite(len(reason)) and reason for reason in device_calls.EXEMPT.values())
