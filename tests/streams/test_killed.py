"""Whatever ends a pass, its checkpoint is whole, and the pass resumed from it gives the same numbers, bit for bit."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import kill_points
import pytest
import torch

from torchridge import _files, stream_moments
from torchridge._files.replacement import replacing
from torchridge.probing import ProbeReport, probe_layers

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="points are reached in forked processes")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("killed")
    run = subprocess.run(
        [sys.executable, kill_points.__file__, str(folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return list(json.loads(run.stdout))


@posix
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_pass_that_is_killed_at_any_point_goes_on_bit_for_bit(how: str, results: list[dict[str, Any]]) -> None:
    mine = [r for r in results if r["how"] == how]
    assert len(mine) >= 30
    for r in mine:
        assert r["ended"] == getattr(signal, how), r
        assert len(r["left"]) <= 1 and r["after"] == [] and r["same"], r
    assert any(r["left"] for r in mine) and any(r["there"] for r in mine) and not mine[0]["there"]


@posix
def test_a_full_disk_leaves_what_was_there_and_no_part(results: list[dict[str, Any]]) -> None:
    mine = [r for r in results if r["how"] == "full disk"]
    assert len(mine) >= 30
    for r in mine:
        assert r["left"] == [] and r["after"] == [] and r["same"], r
    told = [r for r in mine if r["ended"]]
    assert len(told) > 15  # the others are of the folder, which not every file system synchronizes
    for r in told:
        assert "`checkpoint`: " in r["ended"] and "c.st' cannot be written: No space left" in r["ended"], r


def test_two_writers_of_one_file_never_mix_and_leave_no_part(tmp_path: Path) -> None:
    path, together = tmp_path / "c.st", threading.Barrier(2)
    tensors = [{"a": torch.full((5000,), float(i))} for i in range(2)]

    def write(i: int) -> None:
        for _ in range(20):
            together.wait(60)
            _files.write(path, "kind", tensors[i], {"i": i})

    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            found, content = _files.read(path, "kind")
            assert found["a"].equal(tensors[content["i"]]["a"])
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["c.st"]


def test_two_passes_with_one_checkpoint_leave_a_whole_one(tmp_path: Path) -> None:
    path, got = tmp_path / "c.st", []
    threads = [threading.Thread(target=lambda: got.append(kill_points.one_pass(path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = stream_moments(list(kill_points.batches()), cv=4)
    assert len(got) == 2 and all(m.gram.equal(want.gram) for m in got)
    assert kill_points.one_pass(path).gram.equal(want.gram) and os.listdir(tmp_path) == ["c.st"]


def test_a_link_keeps_pointing_and_the_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.st", tmp_path / "c.st"
    target.touch(mode=0o640)
    link.symlink_to(target)
    _files.write(link, "kind", {"a": torch.ones(2)}, {})
    assert link.is_symlink() and _files.read(target, "kind")[0]["a"].equal(torch.ones(2))
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [p.name for p in target.parent.iterdir()] == ["real.st"]


def test_the_file_of_a_living_writer_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "c.st"
    with replacing(path, "path") as slow:
        slow.write(b"slow")
        with replacing(path, "path") as fast:
            fast.write(b"fast")
        assert path.read_bytes() == b"fast"
    assert path.read_bytes() == b"slow" and os.listdir(tmp_path) == ["c.st"]


def test_what_others_call_their_files_is_left_alone(tmp_path: Path) -> None:
    for name in ("c.st.part", "c.st.notes.part", "d.st.0123456789abcdef.part", "c.st.0123456789abcdef.part"):
        (tmp_path / name).touch()
    _files.write(tmp_path / "c.st", "kind", {"a": torch.ones(2)}, {})
    assert sorted(os.listdir(tmp_path)) == ["c.st", "c.st.notes.part", "c.st.part", "d.st.0123456789abcdef.part"]


def test_a_name_as_long_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120 + ".st")
    _files.write(path, "kind", {"a": torch.ones(2)}, {})
    assert os.listdir(tmp_path) == [path.name]


def test_a_device_is_no_place_for_a_file() -> None:
    with pytest.raises(OSError, match="`checkpoint`: '/dev/null' is a device or a pipe"):
        stream_moments([(torch.ones(3, 2), torch.ones(3))], checkpoint="/dev/null")


def test_a_probe_of_a_full_disk_leaves_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [(torch.randn(20, 3), torch.arange(20) % 2) for _ in range(4)]
    model, path = torch.nn.Sequential(torch.nn.Linear(3, 3)), tmp_path / "p.st"
    options: dict[str, Any] = {"task": "classification", "cv": 2, "checkpoint": path, "checkpoint_every": 1}
    probe_layers(model, batches[:2], "*", **options)
    before = path.read_bytes()

    def no_room(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchridge._files.replacement.os.fsync", no_room)
    with pytest.raises(OSError, match=r"`checkpoint`.*cannot be written"):
        probe_layers(model, batches, "*", **options)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.st"]
    monkeypatch.undo()
    assert isinstance(probe_layers(model, batches, "*", **options), ProbeReport)
