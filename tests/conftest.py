import os
from collections import Counter

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch
from pretended_cuda.install import installed
from pretended_cuda.outer import NAME, Outer, device_of, unavailable
from pretended_cuda.skips import skip_what_it_cannot_judge

DEVICES = ("cpu", "pretended", "cuda")


def pytest_configure(config: pytest.Config) -> None:
    if not installed():
        config.pluginmanager.register(Outer(), NAME)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=DEVICES, help="only the tests that take a device, and only on this one")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted := config.getoption("device"):
        kept = [item for item in items if device_of(item) == wanted]
        config.hook.pytest_deselected(items=[item for item in items if device_of(item) != wanted])
        items[:] = kept
    skip_what_it_cannot_judge(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why tests were skipped: how many for each reason."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        if isinstance(report.longrepr, tuple | list)
        else str(report.longrepr)
        for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.write_sep("=", "skipped, and why")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:5d}  {reason}")


@pytest.fixture(params=DEVICES)
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
