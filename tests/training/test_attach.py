import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from torchridge.exceptions import InertPenaltyWarning
from torchridge.training.penalties.attach import clear_regularizers, penalties, penalty, regularize
from torchridge.training.penalties.layers import L2Linear, LazyL2Linear
from torchridge.training.penalties.regularizers import L1, L2


def squares(*tensors: Tensor) -> float:
    return sum(float(t.detach().double().square().sum()) for t in tensors)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], list[Tensor]]]] = {
    "linear": (lambda: nn.Linear(3, 2), lambda m: [m.weight]),
    "conv": (lambda: nn.Conv2d(3, 4, 3), lambda m: [m.weight]),
    "embedding": (lambda: nn.Embedding(5, 3), lambda m: [m.weight]),
    "lstm": (lambda: nn.LSTM(3, 4), lambda m: [m.weight_ih_l0, m.weight_hh_l0]),
    "attention": (lambda: nn.MultiheadAttention(4, 2), lambda m: [m.in_proj_weight, m.out_proj.weight]),
    "norms": (lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), lambda m: [m[0].weight]),
}


@pytest.mark.parametrize("name", ZOO)
def test_the_weights_of_every_kind_of_module(name: str, device: torch.device) -> None:
    build, weights = ZOO[name]
    model = regularize(build().to(device), L2(0.5))
    total = penalty(model)
    assert total.item() == pytest.approx(0.5 * squares(*weights(model)), rel=1e-6)
    total.backward()
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(w) for w in weights(model)}
    for weight in weights(model):
        assert weight.grad is not None
        assert torch.equal(weight.grad, weight.detach())  # 2 · 0.5 · W


def test_rules_by_glob_regex_type_and_predicate() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)], nn.Conv1d(2, 2, 1), nn.Linear(2, 1))
    rules = [
        ("0.*", L2(1.0)),
        (re.compile(r"^1\."), 2.0),
        (nn.Conv1d, L1(3.0)),
        (lambda name, parameter, module: parameter.shape[0] == 1, None),
    ]
    regularize(model, L2(10.0), rules=rules)
    found = penalties(model)
    assert list(found) == ["0.weight", "1.weight", "2.weight", "3.weight", "4.weight"]
    for name, strength in (("0.weight", 1), ("1.weight", 2), ("2.weight", 10)):
        assert found[name].item() == pytest.approx(strength * squares(model.get_parameter(name)), rel=1e-6)
    assert found["4.weight"].item() == pytest.approx(3 * float(model[4].weight.detach().abs().sum()), rel=1e-6)
    assert penalty(model).item() == pytest.approx(sum(float(v.detach()) for v in found.values()), rel=1e-6)


def test_bias_and_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    regularize(model, L2(1.0), bias=L1(2.0), embeddings=False)
    assert list(penalties(model)) == ["1.weight", "1.bias"]


def test_a_second_call_replaces_and_clearing_takes_all_off() -> None:
    model = regularize(regularize(mlp(), L2(1.0)), L2(2.0), activity=L2(1.0))
    model(torch.ones(2, 4))
    assert penalties(model)["0.weight"].item() == pytest.approx(2 * squares(model[0].weight), rel=1e-6)
    clear_regularizers(model)
    model(torch.ones(2, 4))
    assert penalty(model).item() == 0
    assert penalties(model) == {}
    assert not model._forward_pre_hooks
    assert not model[0]._forward_hooks


def test_a_tied_weight_counts_once() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
    model[1].weight = model[0].weight
    assert penalty(regularize(model, L2(1.0))).item() == pytest.approx(squares(model[0].weight), rel=1e-6)
    assert len(penalties(model)) == 1


def test_a_frozen_weight_adds_nothing_and_evaluation_changes_nothing() -> None:
    model = regularize(mlp(), L2(1.0))
    model[0].weight.requires_grad_(False)
    assert penalty(model.eval()).item() == pytest.approx(squares(model[2].weight), rel=1e-6)
    model[0].weight.requires_grad_(True)
    assert penalty(model).item() == pytest.approx(squares(model[0].weight, model[2].weight), rel=1e-6)
    with torch.no_grad():
        assert penalty(model).item() > 0


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_carry_their_regularizers(clone: Callable[[nn.Module], Any]) -> None:
    model = regularize(mlp(), L2(1.0), activity=L1(0.1))
    model(torch.ones(2, 4))  # leaves penalties that hang on a graph
    twin = clone(model)
    assert penalty(twin, activity=False).item() == penalty(model, activity=False).item()
    twin(torch.ones(2, 4))
    assert penalty(twin).item() == penalty(model).item()
    twin[0].weight.data.zero_()
    assert penalty(twin).item() != penalty(model).item()


def test_the_state_dict_is_that_of_the_plain_model() -> None:
    model = regularize(mlp(), L2(1.0), activity=L2(1.0))
    assert list(model.state_dict()) == list(mlp().state_dict())
    mlp().load_state_dict(model.state_dict())


def test_functional_call_penalizes_what_it_is_given() -> None:
    model = regularize(mlp(), L2(0.5))
    given = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return penalty(self.model)

    def value(parameters: dict[str, Tensor]) -> Tensor:
        named = {f"model.{name}": p for name, p in parameters.items()}
        return torch.func.functional_call(Penalized(), named, ())

    assert value(given).item() == pytest.approx(0.5 * squares(given["0.weight"], given["2.weight"]), rel=1e-6)
    torch.testing.assert_close(torch.func.grad(value)(given)["0.weight"], given["0.weight"])


def test_compile_without_breaks_or_recompilation_when_a_strength_changes() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    strength = torch.tensor(0.1)
    model = regularize(mlp(), L2(strength), activity=L1(0.01), rules=[("2.*", L2(0.3))])
    counter = CompileCounterWithBackend("aot_eager")
    x = torch.randn(6, 4)

    def loss() -> Tensor:
        return model(x).square().mean() + penalty(model)

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for value in (0.1, 0.5, 2.0):
        strength.fill_(value)
        gradients = []
        for run in (compiled, loss):
            model.zero_grad()
            total = run()
            total.backward()
            gradients.append([total.detach(), *[p.grad for p in model.parameters()]])
        torch.testing.assert_close(gradients[0], gradients[1])
    assert counter.frame_count == 1


def test_a_compiled_model_and_its_names() -> None:
    model = regularize(mlp(), L2(0.5), activity=L2(0.1))
    x = torch.randn(3, 4)
    model(x)
    want = {name: value.item() for name, value in penalties(model).items()}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x)
    got = {name: value.item() for name, value in penalties(compiled).items()}
    assert got == pytest.approx(want, rel=1e-6)
    assert set(want) == {"0.weight", "2.weight", "0.activity", "2.activity"}


@pytest.mark.parametrize("old", [False, True], ids=["parametrization", "hook"])
def test_under_weight_norm_the_effective_weight_is_penalized(old: bool) -> None:
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    layer = regularize(norm(nn.Linear(3, 2)), L2(1.0))  # no warning: this penalty acts on the gain
    layer(torch.ones(1, 3))
    assert penalty(layer).item() == pytest.approx(squares(layer.weight), rel=1e-6)
    assert list(penalties(layer)) == ["weight"]
    penalty(layer).backward()
    gain = layer.weight_g if old else layer.parametrizations.weight.original0
    torch.testing.assert_close(gain.grad, 2 * gain.detach())  # ‖W‖² = Σ g²


def test_pruned_weights_are_penalized_as_pruned() -> None:
    layer = prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=0.5)
    regularize(layer, L2(1.0))
    assert penalty(layer).item() == pytest.approx(squares(layer.weight_orig * layer.weight_mask), rel=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    ],
    ids=["batch norm", "spectral_norm", "orthogonal"],
)
def test_inert_penalties_warn(model: nn.Module) -> None:
    with pytest.warns(InertPenaltyWarning, match="does not change what the model computes") as caught:
        regularize(model, L2(1.0))
    assert caught[0].filename == __file__
    assert len(penalties(regularize(model, L2(1.0), inert="keep"))) == 1
    assert penalty(regularize(clear_regularizers(model), L2(1.0), inert="skip")).item() == 0


def test_output_penalties_are_divided_by_the_batch_and_forgotten_at_the_next_forward() -> None:
    model = regularize(mlp(), activity=L2(0.1))
    for rows in (2, 5):
        x = torch.randn(rows, 4)
        hidden = model[0](x).detach()  # called by itself, as in a model that calls a layer twice
        out = model(x)
        want = 0.1 * squares(hidden, out) / rows
        assert penalty(model).item() == pytest.approx(want, rel=1e-6)
        assert penalty(model, activity=False).item() == 0
    penalty(model).backward()
    assert model[0].weight.grad is not None


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = L2Linear(3, 3, l2=0.0, activity_regularizer=L2(1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    model = regularize(Twice())
    x = torch.randn(2, 3)
    once = model.layer(x).detach()
    for _ in range(2):
        out = model(x)
        assert penalty(model).item() == pytest.approx(squares(once, out) / 2, rel=1e-6)


def test_output_penalties_are_taken_in_float32_under_autocast() -> None:
    layer = L2Linear(4, 4, l2=0.0, activity_regularizer=L2(1.0))
    layer.weight.data.fill_(100.0)
    with torch.autocast("cpu", dtype=torch.float16):
        out = layer(torch.ones(1, 4))
    assert out.dtype == torch.float16
    assert penalty(layer).dtype == torch.float32
    assert penalty(layer).item() == pytest.approx(squares(out), rel=1e-6)  # 640,000: over the top of float16


def test_recurrent_and_attention_outputs() -> None:
    x = torch.randn(7, 2, 4)  # (time, batch, features)
    lstm = regularize(nn.LSTM(4, 3), activity=L2(1.0))
    assert penalty(lstm) == 0 or lstm(x) is None
    out, _ = lstm(x)
    assert penalty(lstm).item() == pytest.approx(squares(out) / 2, rel=1e-6)
    attention = regularize(nn.MultiheadAttention(4, 2, batch_first=True), activity=L2(1.0))
    out, _ = attention(x, x, x)
    assert penalty(attention).item() == pytest.approx(squares(out) / 7, rel=1e-6)


def test_checkpointing_without_reentry_agrees_and_with_it_is_refused() -> None:
    layer = L2Linear(4, 4, activity_regularizer=L2(0.3))
    x = torch.randn(3, 4, requires_grad=True)
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        (run(x).sum() + penalty(layer)).backward()
        assert len(penalties(layer)) == 2
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match="`use_reentrant=True`, which would lose the penalty's gradient"):
        checkpoint(layer, x, use_reentrant=True)
    layer.activity_regularizer = None
    checkpoint(layer, x, use_reentrant=True).sum().backward()
    with torch.no_grad():  # plain evaluation is no checkpointing
        L2Linear(4, 4, activity_regularizer=L2(0.3))(x)


def test_checkpoint_wrappers_keep_the_names() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = mlp()
    model[0] = checkpoint_wrapper(model[0])
    assert list(penalties(regularize(model, L2(1.0)))) == ["0.weight", "2.weight"]


class TestL2Linear:
    def test_is_a_linear_layer_in_every_other_respect(self) -> None:
        torch.manual_seed(0)
        plain = nn.Linear(3, 2)
        torch.manual_seed(0)
        layer = L2Linear(3, 2)
        assert isinstance(layer, nn.Linear)
        torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=0, atol=0)
        x = torch.randn(5, 3)
        assert torch.equal(layer(x), plain(x))
        assert repr(L2Linear(3, 2, l2=0)) == "L2Linear(in_features=3, out_features=2, bias=True)"
        assert L2Linear(3, 2, False, dtype=torch.float64, device="meta").weight.device.type == "meta"

    def test_penalty(self) -> None:
        layer = L2Linear(3, 2, l2=0.5, bias_regularizer="l1")
        want = 0.5 * squares(layer.weight) + 0.01 * float(layer.bias.detach().abs().sum())
        assert penalty(layer).item() == pytest.approx(want, rel=1e-6)
        layer.weight_regularizer = L1(1.0)
        layer.bias_regularizer = None
        assert penalty(layer).item() == pytest.approx(float(layer.weight.detach().abs().sum()), rel=1e-6)

    def test_the_bias_is_not_penalized(self) -> None:
        layer = L2Linear(3, 2)
        penalty(layer).backward()
        assert layer.bias.grad is None

    def test_lazy(self) -> None:
        layer = LazyL2Linear(2, l2=0.25, activity_regularizer=L2(1.0))
        with pytest.raises(ValueError, match=r"`weight` is lazy .* Run one forward pass first"):
            penalty(layer)
        out = layer(torch.ones(4, 3))
        assert type(layer) is L2Linear
        assert layer.weight_regularizer == L2(0.25)
        assert penalty(layer).item() == pytest.approx(0.25 * squares(layer.weight) + squares(out) / 4, rel=1e-6)


class Rogue(nn.Module):
    """What FSDP1 leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Parameter(torch.ones(5))
        self.flat._is_flat_param = True  # type: ignore[attr-defined]


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: regularize(mlp().parameters(), L2(1.0)), TypeError, r"`model` should be a torch.nn.Module"),
    (lambda: penalty(torch.ones(2)), TypeError, r"`model` should be a torch.nn.Module, got Tensor"),
    (lambda: regularize(mlp(), 0.1), ValueError, "Could not interpret regularizer identifier: 0.1"),
    (lambda: regularize(mlp(), rules=[("0.*", -1.0)]), ValueError, "expected a non-negative float"),
    (lambda: regularize(mlp(), rules=[("0.*", float("nan"))]), ValueError, "expected a non-negative float"),
    (lambda: regularize(mlp(), rules=[("encoder.*", 0.1)]), ValueError, r"'encoder\.\*', which matches no parameter"),
    (lambda: regularize(mlp(), rules=[("*.bias", 0.1)]), ValueError, "nothing it applies to is a weight"),
    (lambda: regularize(mlp(), L2(1.0), inert="drop"), ValueError, "`inert` should be one of"),
    (lambda: regularize(Rogue(), L2(1.0)), ValueError, "flat parameter of FSDP1"),
    (lambda: L2Linear(2, 2, l2=-1), ValueError, "argument l2: expected a non-negative float"),
    (lambda: L2Linear(2, 2, l2=0.5, weight_regularizer="l1"), ValueError, "got both `l2` = 0.5 and `weight_regul"),
    (lambda: L2Linear(2, 2, bias=False, bias_regularizer="l2"), ValueError, "`bias_regularizer` .* `bias=False`"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_rules_that_disagree_on_a_tied_weight_name_both() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"disagrees on one tied parameter: .*`0.weight`.*`1.weight`"):
        regularize(model, rules=[("0.*", 0.1), ("1.*", 0.2)])
    assert penalty(model).item() == 0
