"""Every bad file is an error that names it: no process dies, and nothing is raised but ValueError and OSError."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_files import CASES, CSV, arrow_bytes, npy, safetensors

from torchridge import RidgeSolution, _files, open_rows, stream_moments
from torchridge.cli import model
from torchridge.probing import ProbeReport
from torchridge.streams import checkpoint


def write(folder: Path, name: str) -> Path:
    content = CASES[name][0]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content())
    return folder / name


def read(path: Path) -> Any:
    """Read a file whole, with a target that files of its kind can have."""
    target = {".npy": 0, ".safetensors": None}.get(path.suffix, "y")
    source = open_rows(path, target=target)
    if target is None:
        return list(source)
    return stream_moments(source, cv=2)


@pytest.mark.parametrize("without_pyarrow", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_named(name: str, without_pyarrow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, name)
    if without_pyarrow:
        if path.suffix in (".parquet", ".feather", ".arrow"):
            pytest.skip("is read by pyarrow alone")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises((ValueError, OSError), match=re.escape(name) + ".*" + re.escape(CASES[name][1])) as caught:
        read(path)
    assert type(caught.value) in (ValueError, FileNotFoundError), type(caught.value)


def test_there_are_a_hundred_of_them() -> None:
    assert len(CASES) >= 100


SEEDS = {
    "r.csv": CSV,
    "r.npy": npy(np.arange(60.0).reshape(20, 3)),
    "r.safetensors": safetensors({"X": {"dtype": "F64", "shape": [8, 2], "data_offsets": [0, 128]}}),
    "r.parquet": None,
    "r.feather": None,
}


@pytest.mark.parametrize("name", SEEDS)
def test_whatever_bytes_are_changed_nothing_else_is_raised(name: str, tmp_path: Path) -> None:
    seed = SEEDS[name] or arrow_bytes(name.partition(".")[2])
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(seed)
        for at in rng.integers(len(seed), size=rng.integers(1, 6)):
            content[at] = rng.integers(256)
        if rng.random() < 0.3:
            content = content[: rng.integers(len(content))]
        (tmp_path / name).write_bytes(bytes(content))
        try:
            read(tmp_path / name)
        except (ValueError, OSError) as error:
            assert name in str(error)


CUT = """
    import sys, numpy as np, torch
    from safetensors.torch import save_file
    from torchridge import open_rows, stream_moments
    from torchridge.solvers.moments.moments import Moments

    folder, X, said = sys.argv[1], np.ones((4000, 30)), []
    options = {"target": np.ones(4000)}

    def attempt(path, source, middle):
        size, kept, calls = 2000 if middle else 0, Moments._update, []
        if not middle:
            open(path, "r+b").truncate(100)

        def update(self, *rest, **named):
            calls.append(1)
            if middle and len(calls) == 2:
                open(path, "r+b").truncate(100)  # a batch is summed, and another is read ahead
            return kept(self, *rest, **named)

        Moments._update = update
        try:
            stream_moments(source, batch_rows=100)
        except (ValueError, OSError) as error:
            said.append(str(error))
        finally:
            Moments._update = kept

    for middle in (False, True):
        for kind in ("whole.npy", "fortran.npy", "matrix.npy", "memmap.npy", "slice.npy", "r.safetensors"):
            path = f"{folder}/{middle}-{kind}"
            if kind == "r.safetensors":
                save_file({"X": torch.from_numpy(X), "y": torch.ones(4000)}, path)
                source = open_rows(path, features="X", target="y")
            else:
                np.save(path, np.asfortranarray(X) if kind == "fortran.npy" else X)
                mapped = np.load(path, mmap_mode="r")
                source = {
                    "memmap.npy": lambda: open_rows(mapped, **options),
                    "slice.npy": lambda: open_rows(mapped[:, 2:20], **options),
                    "matrix.npy": lambda: open_rows(path, target=3),
                }.get(kind, lambda: open_rows(path, **options))()
            attempt(path, source, middle)
    assert len(said) == 12 and all("was cut short after it was opened" in text for text in said), said
    print("alive")
"""


def test_a_file_that_is_cut_short_after_it_was_opened_ends_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CUT), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


def crafted(path: Path, kind: str, content: Any, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A file whose digest fits, and whose content does not."""
    _files.write(path, kind, tensors or {"a": torch.ones(2)}, content)
    return path


CONTENTS: list[Any] = [
    {},
    [],
    None,
    3,
    {"about": 3, "at": 3, "blocks": 3},
    {"about": {}, "at": [1], "blocks": []},
    {"about": {}, "at": [-1, ""], "blocks": [{}], "probes": [{}], "features": 3, "targets": 3},
    {"about": {}, "at": ["x", ""], "blocks": [{"fold": "x"}], "probes": 3},
    {"about": {}, "at": [1, ""], "blocks": [], "probes": [{"scores": ["a"]}]},
]


@pytest.mark.parametrize("content", CONTENTS, ids=json.dumps)
@pytest.mark.parametrize("reader", ["checkpoint", "model", "report"])
def test_a_crafted_file_is_refused_by_name(reader: str, content: Any, tmp_path: Path) -> None:
    kinds = {"checkpoint": checkpoint.KIND, "model": RidgeSolution.KIND, "report": "torchridge.probe-report/2"}
    path = crafted(tmp_path / "c.st", kinds[reader], content)
    calls = {
        "checkpoint": lambda: stream_moments([(torch.ones(3, 2), torch.ones(3))], checkpoint=path),
        "model": lambda: model.read(path),
        "report": lambda: ProbeReport.load(path),
    }
    with pytest.raises(ValueError, match=r"c\.st"):
        calls[reader]()


@pytest.mark.parametrize("reader", ["checkpoint", "model", "report"])
@pytest.mark.parametrize("name", [name for name in CASES if name.endswith((".safetensors", ".npy"))])
def test_other_files_are_no_checkpoint_model_or_report(reader: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name)
    calls = {
        "checkpoint": lambda: stream_moments([(torch.ones(3, 2), torch.ones(3))], checkpoint=path),
        "model": lambda: model.read(path),
        "report": lambda: ProbeReport.load(path),
    }
    with pytest.raises(ValueError, match=re.escape(name)):
        calls[reader]()
