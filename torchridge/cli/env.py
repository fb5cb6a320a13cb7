"""`torchridge env`: what a bug report needs to know of the machine."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from torchridge.cli import output

_PACKAGES = (
    "torchridge",
    "torch",
    "numpy",
    "scikit-learn",
    "safetensors",
    "tqdm",
    "pyarrow",
    "matplotlib",
    "tensorboard",
)


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("env", help="versions and devices", description=__doc__.split(":", 1)[1])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, flags={})


def run(options: argparse.Namespace) -> None:
    """Print versions and devices."""
    found = environment()
    print(output.to_json(found) if options.json else "\n".join(f"{name:14s}{value}" for name, value in found.items()))


def environment() -> dict[str, str]:
    """Return versions, devices and threads."""
    result = {"python": platform.python_version(), "platform": platform.platform()}
    result |= {name: _version(name) for name in _PACKAGES}
    result["threads"] = str(torch.get_num_threads())
    result["cuda"] = f"{torch.version.cuda}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "none"
    return result


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
