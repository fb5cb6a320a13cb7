"""What the benchmarks share: medians of alternating runs in one process, the machine's description, JSON results."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def environment(changed: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables set, PYTHONPATH before what it holds."""
    paths = [changed.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
    return {**os.environ, **changed, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def seconds(call: Callable[[], Any]) -> float:
    """Time one call, the device's queue drained on both sides."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(
    calls: dict[str, Callable[[], Any]], runs: int | dict[str, int] = 5, warmup: bool = True
) -> dict[str, float]:
    """Run the calls in turn and return the median seconds of each."""
    wanted = runs if isinstance(runs, dict) else dict.fromkeys(calls, runs)
    times: dict[str, list[float]] = {name: [] for name in calls}
    if warmup:
        for name, call in calls.items():
            if wanted[name] > 1:
                call()
    for i in range(max(wanted.values())):
        for name, call in calls.items():
            if i < wanted[name]:
                times[name].append(seconds(call))
    return {name: statistics.median(t) for name, t in times.items()}


def resident(reset: bool = False) -> float:
    """Return the peak of this process's memory in MiB; if `reset`, count it from now on, where Linux offers that."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def save(name: str, results: dict[str, Any]) -> Path:
    """Write results with the machine's description, over those of the same cases; the device is in the file's name."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{'cuda' if torch.cuda.is_available() else 'cpu'}.json"
    before = json.loads(path.read_text())["results"] if path.exists() else {}
    path.write_text(json.dumps({"machine": machine(), "results": {**before, **results}}, indent=2) + "\n")
    return path


def report(title: str, times: dict[str, float], ours: str, short: str = "ours") -> dict[str, Any]:
    """Print medians and ratios to ours, which the table calls `short`, and return them."""
    print(title)
    for name, value in times.items():
        ratio = "" if name == ours else f"   {value / times[ours]:8.2f} × {short}"
        print(f"    {name:48s} {value:9.4f} s{ratio}")
    return {"seconds": times, f"ratio_to_{short}": {n: v / times[ours] for n, v in times.items() if n != ours}}
