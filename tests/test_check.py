"""The checks say what is wrong of a value without dimensions, too."""

import math
import subprocess
import sys

import pytest
import torch

from torchridge import _check, ridge


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_a_strength_that_is_no_number(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"`alpha` holds (NaN|infinity)"):
        ridge(torch.eye(3), torch.ones(3), alpha)


MEMORY = """
import torch
from torchridge import _check

def memory(name):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name)) * 1024

rows = torch.zeros(4000, 16000).uniform_()
_check.finite(rows[:2000], "rows")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak starts anew
before = memory("VmRSS")
_check.finite(rows, "rows")
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_looking_for_nan_copies_no_float32_rows() -> None:
    """A sum in float64 would copy all of the 244 MiB, or pile up copies of their parts."""
    run = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    assert int(run.stdout) <= 32 * 2**20


@pytest.mark.parametrize("shape", [(3000, 1000), (3_000_000,), (2, 2000, 1000)])
def test_a_last_nan_or_infinity_among_many_numbers_is_seen(shape: tuple[int, ...]) -> None:
    rows = torch.ones(shape)
    _check.finite(rows, "rows")
    for bad in (math.nan, math.inf, -math.inf):
        rows.view(-1)[-1] = bad
        with pytest.raises(ValueError, match="`rows` holds"):
            _check.finite(rows, "rows")
