"""What L2 costs in training: the penalty in the loss, and once per step, against the plain ways.

    python benchmarks/penalty.py --threads 2

Asserts that both ways agree before it times them. Each round times both sides in turn; the median of the rounds'
ratios is the result, so that what else runs on the machine weighs on both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.benchmark import Timer

from torchridge.training.penalties.attach import penalty, regularize
from torchridge.training.penalties.regularizers import L2
from torchridge.training.penalties.step import penalize_step

LAMBDA = 1e-4
RESULTS = Path(__file__).parent / "results" / "penalty.json"


def transformer() -> nn.Module:
    """27 M parameters in 146 tensors, gradients filled."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(432, 8, dim_feedforward=1728, batch_first=True)
    model = nn.Sequential(nn.Embedding(300, 432), nn.TransformerEncoder(layer, 12, enable_nested_tensor=False))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def seconds(run: Callable[[], object]) -> float:
    return Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()).timeit(3).mean


def rounds(
    runs: dict[str, Callable[[], object]], count: int, measure: Callable[[Callable[[], object]], float] = seconds
) -> dict[str, list[float]]:
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            times[name].append(measure(run))
    return times


def in_the_loss(count: int) -> dict[str, float]:
    model = regularize(transformer(), L2(LAMBDA))
    weights = [p for p in model.parameters() if p.ndim > 1]

    def ours() -> None:
        model.zero_grad()
        penalty(model).backward()

    def plain() -> None:
        model.zero_grad()
        (LAMBDA * sum((p**2).sum() for p in weights)).backward()

    plain()
    want = [p.grad.clone() for p in weights]
    ours()
    for parameter, grad in zip(weights, want, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-6, atol=0)
    times = rounds({"plain": plain, "ours": ours}, count)
    ratios = [o / p for o, p in zip(times["ours"], times["plain"], strict=True)]
    return {
        "plain_sum_of_squares_ms": 1e3 * statistics.median(times["plain"]),
        "penalty_ms": 1e3 * statistics.median(times["ours"]),
        "ratio": statistics.median(ratios),
    }


def layers() -> nn.Module:
    """27 M parameters in seven layers, gradients filled."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1964, 1964) for _ in range(7)))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def stepper(weight_decay: float, hooked: bool, form: dict[str, bool]) -> tuple[nn.Module, Callable[[], object]]:
    model = layers()
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=1e-6, **form)
    if hooked:
        penalize_step(optimizer, regularize(model, L2(LAMBDA)))
    return model, optimizer.step


def processor_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def once_per_step(form: dict[str, bool], count: int) -> dict[str, float]:
    """What the hook adds to a bare step against what `weight_decay` adds, on one thread in processor seconds.

    On two threads that others preempt, each parallel loop waits for the slower one; both sides have as many loops, and
    the wall clock says 1 whatever they do.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    decays = ((0.0, False), (2 * LAMBDA, False), (0.0, True))
    bare, decayed, hooked = (stepper(decay, hook, form) for decay, hook in decays)
    for _, step in (decayed, hooked):
        step()
    for p, q in zip(decayed[0].parameters(), hooked[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    runs = {"bare": bare[1], "decayed": decayed[1], "hooked": hooked[1]}
    times = rounds(runs, count, processor_seconds)
    torch.set_num_threads(threads)
    decay = statistics.median(d - b for b, d in zip(times["bare"], times["decayed"], strict=True))
    hook = statistics.median(h - b for b, h in zip(times["bare"], times["hooked"], strict=True))
    return {
        "sgd_step_ms": 1e3 * statistics.median(times["bare"]),
        "weight_decay_adds_ms": 1e3 * decay,
        "step_hook_adds_ms": 1e3 * hook,
        "ratio": hook / decay,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = transformer()
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(list(model.parameters())),
        "threads": args.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}, {torch.backends.cpu.get_cpu_capability()}",
        "in_the_loss": in_the_loss(args.rounds),
        "once_per_step": {
            form: once_per_step({} if form == "default" else {form: True}, args.rounds)
            for form in ("default", "foreach", "fused")
        },
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
