"""The benchmark for CUDA runs from end to end at a small size, and refuses a machine without a device."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pretended_cuda.marks import on_cuda

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PLAIN = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=BENCHMARKS, env=PLAIN
    )


STEPS = [
    "tests",
    "products",
    "factorizations",
    "batches",
    "logistic_path",
    "probes",
    "targets",
    "waits",
    "folds_bfloat16",
    "folds_float32",
]


@on_cuda
@pytest.mark.parametrize("name", STEPS)
def test_each_step_runs(name: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("one_device", monkeypatch)
    assert list(module.STEPS) == STEPS
    monkeypatch.setattr(module.harness, "RESULTS", tmp_path)
    assert module.main([name, "--small"]) == 0
    saved: dict[str, Any] = json.loads((tmp_path / "device-cuda.json").read_text())["results"]
    assert list(saved) == [name] and saved[name]["step_seconds"] > 0
    if name == "tests":
        assert saved[name]["finished"] and saved[name]["counts"]["passed"] >= 1


@on_cuda
def test_what_the_time_does_not_suffice_for_is_named(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("one_device", monkeypatch)
    monkeypatch.setattr(module.harness, "RESULTS", tmp_path)
    assert module.main(["probes", "--small", "--minutes", "0"]) == 0
    saved = json.loads((tmp_path / "device-cuda.json").read_text())["results"]
    assert saved == {"probes": {"not_reached": "after 0 minutes"}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device on this machine")
def test_it_refuses_a_machine_without_cuda() -> None:
    done = python(str(BENCHMARKS / "cuda.py"))
    assert done.returncode == 2 and "needs a CUDA device" in done.stderr and not done.stdout


def test_its_name_does_not_stand_before_the_package_that_torch_imports(tmp_path: Path) -> None:
    asked = "import torch, cuda.bindings as b; print(b.__file__)"
    assert "No module named 'cuda" in python("-c", asked).stderr or python("-c", asked).returncode == 0
    package = tmp_path / "cuda" / "bindings"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    found = python(
        "-c", f"import sys; sys.path.append({str(tmp_path)!r}); import cuda.bindings as b; print(b.__file__)"
    )
    assert found.returncode == 0 and "bindings" in found.stdout, found.stderr
