"""Interrupted and resumed: bit for bit. Saved and loaded: the same predictions, and damaged files refused."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchridge.probing import ProbeReport, probe_layers

OPTIONS: dict[str, Any] = {
    "task": "classification",
    "readout": ["ridge", "lda"],
    "cv": 3,
    "control": True,
    "class_weight": "balanced",
    "chunk_rows": 40,
    "checkpoint_every": 1,
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6))


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    sizes = [20, 12, 20, 7, 20, 20]
    return [
        (torch.randn(n, 5, generator=g), torch.randint(2 + i, (n,), generator=g), torch.randint(9, (n,), generator=g))
        for i, n in enumerate(sizes)
    ]


def interrupted(after: int) -> Iterator[Any]:
    yield from batches()[:after]
    raise KeyboardInterrupt


def contents(report: ProbeReport) -> tuple[dict[str, Any], list[Any]]:
    heads = {k: v for k, v in vars(report).items() if k != "probes"}
    return heads, [vars(p) for p in report]


def assert_identical(a: ProbeReport, b: ProbeReport) -> None:
    (head_a, probes_a), (head_b, probes_b) = contents(a), contents(b)
    assert head_a == head_b
    for one, other in zip(probes_a, probes_b, strict=True):
        for name, value in one.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, other[name]), name
            elif name == "fold_scores":
                assert all(torch.equal(v, other[name][n]) for n, v in value.items())
            else:
                assert value == other[name], name


@pytest.mark.parametrize("after", range(1, 7))
def test_resumed_bit_for_bit(after: int, tmp_path: Path) -> None:
    whole = probe_layers(model(), batches(), "*", **{**OPTIONS, "checkpoint_every": 100})
    path = tmp_path / "probe.ckpt"
    with pytest.raises(KeyboardInterrupt):
        probe_layers(model(), interrupted(after), "*", checkpoint=path, **OPTIONS)
    assert_identical(probe_layers(model(), batches(), "*", checkpoint=path, **OPTIONS), whole)


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.ckpt"
    with pytest.raises(KeyboardInterrupt):
        probe_layers(model(), interrupted(3), "*", checkpoint=path, **OPTIONS)
    with pytest.raises(ValueError, match="the batches differ"):
        probe_layers(model(), batches()[::-1], "*", checkpoint=path, **OPTIONS)
    with pytest.raises(ValueError, match=r"`checkpoint`: probe.ckpt was written with other options \(\['layers'\]\)"):
        probe_layers(model(), batches(), "0", checkpoint=path, **OPTIONS)
    other = model()
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"other options \(\['model'\]\)"):
        probe_layers(other, batches(), "*", checkpoint=path, **OPTIONS)
    changed = batches()
    changed[1][0][0, 0] += 1e-3  # the labels are the same
    with pytest.raises(ValueError, match="the batches differ"):
        probe_layers(model(), changed, "*", checkpoint=path, **OPTIONS)
    ids = torch.arange(99) % 3
    with pytest.raises(ValueError, match=r"other options \(\['cv'\]\)"):
        probe_layers(model(), batches(), "*", checkpoint=path, **{**OPTIONS, "cv": ids})


@pytest.fixture
def saved(tmp_path: Path) -> tuple[ProbeReport, Path]:
    report = probe_layers(model(), batches(), "*", bootstrap=20, **OPTIONS)
    path = tmp_path / "report.safetensors"
    report.save(path)
    return report, path


def test_saved_and_loaded(saved: tuple[ProbeReport, Path]) -> None:
    report, path = saved
    again = ProbeReport.load(path)
    assert_identical(again, report)
    assert again.table() == report.table()
    X = torch.randn(9, 6)
    assert torch.equal(again.predict(X, "2", "lda"), report.predict(X, "2", "lda"))
    with torch.no_grad():
        linear = again.to_linear("2", "lda")(X)
    torch.testing.assert_close(linear.double(), report.of("2", "lda").decision_function(X), rtol=1e-4, atol=1e-4)


def test_truncated_and_tampered_files_are_refused(saved: tuple[ProbeReport, Path], tmp_path: Path) -> None:
    _, path = saved
    data = path.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        bad.write_bytes(data[:size])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            ProbeReport.load(bad)
    for at in (len(data) - 1, len(data) - 400):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ValueError, match="altered after it was saved"):
            ProbeReport.load(bad)
    bad.write_bytes(data.replace(b"control", b"cOntrol"))
    with pytest.raises(ValueError, match="altered after it was saved"):
        ProbeReport.load(bad)
    with pytest.raises(FileNotFoundError):
        ProbeReport.load(tmp_path / "nothing")


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    bad = tmp_path / "bad"
    bad.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a safetensors file"):
        ProbeReport.load(bad)
    torch.save({"a": Bomb()}, bad)
    with pytest.raises(ValueError, match="not a safetensors file"):
        ProbeReport.load(bad)
    assert not (tmp_path / "executed").exists()
    header = json.dumps({"__metadata__": {"kind": "other"}}).encode()
    bad.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="should be a file of kind"):
        ProbeReport.load(bad)
