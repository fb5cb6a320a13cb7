"""What the pretended device cannot judge: tests by name, each with the reason why only a real one could."""

from fnmatch import fnmatch

import pytest

from pretended_cuda.outer import PARAMETER, device_of

COMPILED = "inductor compiles for a GPU, with Triton"
ORDER = "CUDA sums as a tree, and the CPU's kernels in an order of their own"

SKIPS = {
    "solvers/test_gradients.py::test_compiled_without_a_graph_break[[]*-inductor]": COMPILED,
    "training/test_sums.py::test_rounding_does_not_pile_up_in_equal_elements[[]pretended-1048579-*]": ORDER,
}


def skip_what_it_cannot_judge(items: list[pytest.Item]) -> None:
    for item in items:
        if device_of(item) == PARAMETER:
            for pattern, reason in SKIPS.items():
                if fnmatch(item.nodeid.partition("/")[2], pattern):
                    item.add_marker(pytest.mark.skip(reason=f"the pretended device cannot judge it: {reason}"))
