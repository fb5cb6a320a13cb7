import copy
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import torchridge.regularizers as regularizers
from torchridge.regularizers import L1, L1L2, L2, OrthogonalRegularizer, Regularizer

EVERY = [L1(0.1), L2(0.1), L1L2(0.1, 0.2), OrthogonalRegularizer(0.3, mode="columns")]


def test_keras_own_tests_pass_with_only_the_import_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("keras is not installed")
    own = Path(next(iter(spec.submodule_search_locations))) / "src/regularizers/regularizers_test.py"
    if not own.exists():
        pytest.skip("this keras ships without its tests")
    text = own.read_text().replace("from keras.src import regularizers", "from torchridge import regularizers")
    text = text.replace("from keras.src.regularizers.regularizers import", "from torchridge.regularizers import")
    namespace: dict[str, Any] = {"__name__": "keras_tests"}
    exec(compile(text, str(own), "exec"), namespace)

    import unittest

    import keras

    loaded = unittest.defaultTestLoader.loadTestsFromTestCase
    suite = unittest.TestSuite(loaded(namespace[name]) for name in ("RegularizersTest", "ValidateFloatArgTest"))
    for cls in (L1, L2, L1L2, OrthogonalRegularizer):  # Keras's own saving finds foreign classes in here alone
        monkeypatch.setitem(keras.saving.get_custom_objects(), cls.__name__, cls)
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 30
    assert not result.failures + result.errors, (result.failures + result.errors)[0][1]


@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
def test_configs_go_round_exactly(regularizer: Regularizer) -> None:
    config = json.loads(json.dumps(regularizers.serialize(regularizer)))
    assert regularizers.deserialize(config) == regularizer
    assert regularizers.get(config) == regularizer
    assert type(regularizer).from_config(regularizer.get_config()) == regularizer
    assert eval(repr(regularizer)) == regularizer
    assert pickle.loads(pickle.dumps(regularizer)) == copy.deepcopy(regularizer) == regularizer
    assert hash(copy.deepcopy(regularizer)) == hash(regularizer)


@pytest.mark.parametrize("regularizer", EVERY, ids=repr)
def test_keras_and_torchridge_read_each_others_configs(regularizer: Regularizer) -> None:
    keras = pytest.importorskip("keras")
    theirs = keras.regularizers.deserialize(regularizers.serialize(regularizer))
    assert type(theirs).__module__.startswith("keras")
    for name, value in regularizer.get_config().items():  # Keras rounds some strengths to float32
        assert theirs.get_config()[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-7))
    ours = regularizers.deserialize(keras.regularizers.serialize(theirs))
    assert type(ours) is type(regularizer)
    assert ours.get_config() == theirs.get_config()


def test_names() -> None:
    assert regularizers.get("l2") == L2(0.01)
    assert regularizers.get("l1_l2") == L1L2(0.01, 0.01)
    assert regularizers.get("l1l2") == L1L2()
    assert regularizers.get("orthogonal") == OrthogonalRegularizer(0.01, mode="rows")
    assert regularizers.get(L1) == regularizers.l1()
    assert regularizers.get(None) is None
    assert regularizers.get(torch.sum) is torch.sum


def test_different_regularizers_are_unequal() -> None:
    assert len({L2(0.1), L2(0.1), L2(0.2), L1(0.1), L1L2(l2=0.1)}) == 4
    assert L2(torch.tensor(0.5)) == L2(0.5)
    assert Regularizer() != Regularizer()
    assert L2(0.1) != 0.1


def test_a_subclass_needs_no_more_than_keras_asks_for() -> None:
    class Cubed(Regularizer):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x.abs().pow(3).sum()

        def get_config(self) -> dict[str, Any]:
            return {"factor": self.factor}

    config = regularizers.serialize(Cubed(0.5))
    assert regularizers.deserialize(config, custom_objects={"Cubed": Cubed}) == Cubed(0.5)
    with pytest.raises(ValueError, match=r"'Cubed', which is not built in.*custom_objects"):
        regularizers.deserialize(config)


def test_float64_is_penalized_in_float64() -> None:
    x = torch.randn(50, dtype=torch.float64)
    for got, want in [
        (L1(0.1)(x), 0.1 * x.abs().sum()),
        (L2(0.1)(x), 0.1 * x.square().sum()),
        (L2(torch.tensor(0.1, dtype=torch.float64))(x), 0.1 * x.square().sum()),
    ]:
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, want, rtol=1e-15, atol=0)


def test_half_precision_is_penalized_in_float32() -> None:
    x = torch.full((1000,), 300.0, dtype=torch.float16)  # its square overflows float16
    for got, want in [(L2(1.0)(x), 9e7), (L1(1.0)(x), 3e5), (L1L2(1.0, 1.0)(x), 9.03e7)]:
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(want, rel=1e-6)


def test_complex_counts_by_its_modulus() -> None:
    z = torch.tensor([3 + 4j, 1j])
    assert float(L2(1.0)(z)) == 26
    assert float(L1(1.0)(z)) == 6
    unitary = torch.tensor([[1, 1j], [1j, 1]])
    assert float(OrthogonalRegularizer(1.0)(unitary)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("x", [torch.randn(1, 5), torch.zeros(3, 4), torch.eye(3)], ids=["one row", "zero", "eye"])
def test_orthogonal_is_finite_with_a_finite_gradient(x: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    value = OrthogonalRegularizer(0.1)(x)
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_a_learned_strength_gets_its_gradient() -> None:
    strength = torch.tensor(0.5, requires_grad=True)
    L2(strength)(torch.tensor([1.0, 2.0])).backward()
    assert strength.grad == 5


BAD = [
    (lambda: L2(-1.0), ValueError, "argument l2: expected a non-negative float. Received: l2=-1"),
    (lambda: L2(float("nan")), ValueError, "argument l2: expected a non-negative float"),
    (lambda: L1("0.1"), ValueError, "argument l1: expected a non-negative float"),
    (lambda: L1L2(l2=float("inf")), ValueError, "argument l2: expected a non-negative float"),
    (lambda: L2(torch.tensor(-0.1)), ValueError, "argument l2: expected a non-negative float"),
    (lambda: L2(torch.ones(2)), ValueError, "`l2` as a finite number .* or as a 0-d floating-point tensor"),
    (lambda: OrthogonalRegularizer(factor=-1), ValueError, "argument factor: expected"),
    (lambda: OrthogonalRegularizer(mode="both"), ValueError, "argument `mode`. Expected one of"),
    (lambda: OrthogonalRegularizer()(torch.ones(2, 2, 2)), ValueError, "must have rank 2"),
    (lambda: regularizers.get("l3"), ValueError, "Could not interpret regularizer identifier: 'l3'. Expected"),
    (lambda: regularizers.get(0.01), ValueError, "Could not interpret regularizer identifier: 0.01"),
    (lambda: regularizers.get({"config": {}}), ValueError, "Unknown `config`"),
    (lambda: regularizers.serialize(lambda x: x), TypeError, "`regularizer` should be a Regularizer or a named"),
    (lambda: Regularizer().get_config(), NotImplementedError, r"does not implement get_config\(\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
