"""Runs the tests of a list in this process, with the pretended device or not, and writes each report as JSON."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest

from pretended_cuda.install import install
from pretended_cuda.outer import PARAMETER


class Recorder:
    """Keeps the tests that were asked for, and writes down when each starts and what pytest reports of it."""

    def __init__(self, wanted: list[str], out: TextIO) -> None:
        self.wanted = {name: i for i, name in enumerate(wanted)}
        self.out = out

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.wanted), key=lambda i: self.wanted[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"start": nodeid})

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self.config = item.config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self._write({"report": data})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write({"finish": nodeid})

    def _write(self, line: dict[str, Any]) -> None:
        print(json.dumps(line, default=str), file=self.out, flush=True)


def main(kind: str, names: str, reports: str, *arguments: str) -> int:
    if kind == PARAMETER:
        install()
    wanted = json.loads(Path(names).read_text())
    files = list(dict.fromkeys(name.split("::")[0] for name in wanted))
    with open(reports, "w") as out:
        return pytest.main([*arguments, *files], plugins=[Recorder(wanted, out)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
