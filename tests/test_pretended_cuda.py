"""What the pretended device promises, held to real CUDA too where there is one; and how its tests are reported."""

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_cuda import build
from pretended_cuda.marks import on_cuda
from pretended_cuda.outer import TESTS, unavailable
from torch import Tensor, nn


def rows(device: torch.device) -> Tensor:
    return torch.arange(12.0, device=device).reshape(4, 3)


def into_its_transpose(square: Tensor) -> Tensor:
    return square.copy_(square.T)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "a sum over devices": lambda x: x + torch.ones(3),
    "a sum into the host": lambda x: torch.ones(4, 3).add_(x),
    "a scalar of the host changed by the device": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "a product over devices": lambda x: x @ torch.ones(3, 2),
    "rows joined over devices": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "an index of the device into the host": lambda x: torch.ones(4)[torch.tensor([0, 1], device=x.device)],
    "values of the host put into the device": lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1, 3)),
    "gather by an index of the host": lambda x: x.gather(1, torch.zeros(4, 1, dtype=torch.long)),
    "numpy": lambda x: x.numpy(),
    "an array of it": lambda x: __import__("numpy").asarray(x),
    "a product of integers": lambda x: x.long() @ x.long().T,
    "a product of integers in batches": lambda x: torch.bmm(x.long()[None], x.long().T[None]),
    "a driver that CUDA lacks": lambda x: torch.linalg.lstsq(x, x, driver="gelsd"),
    "a generator of the host": lambda x: torch.randn(3, device=x.device, generator=torch.Generator()),
    "a generator of the device on the host": lambda x: torch.randn(3, generator=torch.Generator(x.device)),
    "a histogram that the CPU alone has": lambda x: torch.histogram(x, 3),
    "a matrix copied into its own transpose": lambda x: into_its_transpose(x[:3].clone()),
    "a gradient from another device": lambda x: x.clone().requires_grad_().sum().backward(torch.tensor([1.0])),
}


@on_cuda
@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_raises(name: str, device: torch.device) -> None:
    x = rows(device)
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[name](x)


@on_cuda
def test_a_read_only_overlap_is_no_fault(device: torch.device) -> None:
    x = rows(device)
    x[:2].copy_(x[2:])
    assert x.tolist()[:2] == x.tolist()[2:]
    x += x  # the same elements, each by its own thread
    assert x.tolist()[3] == [18.0, 20.0, 22.0]


@on_cuda
def test_views_share_memory_and_copies_do_not(device: torch.device) -> None:
    x = rows(device)
    x[1:, :2].T.zero_()
    assert x.tolist() == [[0, 1, 2], [0, 0, 5], [0, 0, 8], [0, 0, 11]]
    host = x.cpu()
    host.fill_(7)
    assert x[0, 1] == 1 and x.to(device) is x and x.to(device, copy=True).data_ptr() != x.data_ptr()
    assert x.untyped_storage().data_ptr() == x[2:].untyped_storage().data_ptr() and x.is_cuda


@on_cuda
def test_sizes_change_in_place_and_into_out(device: torch.device) -> None:
    x, out = rows(device), torch.empty(0, device=device)
    torch.mm(x.T, x, out=out)
    assert out.equal(x.T @ x) and out.shape == (3, 3)
    assert torch.empty(0, device=device).resize_(5).fill_(2).tolist() == [2.0] * 5
    assert x.t_().shape == (3, 4) and x[0].tolist() == [0, 3, 6, 9]


@on_cuda
def test_copies_pickles_and_files(device: torch.device) -> None:
    x = rows(device)
    file = io.BytesIO()
    torch.save({"x": x, "view": x[1:]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), loaded["x"]):
        assert other.equal(x) and other.device == x.device and other.data_ptr() != x.data_ptr()
    file.seek(0)
    assert torch.load(file, map_location="cpu", weights_only=True)["view"].device.type == "cpu"


@on_cuda
def test_modules_move_and_learn_there(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    twin = copy.deepcopy(model).to(device)
    x = rows(torch.device("cpu"))
    for m, inputs in ((model, x), (twin, x.to(device))):
        optimizer = torch.optim.AdamW(m.parameters(), lr=0.1)
        m(inputs).square().mean().backward()
        optimizer.step()
    for here, there in zip(model.parameters(), twin.parameters(), strict=True):
        assert there.device.type == "cuda" and there.grad is not None and there.grad.is_cuda
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)


@on_cuda
def test_transforms_and_double_backward(device: torch.device) -> None:
    x = rows(device).double().requires_grad_()
    assert torch.func.vmap(lambda a: a @ a)(x).tolist() == [5.0, 50.0, 149.0, 302.0]
    assert torch.func.jacrev(lambda a: a.square().sum())(x).equal(2 * x)
    assert torch.autograd.gradgradcheck(lambda a: (a.T @ a).logdet(), x[:, :1].detach().requires_grad_())


@on_cuda
def test_sparse_layouts(device: torch.device) -> None:
    dense = torch.diag(torch.tensor([1.0, 2.0, 3.0], device=device))
    for sparse in (dense.to_sparse_csr(), dense.to_sparse_coo(), dense.to_sparse_csc()):
        assert sparse.device.type == "cuda" and sparse.values().is_cuda
        assert (sparse @ rows(device).T).equal(dense @ rows(device).T) and sparse.cpu().to_dense().equal(dense.cpu())


@on_cuda
def test_random_numbers_follow_the_device_s_seed(device: torch.device) -> None:
    torch.manual_seed(3)
    first = torch.randn(4, device=device)
    torch.randn(4)  # of the host: another stream
    second = torch.randn(4, device=device)
    torch.manual_seed(3)
    assert torch.randn(8, device=device)[:4].equal(first) and not second.equal(first)
    draws = [torch.rand(3, device=device, generator=torch.Generator(device).manual_seed(5)) for _ in range(2)]
    assert draws[0].equal(draws[1])


# ---------------------------------------------------------------- the second process

CONFTEST = """
import os, pytest
from pretended_cuda.install import installed
from pretended_cuda import outer

def pytest_configure(config):
    if not installed():
        outer.MANY = 5
        config.pluginmanager.register(outer.Outer(), outer.NAME)

@pytest.fixture(params=["cpu", "pretended"])
def device(request):
    return request.param
"""
CASES = """
import os, sys

def test_passes(device):
    assert device == "cpu" or "torch" in sys.modules

def test_fails(device):
    assert device == "cpu", "on purpose"

def test_ends_the_process(device):
    if device == "pretended":
        os._exit(3)

def test_comes_after(device):
    pass
"""
ELSEWHERE = """
import sys
from pretended_cuda.install import installed

def test_runs_in_a_third_process():
    assert sys.modules["__main__"].__spec__.name == "pretended_cuda.inner" and not installed()

def test_fails_there():
    assert False, "on purpose, too"
"""


@pytest.mark.slow
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_the_other_processes_report_each_test_and_one_outlives_a_crash(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "estimators").mkdir()
    (tmp_path / "estimators" / "test_elsewhere.py").write_text(ELSEWHERE)
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-rA", f"--rootdir={tmp_path}", "-p", "no:cacheprovider", str(tmp_path)]
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    assert "3 failed, 7 passed" in output, output
    assert "FAILED test_cases.py::test_fails[pretended] - AssertionError: on purpose" in output
    assert "FAILED estimators/test_elsewhere.py::test_fails_there" in output
    assert "ended (exit 3)" in output and "PASSED test_cases.py::test_comes_after[pretended]" in output


def test_what_cannot_build_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path / "none")
    monkeypatch.setattr(build, "torch_folder", lambda: tmp_path)  # no CUDA in there
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    if sys.platform != "linux":
        pytest.skip("the pretended device is built on Linux alone")
    with pytest.raises(build.Unavailable, match=r"no C\+\+ compiler"):
        build.library()
    monkeypatch.setattr(build.shutil, "which", lambda _: sys.executable)
    with pytest.raises(build.Unavailable, match="could not build"):
        build.library()
