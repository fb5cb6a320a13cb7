"""The recipe for Dask runs on worker processes, and asserts itself that it gives the moments of one process."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from files_of_rows import data

import torchridge
from torchridge import Moments

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_moments_of_dask_workers_are_those_of_one_process() -> None:
    path = str(Path(torchridge.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "moments_on_dask.py")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("20000 rows; the moments of the workers differ from those of one process by")


def test_moments_travel_between_processes() -> None:
    rows = data(100)
    sent = Moments().update(*rows)
    got = pickle.loads(pickle.dumps(sent))
    assert got.folds == sent.folds and torch.equal(got.gram, sent.gram)
    assert (got + sent).n_samples == 200
