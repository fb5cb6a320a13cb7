import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch
from pretended_cuda.install import installed
from pretended_cuda.outer import Outer, unavailable
from pretended_cuda.skips import skip_what_it_cannot_judge


def pytest_configure(config: pytest.Config) -> None:
    if not installed():
        config.pluginmanager.register(Outer(), "pretended_cuda_outer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_what_it_cannot_judge(items)


@pytest.fixture(params=["cpu", "pretended", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every test that takes a device runs on CPU, on a pretended CUDA device, and on CUDA where there is one."""
    if request.param == "pretended" and not installed():
        pytest.skip(unavailable() or "the pretended CUDA device runs in a process of its own")
    if request.param == "cuda" and (installed() or not torch.cuda.is_available()):
        pytest.skip("no CUDA device on this machine")
    return torch.device("cpu" if request.param == "cpu" else "cuda")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
