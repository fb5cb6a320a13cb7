"""Keras itself, on its torch backend, trains beside torchridge from the same weights on the same data."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchridge import regularizers
from torchridge.training.penalties.attach import penalty
from torchridge.training.penalties.layers import L2Linear

keras = pytest.importorskip("keras")

# Keras holds the strengths of L1 and orthogonal in float32: a power of two is the same number there.
STRENGTH = 2.0**-7
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weight l2": ({"kernel_regularizer": "l2"}, {"weight_regularizer": "l2"}),
    "bias l2": ({"bias_regularizer": "l2"}, {"bias_regularizer": "l2"}),
    "activity l2": ({"activity_regularizer": "l2"}, {"activity_regularizer": "l2"}),
    "l1": ({"kernel_regularizer": "l1"}, {"weight_regularizer": "l1"}),
    "l1l2": (
        {"kernel_regularizer": "both", "bias_regularizer": "l1"},
        {"weight_regularizer": "both", "bias_regularizer": "l1"},
    ),
    # A Keras kernel is (in, out), a torch weight (out, in).
    "orthogonal": ({"kernel_regularizer": "rows"}, {"weight_regularizer": "columns"}),
}
DTYPES = {torch.float32: 1e-6, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _float64_stays_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Keras's products and quotients turn float64 into float32, which would hide all agreement beyond 1e-7.
    from keras.src.backend.common import dtypes

    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    before, threads = keras.config.floatx(), torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny products, which threads that wait for each other only slow down
    yield
    torch.set_num_threads(threads)
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(before)


def build(module: Any, names: dict[str, str]) -> dict[str, Any]:
    made = {
        "l2": module.L2(0.01),
        "l1": module.L1(STRENGTH),
        "both": module.L1L2(l1=0.002, l2=0.01),
        "rows": module.OrthogonalRegularizer(8 * STRENGTH, mode="rows"),
        "columns": module.OrthogonalRegularizer(8 * STRENGTH, mode="columns"),
    }
    return {argument: made[name] for argument, name in names.items()}


class Pair:
    """Dense(25, relu) under regularizers and Dense(3), in Keras and here, from the same weights."""

    def __init__(self, case: str, dtype: torch.dtype) -> None:
        theirs, ours = CASES[case]
        named = str(dtype).removeprefix("torch.")
        keras.config.set_floatx(named)  # a model casts its inputs to this, whatever its layers are told
        keras.config.set_dtype_policy(named)
        make = keras.layers
        self.keras = keras.Sequential(
            [
                make.Input((10,)),
                make.Dense(25, activation="linear", **build(keras.regularizers, theirs)),
                make.Activation("relu"),
                make.Dense(3),
            ]
        )
        if case != "activity l2":  # as people write it; an output penalty counts after the activation in Keras
            self.keras = keras.Sequential(
                [
                    make.Input((10,)),
                    make.Dense(25, activation="relu", **build(keras.regularizers, theirs)),
                    make.Dense(3),
                ]
            )
        first = L2Linear(10, 25, l2=0.0, dtype=dtype, **build(regularizers, ours))
        self.torch = nn.Sequential(first, nn.ReLU(), nn.Linear(25, 3, dtype=dtype))
        with torch.no_grad():
            for variable, parameter in zip(self.variables(), self.torch.parameters(), strict=True):
                variable.copy_(parameter.mT if parameter.ndim > 1 else parameter)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(64, 10, dtype=dtype, generator=generator)
        self.y = torch.randn(64, 3, dtype=dtype, generator=generator)

    def variables(self) -> list[Tensor]:
        return [variable.value for variable in self.keras.trainable_variables]

    def losses(self) -> tuple[Tensor, Tensor]:
        theirs = (self.keras(self.x) - self.y).square().mean() + sum(self.keras.losses)
        ours = (self.torch(self.x) - self.y).square().mean() + penalty(self.torch)
        return theirs, ours

    def differences(self, of: Callable[[Tensor], Tensor | None]) -> list[float]:
        """Relative to the largest element of each tensor."""
        result = []
        for variable, parameter in zip(self.variables(), self.torch.parameters(), strict=True):
            a, b = of(variable), of(parameter)
            assert a is not None
            assert b is not None
            result.append(float(((a.mT if a.ndim > 1 else a) - b).abs().max() / a.abs().max()))
        return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_agree(case: str, dtype: torch.dtype) -> None:
    pair = Pair(case, dtype)
    theirs, ours = pair.losses()
    assert ours.item() == pytest.approx(theirs.item(), rel=DTYPES[dtype])
    assert penalty(pair.torch).item() > 0
    theirs.backward()
    ours.backward()
    assert max(pair.differences(lambda t: t.grad)) < DTYPES[dtype]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_two_hundred_steps_agree(case: str, dtype: torch.dtype, optimizer: Any) -> None:
    pair = Pair(case, dtype)
    lr = 0.05 if optimizer is torch.optim.SGD else 1e-3
    theirs, ours = optimizer(pair.variables(), lr=lr), optimizer(pair.torch.parameters(), lr=lr)
    for _ in range(200):
        for loss, steps in zip(pair.losses(), (theirs, ours), strict=True):
            steps.zero_grad()
            loss.backward()
            steps.step()
    assert max(pair.differences(lambda t: t.detach())) < DTYPES[dtype]


def test_frozen_and_evaluation_follow_keras() -> None:
    pair = Pair("weight l2", torch.float64)
    pair.torch.eval()
    assert penalty(pair.torch).item() == pytest.approx(float(sum(pair.keras.losses)), rel=1e-12)
    pair.keras.layers[0].trainable = False
    pair.torch[0].requires_grad_(False)
    assert penalty(pair.torch).item() == 0 == sum(pair.keras.losses)
