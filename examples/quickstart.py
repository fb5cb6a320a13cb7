"""The main job on real data: choose a strength in closed form, and reach the same answer by two other routes.

On scikit-learn's diabetes data (regression) and digits (ten one-hot targets), for

    mean squared error + λ ‖w‖²,    α = n λ in closed form,

it picks the strength among 100 by 5-fold cross-validation, fits, then trains `nn.Linear` once with the penalty in the
loss and once with SGD's `weight_decay = 2λ`, and prints how far apart the three answers are. Then a small network with
penalized layers is trained on digits and logged to TensorBoard, and the weight-decay table says what it decided.

    python examples/quickstart.py
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from torchridge import L2Linear, L2Monitor, RidgeSolution, convert_strength, explain_weight_decay, penalty, ridge_cv

try:
    from tqdm import tqdm
except ImportError:  # the bar is a comfort, not a need
    tqdm = None

SHOWS_BAR = sys.stderr.isatty()  # a log would keep every state of a bar that is drawn over and over
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return standardized training and held-out rows, in float64."""
    data = load_diabetes(scaled=False) if name == "diabetes" else load_digits()
    X, y = torch.from_numpy(data.data).double(), torch.from_numpy(data.target)
    y = y.double()[:, None] if name == "diabetes" else nn.functional.one_hot(y).double()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    train, test = order[len(X) // 5 :], order[: len(X) // 5]
    mean, std = X[train].mean(0), X[train].std(0, correction=0)
    X = ((X - mean) / torch.where(std > 0, std, 1)).to(DEVICE)
    y = y.to(DEVICE)
    return X[train], y[train], X[test], y[test]


def progress(steps: range, name: str) -> Iterable[int]:
    """Return the steps under a bar in a terminal, and after one line in a log."""
    if tqdm is not None and SHOWS_BAR:
        return tqdm(steps, desc=name, leave=False, delay=1)
    print(f"{name}: {len(steps)} steps", file=sys.stderr)
    return steps


def train(X: Tensor, y: Tensor, strength: float, in_loss: bool, name: str) -> nn.Linear:
    """Train a linear layer by gradient descent with momentum, the penalty in the loss or in the optimizer."""
    torch.manual_seed(0)
    model = nn.Linear(X.shape[1], y.shape[1], dtype=torch.float64, device=DEVICE)
    # Momentum for a quadratic whose curvature lies between `low` and `high` (Polyak 1964); the intercept's is 2 t / t.
    curvature = 2 * torch.linalg.eigvalsh(X.T @ X / len(X)) / y.shape[1]
    high, low = max(float(curvature[-1]), 2 / y.shape[1]) + 2 * strength, max(float(curvature[0]), 0.0) + 2 * strength
    ratio = (high / low) ** 0.5
    decay = convert_strength(strength, source="lambda", target="torch")
    groups = [{"params": [model.weight], "weight_decay": 0.0 if in_loss else decay}, {"params": [model.bias]}]
    sgd = torch.optim.SGD(groups, lr=4 / (high**0.5 + low**0.5) ** 2, momentum=((ratio - 1) / (ratio + 1)) ** 2)
    steps = range(int(20 * ratio) + 100)
    for _ in progress(steps, name):
        sgd.zero_grad()
        loss = nn.functional.mse_loss(model(X), y)
        if in_loss:
            loss = loss + strength * model.weight.square().sum()
        loss.backward()
        sgd.step()
    return model


def timed(call: Callable[[], RidgeSolution | nn.Linear]) -> tuple[RidgeSolution | nn.Linear, float]:
    """Return what the call returns, and the seconds it took."""
    start = time.perf_counter()
    result = call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def held_out(name: str, prediction: Tensor, y: Tensor) -> str:
    if name == "digits":
        return f"accuracy {float((prediction.argmax(1) == y.argmax(1)).double().mean()):.4f}"
    return f"R² {float(1 - (y - prediction).square().sum() / (y - y.mean(0)).square().sum()):.4f}"


for name in ("diabetes", "digits"):
    X, y, X_test, y_test = load(name)
    n, t = len(X), y.shape[1]
    alphas = torch.logspace(-3, 5, 100, dtype=torch.float64)
    solution, closed_time = timed(lambda X=X, y=y, alphas=alphas: ridge_cv(X, y, alphas, cv=5))
    # nn.MSELoss divides by rows and targets: α = n k λ
    strength = convert_strength(float(solution.alpha), source="sklearn", target="mse_loss", n_samples=n, n_targets=t)
    penalized, penalty_time = timed(lambda X=X, y=y, s=strength: train(X, y, s, True, "penalty in the loss"))
    decayed, decay_time = timed(lambda X=X, y=y, s=strength: train(X, y, s, False, "weight decay"))

    def distance(model: nn.Linear, reference: Tensor = solution.weight) -> float:
        return float((model.weight.detach() - reference).norm() / reference.norm())

    print(f"{name}: {n} rows, {X.shape[1]} features, {t} target{'s' if t > 1 else ''}, on {DEVICE}")
    print(f"  strength chosen among {len(alphas)} by 5 folds: α = {float(solution.alpha):.4g}, λ = {strength:.3g}")
    print(f"  {'route':<22}{'held out':<18}{'distance of weights':<22}{'seconds'}")
    for route, model, gap, seconds in (
        ("closed form", solution.to_linear(), 0.0, closed_time),
        ("penalty in the loss", penalized, distance(penalized), penalty_time),
        ("SGD weight_decay", decayed, distance(decayed), decay_time),
    ):
        with torch.no_grad():
            score = held_out(name, model(X_test), y_test)
        print(f"  {route:<22}{score:<18}{gap:<22.1e}{seconds:.3f}")


def network(X: Tensor, y: Tensor, X_test: Tensor, y_test: Tensor, epochs: int = 20) -> None:
    """Train a small network with penalized layers, log it, and say which parameters weight decay would take."""
    torch.manual_seed(0)
    model = nn.Sequential(
        L2Linear(X.shape[1], 25, l2=1e-3), nn.LayerNorm(25), nn.ReLU(), L2Linear(25, y.shape[1], l2=1e-3)
    ).to(DEVICE)
    X, X_test, labels = X.float(), X_test.float(), y.argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)  # the penalty is in the loss: no weight_decay here
    writer = event_writer()
    monitor = L2Monitor(writer, model, optimizer, every=10) if writer else None
    steps = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X, labels), 64, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    for _ in progress(range(epochs), "network, epochs"):
        for rows, target in steps:
            optimizer.zero_grad()
            extra = penalty(model)
            loss = nn.functional.cross_entropy(model(rows), target) + extra
            loss.backward()
            if monitor:
                monitor.step(loss=loss, penalty=extra)  # the loss as it is minimized, and the penalty in it
            optimizer.step()
    with torch.no_grad():
        accuracy = float((model(X_test).argmax(1) == y_test.argmax(1)).double().mean())
    print(f"network on digits: held out accuracy {accuracy:.4f}, penalty {penalty(model).item():.4f}")
    print(
        f"  logged to {writer.log_dir}: tensorboard --logdir runs" if writer else "  pip install tensorboard to log it"
    )
    print(explain_weight_decay(model))


def event_writer() -> Any:
    """Return a TensorBoard writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter("runs/quickstart")


network(*load("digits"))
