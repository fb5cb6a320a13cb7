"""The tables of `against-the-others.md` and README, computed by running the others, or from what benchmarks kept.

python docs/scripts/compare.py          print them
python docs/scripts/compare.py --write  put them into the pages
python docs/scripts/compare.py --check  fail unless the pages say the same, numbers within a factor of ten
"""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import timings
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import Tensor, nn

from torchridge import L2Linear, explain_weight_decay, penalize_step, penalty, ridge

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "docs" / "against-the-others.md", ROOT / "README.md"]
TABLES: dict[str, Callable[[], list[list[str]]]] = {}


def table(function: Callable[[], list[list[str]]]) -> Callable[[], list[list[str]]]:
    TABLES[function.__name__] = function
    return function


def planted(condition: float, mean: float = 0.0, n: int = 500, d: int = 20) -> tuple[Tensor, Tensor]:
    """Float32 rows whose centred singular values fall from 1 by the condition number, and a target they explain."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    left, _, right = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    X = n**0.5 * (left * torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)) @ right + mean
    X = X.float()
    return X, (X.double() @ torch.randn(d, generator=g, dtype=torch.float64)).float()


def exact(X: Tensor, y: Tensor, alpha: float) -> np.ndarray:
    """The weights from the singular values of the centred rows, in float64."""
    A, b = X.double().numpy(), y.double().numpy()
    left, sigma, right = np.linalg.svd(A - A.mean(0), full_matrices=False)
    return right.T @ (sigma / (sigma**2 + alpha) * (left.T @ (b - b.mean())))


def cholesky(X: Tensor, y: Tensor, alpha: float) -> Tensor:
    """The normal equations in float32, the bias as a column of ones, as one writes them down."""
    ones = torch.cat([X, torch.ones(len(X), 1)], 1)
    price = alpha * torch.eye(ones.shape[1])
    price[-1, -1] = 0
    factor = torch.linalg.cholesky(ones.T @ ones + price)
    return torch.cholesky_solve((ones.T @ y)[:, None], factor)[:-1, 0]


def error(call: Callable[[], Any], truth: np.ndarray) -> str:
    """The relative error of the weights to one digit, or why there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = np.asarray(call(), dtype=np.float64).reshape(-1)
    except (RuntimeError, np.linalg.LinAlgError):
        return "fails"
    return f"{np.linalg.norm(got - truth) / np.linalg.norm(truth):.0e}"


@table
def digits() -> list[list[str]]:
    head = ["data", "Cholesky of XᵀX, float32", 'scikit-learn `Ridge(solver="cholesky")`', "scikit-learn `Ridge()`"]
    rows = [[*head, "`ridge`"]]
    cases = [(f"condition 1e{k}", 10.0**k, 0.0) for k in (1, 2, 3, 4)]
    for label, condition, mean in [*cases, ("condition 10, means 1,000", 10.0, 1000.0)]:
        X, y = planted(condition, mean)
        alpha = 1e-9
        truth = exact(X, y, alpha)
        calls: list[Callable[[], Any]] = [
            lambda X=X, y=y, a=alpha: cholesky(X, y, a),
            lambda X=X, y=y, a=alpha: Ridge(alpha=a, solver="cholesky").fit(X.numpy(), y.numpy()).coef_,
            lambda X=X, y=y, a=alpha: Ridge(alpha=a).fit(X.numpy(), y.numpy()).coef_,
            lambda X=X, y=y, a=alpha: ridge(X, y, a).weight,
        ]
        rows.append([label, *(error(call, truth) for call in calls)])
    return rows


def judged(X: Tensor, y: Tensor, call: Callable[[], Any]) -> list[str]:
    """Whether weights fit, whether they are the shortest that do, and what was said about them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = torch.as_tensor(np.asarray(call(), dtype=np.float64)).reshape(-1)
    residual = (y - y.mean()) - (X - X.mean(0)) @ got
    fits, even = bool(residual.norm() < 1e-6 * y.norm()), bool((got[0] - got[1]).abs() < 1e-6)
    said = f"`{caught[0].category.__name__}`" if caught else "nothing"
    return ["yes" if fits else "**no**", "yes" if even else "**no**", said]


@table
def dependent() -> list[list[str]]:
    g = torch.Generator().manual_seed(0)
    x, other = torch.randn(2, 100, generator=g, dtype=torch.float64)
    X, y = torch.stack([x, x, other], 1), 3 * x + other
    calls: dict[str, Callable[[], Any]] = {
        "scikit-learn `LinearRegression()`": lambda: LinearRegression().fit(X.numpy(), y.numpy()).coef_,
        "scikit-learn `Ridge(alpha=0)`": lambda: Ridge(alpha=0).fit(X.numpy(), y.numpy()).coef_,
        '`torch.linalg.lstsq(driver="gelsd")`': lambda: (
            torch.linalg.lstsq(X - X.mean(0), (y - y.mean())[:, None], driver="gelsd").solution
        ),
        "`ridge(X, y, 0)`": lambda: ridge(X, y, 0.0).weight,
    }
    head = ["call", "fits the rows", "shares the work evenly (minimum norm)", "it says"]
    return [head, *([name, *judged(X, y, call)] for name, call in calls.items())]


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Model(nn.Module):
    """One of each kind of parameter that grouping rules differ on."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.input_norm = RMSNorm(8)
        self.layer_scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.recurrent = nn.LSTM(8, 8)
        self.debiased_proj = nn.Linear(8, 8)
        self.regressor = nn.Linear(8, 1)


def timm_like(name: str, parameter: nn.Parameter, model: nn.Module) -> bool:
    """`timm.optim.param_groups_weight_decay`: not what has one dimension or less, nor what ends in .bias."""
    return parameter.ndim > 1 and not name.endswith(".bias")


def transformers_like(name: str, parameter: nn.Parameter, model: nn.Module) -> bool:
    """`transformers.Trainer.get_decay_parameter_names`: not what LayerNorm owns, nor names of these patterns."""
    owner = model.get_submodule(name.rpartition(".")[0])
    forbidden = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
    return not isinstance(owner, nn.LayerNorm) and not any(re.search(p, name.lower()) for p in forbidden)


@table
def decayed() -> list[list[str]]:
    model = Model()
    report = explain_weight_decay(model, 0.1)
    kept = ["cls_token", "attention.in_proj_weight", "attention.in_proj_bias", "attention.bias_k", "input_norm.weight"]
    kept += ["layer_scale", "recurrent.bias_ih_l0", "debiased_proj.weight", "regressor.weight", "regressor.bias"]
    rows = [["parameter", "shape", "plain AdamW", "timm's rule", "transformers' rule", "here", "why"]]
    for name in kept:
        parameter, row = model.get_parameter(name), report[name]
        others = [timm_like(name, parameter, model), transformers_like(name, parameter, model)]
        says = ["decays" if d else "no" for d in (True, *others, row.decay)]
        says = [s if s == says[-1] else f"**{s}**" for s in says]
        rows.append([f"`{name}`", "×".join(map(str, parameter.shape)), *says, row.reason])
    return rows


@table
def training() -> list[list[str]]:
    rows = [["100 steps on the same rows, λ = 0.01", "largest difference of weights"]]
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(256, 20, generator=g), torch.randint(0, 3, (256,), generator=g)
    theirs, start = keras_run(X, y)
    ours = torch_run(X, y, start, torch.optim.SGD, "loss")
    rows.append(["Keras `l2(0.01)` and SGD, against `loss + penalty(model)`", gap(theirs, ours)])
    for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        ours = torch_run(X, y, start, optimizer, "loss")
        name = f"torch `{optimizer.__name__}(weight_decay=0.02)`, against `loss + penalty(model)`"
        rows.append([name, gap(torch_run(X, y, start, optimizer, "decay"), ours)])
    once = torch_run(X, y, start, torch.optim.SGD, "step", parts=4)
    whole = torch_run(X, y, start, torch.optim.SGD, "loss")
    rows.append(["4 micro-batches, penalty in each loss, against one batch", gap(parts_run(X, y, start), whole)])
    rows.append(["4 micro-batches, `penalize_step`, against one batch", gap(once, whole)])
    return rows


def keras_run(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Train in Keras, and return the kernel at the end and at the start, as torch has it."""
    import keras

    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.l2(0.01))
    model = keras.Sequential([keras.Input((20,)), dense])
    start = dense.kernel.value.detach().cpu().T.clone()
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X.numpy(), y.numpy(), batch_size=len(X), epochs=100, shuffle=False, verbose=0)
    return dense.kernel.value.detach().cpu().T, start


def torch_run(X: Tensor, y: Tensor, start: Tensor, make: Any, route: str, parts: int = 1, rate: float = 0.1) -> Tensor:
    """Train `nn.Linear` with the penalty in the loss, once per step, or as the optimizer's weight decay."""
    layer = L2Linear(20, 3, l2=0.01)
    with torch.no_grad():
        layer.weight.copy_(start)
        layer.bias.zero_()
    decay = 0.02 if route == "decay" else 0.0
    optimizer = make([{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}], lr=rate)
    if make is torch.optim.AdamW:
        optimizer.param_groups[1]["weight_decay"] = 0.0
    if route == "step":
        penalize_step(optimizer, layer)
    for _ in range(100):
        optimizer.zero_grad()
        for rows, labels in zip(X.chunk(parts), y.chunk(parts), strict=True):
            loss = nn.functional.cross_entropy(layer(rows), labels) / parts
            (loss + penalty(layer) if route == "loss" else loss).backward()
        optimizer.step()
    return layer.weight.detach()


def parts_run(X: Tensor, y: Tensor, start: Tensor) -> Tensor:
    return torch_run(X, y, start, torch.optim.SGD, "loss", parts=4)


def gap(a: Any, b: Any) -> str:
    a = a[0] if isinstance(a, tuple) else a
    return f"{float((a - b).abs().max()):.0e}"


@table
def measured() -> list[list[str]]:
    return timings.measured()


@table
def gpu() -> list[list[str]]:
    return timings.gpu()


@table
def machines() -> list[list[str]]:
    return timings.machines()


@table
def ratios() -> list[list[str]]:
    return timings.ratios()


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def filled(text: str, tables: dict[str, str]) -> str:
    """A page with the tables that it has marks for between them."""
    for name in re.findall(r"<!-- table: (\w+) -->", text):
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, rows=tables[name]: f"{m[1]}\n{rows}\n\n{m[2]}", text, count=1, flags=re.DOTALL)
    return text


def differences(old: str, new: str) -> list[str]:
    """Lines that differ in words, or in a number by more than a factor of ten."""
    number = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")
    found = []
    for a, b in zip(old.splitlines(), new.splitlines(), strict=False):
        pairs = zip(map(float, number.findall(a)), map(float, number.findall(b)), strict=False)
        far = any(max(x, y) > 10 * max(min(x, y), 1e-7) for x, y in pairs)
        if far or number.sub("0", a) != number.sub("0", b):
            found.append(f"- {a}\n+ {b}")
    return found if old.count("\n") == new.count("\n") else [*found, "different numbers of lines"]


def main(option: str) -> None:
    tables = {name: markdown(make()) for name, make in TABLES.items()}
    if not option:
        print("\n\n".join(tables.values()))
        return
    for page in PAGES:
        old = page.read_text()
        new = filled(old, tables)
        if option == "--write":
            page.write_text(new)
        elif found := differences(old, new):
            raise SystemExit("\n".join([f"{page.name} is out of date; run this with --write", *found]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
