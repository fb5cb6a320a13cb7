"""Runs the pretended device's tests in a second process while the others run here, each reported as its own.

The device must be there before torch is imported, and would change what torch does for the ordinary tests: so it has
its own process, started once the tests are collected. Those tests come last here, when most reports have come in.
If there are many tests, those of a few folders run in a third: the ordinary ones take twice as long as the pretended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from shared_answers import FOLDER

from pretended_cuda.build import Unavailable, library
from pretended_cuda.install import installed

PARAMETER = "pretended"
NAME = "pretended_cuda_outer"  # of the plugin
HERE, APART = "ordinary", "ordinary, apart"

# Folders whose ordinary tests run apart, about half of their time, if there are as many as this.
FOLDERS, MANY = ("estimators", "over_ranks"), 2000

TESTS = Path(__file__).parent.parent


def device_of(item: pytest.Item) -> str | None:
    """The device that a test is to run on, by the parameter of its `device` fixture."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("device")


def is_pretended(item: pytest.Item) -> bool:
    """Whether this is a test's variant for the pretended device, to be run in the other process."""
    return device_of(item) == PARAMETER and not installed()


@cache
def unavailable() -> str | None:
    """Return why there is no pretended device here, or None; built at the first call."""
    try:
        library()
    except Unavailable as reason:
        return str(reason)
    return None


class Process:
    """Another process: its reports by test, as they come in."""

    def __init__(self, config: pytest.Config, kind: str, names: list[str]) -> None:
        self.config, self.kind, self.waiting = config, kind, names
        self.reports: dict[str, list[pytest.TestReport]] = {}
        self.finished: set[str] = set()
        self.folder = tempfile.TemporaryDirectory(prefix="pretended_cuda_")
        self._start()

    def _start(self) -> None:
        folder = Path(self.folder.name)
        (folder / "names.json").write_text(json.dumps(self.waiting))
        self.lines, self.part, self.running = folder / "reports.jsonl", "", ""
        self.lines.write_text("")
        self.read_to = 0
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        environment.pop("LD_PRELOAD", None)  # which may bring a device of its own
        command = [sys.executable, "-m", "pretended_cuda.inner", self.kind, str(folder / "names.json"), str(self.lines)]
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            f"no:{NAME}",
            f"--rootdir={self.config.rootpath}",
            f"--tb={self.config.option.tbstyle}",
        ]
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(
                [*command, *options], cwd=self.config.rootpath, env=environment, stdout=log, stderr=log
            )

    def of(self, name: str) -> list[pytest.TestReport]:
        """Wait for the reports of one test."""
        while name not in self.finished:
            ended = self.process.poll() is not None
            self._read()
            if name not in self.finished and ended:
                self._ended(name)
            elif name not in self.finished:
                time.sleep(0.05)
        return self.reports.get(name, [])

    def _read(self) -> None:
        with open(self.lines) as lines:
            lines.seek(self.read_to)
            text = self.part + lines.read()
            self.read_to = lines.tell()
        *whole, self.part = text.split("\n")
        for line in map(json.loads, whole):
            self._hear(line)

    def _hear(self, line: dict[str, Any]) -> None:
        if "start" in line:
            self.running = line["start"]
        elif "report" in line:
            report = self.config.hook.pytest_report_from_serializable(config=self.config, data=line["report"])
            self.reports.setdefault(report.nodeid, []).append(report)
        else:
            self.finished.add(line["finish"])

    def _ended(self, name: str) -> None:
        """Blame the test that ran when the process ended, or else the one waited for; go on with the rest."""
        lost = self.running if self.running and self.running not in self.finished else name
        log = (Path(self.folder.name) / "log").read_text(errors="replace")[-4000:]
        text = f"the process of the {self.kind} tests ended (exit {self.process.returncode}) and not this test:\n{log}"
        report = pytest.TestReport(lost, (lost.split("::")[0], 0, lost), {}, "failed", text, "call")
        self.reports[lost] = [report]
        self.finished.add(lost)
        self.waiting = [n for n in self.waiting if n not in self.finished]
        if self.waiting:
            self._start()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


class Outer:
    """The plugin of the ordinary process."""

    def __init__(self) -> None:
        self.processes: dict[str, Process] = {}
        self.many = False

    def place(self, item: pytest.Item) -> str:
        """Where a test runs."""
        if is_pretended(item):
            return PARAMETER
        return APART if self.many and item.path.parent.name in FOLDERS else HERE

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        watched = config.option.usepdb or config.option.capture == "no"
        self.many = len(items) - sum(map(is_pretended, items)) >= MANY and not watched
        items.sort(key=lambda item: (HERE, APART, PARAMETER).index(self.place(item)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        self.answers = tempfile.TemporaryDirectory(prefix="answers_")
        os.environ[FOLDER] = self.answers.name
        for kind in (PARAMETER, APART):
            names = [item.nodeid for item in session.items if self.place(item) == kind]
            if names and (kind == APART or unavailable() is None):
                self.processes[kind] = Process(session.config, kind, names)

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        process = self.processes.get(self.place(item))
        if process is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in process.of(item.nodeid):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        try:
            return (yield)
        finally:
            for process in self.processes.values():
                process.close()
            if os.environ.pop(FOLDER, None) is not None:
                self.answers.cleanup()
