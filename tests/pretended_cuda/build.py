"""Builds the pretended device, once for each torch and each state of its source, without importing torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "device.cpp"
CACHE = HERE.parent.parent / "build" / "pretended_cuda"  # a folder that git ignores


class Unavailable(RuntimeError):
    """Why there is no pretended device here."""


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("torch is not installed")
    return Path(spec.submodule_search_locations[0])


def compiler() -> str:
    named = os.environ.get("CXX")
    found = next((path for name in (named, "g++", "c++", "clang++") if name and (path := shutil.which(name))), None)
    if found is None:
        raise Unavailable("no C++ compiler on this machine to build the pretended CUDA device with")
    return found


def library() -> Path:
    """Return the built library; build it if need be (about 20 seconds)."""
    if sys.platform != "linux":
        raise Unavailable(f"the pretended CUDA device is built on Linux alone, not on {sys.platform}")
    folder, version = torch_folder(), importlib.metadata.version("torch")
    if (folder / "lib" / "libtorch_cuda.so").exists():
        raise Unavailable("this torch is built with CUDA, of which only a build for the CPU can pretend")
    key = hashlib.sha256(SOURCE.read_bytes() + str(folder).encode()).hexdigest()[:12]
    built = CACHE / f"{version}-{key}.so"
    if not built.exists():
        compile_library(compiler(), folder, built)
    return built


def compile_library(cxx: str, torch: Path, built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:  # so that no one loads a half-written file
        draft = Path(scratch) / built.name
        includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        links = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
        flags = ["-O1", "-fPIC", "-shared", "-std=c++20", "-w"]
        done = subprocess.run(
            [cxx, *flags, *includes, "-o", str(draft), str(SOURCE), *links], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"{cxx} could not build the pretended CUDA device:\n{done.stderr[-4000:]}")
        draft.replace(built)
