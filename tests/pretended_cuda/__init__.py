"""A CUDA device pretended on the CPU: what CUDA would refuse raises, and what a GPU would wait for is counted.

    python -m pretended_cuda pytest tests -k pretended     # in this process: for a debugger, or another checkout
    python -m pretended_cuda script.py                     # a script that finds one CUDA device

(with `tests` on PYTHONPATH). A plain `pytest` runs the same tests in a second process at the same time, and reports
each as its own. Nothing about speed, rounding or the order of sums on a GPU follows from it.
"""

from pretended_cuda.waits import HostWaits, Wait, host_waits

__all__ = ["HostWaits", "Wait", "host_waits"]
