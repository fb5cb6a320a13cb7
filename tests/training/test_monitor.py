"""What the monitor writes is what the model, the gradients and the optimizer hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchridge.training.monitor import L2Monitor
from torchridge.training.penalties.attach import regularize
from torchridge.training.penalties.regularizers import L1L2, L2
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import weight_decay_groups
from torchridge.training.weight_decay.schedule import CosineWeightDecay


class Recorder:
    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.histograms: dict[tuple[str, int], Tensor] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        assert isinstance(scalar_value, float)
        self.scalars[tag, global_step] = scalar_value

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> None:
        self.histograms[tag, global_step] = values.clone()

    def tags(self, step: int) -> set[str]:
        return {tag for tag, at in self.scalars if at == step}


class ScalarsOnly:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


def setup(device: torch.device, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer, Recorder, L2Monitor]:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(device, torch.float64)
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.2, rules={"2.weight": 0.6}), lr=0.05)
    recorder = Recorder()
    return model, optimizer, recorder, L2Monitor(recorder, model, optimizer, **options)


def backward(model: nn.Module) -> Tensor:
    p = next(model.parameters())
    loss = model(torch.linspace(-1, 1, 15, device=p.device, dtype=p.dtype).reshape(5, 3)).square().mean()
    loss.backward()
    return loss


def test_numbers_are_those_of_the_model(device: torch.device) -> None:
    model, _, recorder, monitor = setup(device)
    loss = backward(model)
    monitor.step(loss=loss, penalty=torch.tensor(0.5, device=device))
    w0, w2 = model[0].weight, model[2].weight
    got = {tag: value for (tag, _), value in recorder.scalars.items()}
    squares = [float(w.detach().square().sum()) for w in (w0, w2)]
    expected = {
        "loss": loss.item(),
        "l2/penalty": 0.5,
        "l2/penalty_to_loss": 0.5 / loss.item(),
        "l2/weight_norm/0.weight": squares[0] ** 0.5,
        "l2/weight_norm/2.weight": squares[1] ** 0.5,
        "l2/pull_to_gradient/0.weight": 0.2 * float(w0.norm() / w0.grad.norm()),
        "l2/pull_to_gradient/2.weight": 0.6 * float(w2.norm() / w2.grad.norm()),
        "l2/total_norm": sum(squares) ** 0.5,
        "l2/strength": (0.1 * squares[0] + 0.3 * squares[1]) / sum(squares),
        **{f"l2/lr/{name}": 0.05 for name in ("decay", "decay=0.6", "no_decay")},
        "l2/weight_decay/decay": 0.2,
        "l2/weight_decay/decay=0.6": 0.6,
        "l2/weight_decay/no_decay": 0.0,
        "l2/lr_times_weight_decay/decay": 0.01,
        "l2/lr_times_weight_decay/decay=0.6": 0.03,
        "l2/lr_times_weight_decay/no_decay": 0.0,
    }
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("strength", [0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_a_penalty_in_the_loss_pulls_as_it_does_in_autograd(device: torch.device, strength: float | Tensor) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(device, torch.float64)
    regularize(model, L2(strength), rules={"2.weight": L1L2(l1=0.1, l2=0.5)})
    optimizer = torch.optim.Adam([{"params": [model[0].weight]}, {"params": [model[2].weight], "weight_decay": 0.7}])
    recorder = Recorder()
    monitor = L2Monitor(recorder, model, optimizer)
    backward(model)
    monitor.step()
    w0, w2 = model[0].weight, model[2].weight
    pulls = torch.autograd.grad(0.3 * w0.square().sum() + (0.5 + 0.7 / 2) * w2.square().sum(), [w0, w2])
    for name, weight, pull in zip(("0.weight", "2.weight"), (w0, w2), pulls, strict=True):
        expected = float(pull.norm() / weight.grad.norm())
        assert recorder.scalars[f"l2/pull_to_gradient/{name}", 0] == pytest.approx(expected, rel=1e-12)
    squares = [float(w.detach().square().sum()) for w in (w0, w2)]
    mean = (0.3 * squares[0] + 0.85 * squares[1]) / sum(squares)
    assert recorder.scalars["l2/strength", 0] == pytest.approx(mean, rel=1e-12)


def test_nothing_is_written_or_read_between_logging_steps(device: torch.device) -> None:
    model, _, recorder, monitor = setup(device, every=3, histograms_every=4)
    backward(model)
    for _ in range(9):
        monitor.step()
    assert {step for _, step in recorder.scalars} == {0, 3, 6}
    assert {step for _, step in recorder.histograms} == {0, 4, 8}
    assert torch.equal(recorder.histograms["l2/weight/0.weight", 4], model[0].weight.detach())
    assert torch.equal(recorder.histograms["l2/gradient/0.weight", 8], model[0].weight.grad)


def test_one_transfer_a_logging_step(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, _, monitor = setup(device)
    DecoupledWeightDecay(optimizer)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.05, device=device)
    loss = backward(model)
    counts = {"tolist": 0, "item": 0, "float": 0}
    for name, method in (("tolist", "tolist"), ("item", "item"), ("float", "__float__")):
        original = getattr(Tensor, method)

        def counted(self: Tensor, *args: Any, _original: Any = original, _name: str = name) -> Any:
            counts[_name] += 1
            return _original(self, *args)

        monkeypatch.setattr(Tensor, method, counted)
    monitor.step(loss=loss, penalty=torch.tensor(0.1, device=device))
    assert counts == {"tolist": 1, "item": 0, "float": 0}


def test_scheduled_and_taken_over_decay_is_what_is_logged(device: torch.device) -> None:
    model, optimizer, recorder, monitor = setup(device)
    DecoupledWeightDecay(optimizer)
    schedule = CosineWeightDecay(optimizer, total_steps=2)
    for _ in range(3):
        backward(model)
        monitor.step()
        optimizer.step()
        schedule.step()
    assert [recorder.scalars["l2/weight_decay/decay", t] for t in range(3)] == pytest.approx([0.2, 0.1, 0.0], abs=1e-12)


def test_groups_of_a_loaded_checkpoint_are_followed(device: torch.device) -> None:
    _, optimizer, recorder, monitor = setup(device)
    state = optimizer.state_dict()
    state["param_groups"][0]["weight_decay"] = 0.9
    optimizer.load_state_dict(state)
    monitor.step(step=7)
    assert recorder.scalars["l2/weight_decay/decay", 7] == 0.9


def test_weights_without_gradient_and_half_precision(device: torch.device) -> None:
    layer = nn.Linear(300, 300, bias=False).to(device, torch.float16)
    nn.init.constant_(layer.weight, 10.0)
    recorder = Recorder()
    L2Monitor(recorder, layer, torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)).step()
    assert recorder.scalars["l2/weight_norm/weight", 0] == pytest.approx(3000.0)
    assert "l2/pull_to_gradient/weight" not in recorder.tags(0)


def test_sparse_gradients(device: torch.device) -> None:
    table = nn.Embedding(4, 2, sparse=True).to(device)
    recorder = Recorder()
    monitor = L2Monitor(recorder, table, torch.optim.SGD(table.parameters(), lr=0.1))
    (3 * table(torch.tensor([1, 1], device=device))).sum().backward()
    monitor.step()
    assert recorder.scalars["l2/pull_to_gradient/weight", 0] == 0.0


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(weight_decay_groups(model, 0.2), lr=0.05)
    norms = []
    with SummaryWriter(str(tmp_path)) as writer:
        monitor = L2Monitor(writer, model, optimizer, histograms_every=2)
        for _ in range(4):
            optimizer.zero_grad()
            loss = backward(model)
            norms.append(float(model[0].weight.detach().norm()))
            monitor.step(loss=loss)
            optimizer.step()
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    logged = events.Scalars("l2/weight_norm/0.weight")
    assert [event.step for event in logged] == [0, 1, 2, 3]
    assert [event.value for event in logged] == pytest.approx(norms, rel=1e-6)
    assert [event.value for event in events.Scalars("l2/lr_times_weight_decay/decay")] == pytest.approx([0.01] * 4)
    assert [event.step for event in events.Histograms("l2/weight/0.weight")] == [0, 2]


def bad_arguments() -> list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    return [
        ((print, model, optimizer), {}, TypeError, r"`writer` should have `add_scalar`, got builtin_function"),
        (
            (ScalarsOnly(), model, optimizer),
            {"histograms_every": 1},
            TypeError,
            r"`writer` should have `add_histogram`",
        ),
        (
            (Recorder(), model, optimizer),
            {"every": 0},
            ValueError,
            r"`every` should be an integer of at least 1, got 0",
        ),
        (
            (Recorder(), model, optimizer),
            {"histograms_every": 0},
            ValueError,
            r"`histograms_every` should be an integer",
        ),
        ((Recorder(), model, "SGD"), {}, TypeError, r"`optimizer` should be a torch.optim.Optimizer, got str"),
        ((Recorder(), model, other), {}, ValueError, r"`optimizer` holds no weight of `model`"),
    ]


@pytest.mark.parametrize(("arguments", "options", "error", "pattern"), bad_arguments())
def test_bad_input(arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        L2Monitor(*arguments, **options)
