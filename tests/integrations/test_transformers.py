"""Hugging Face's Trainer itself, against its own optimizer with weight decay on the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from torchridge import penalty, regularize, weight_decay_groups
from torchridge.regularizers import L2

transformers = pytest.importorskip("transformers", reason="the extra `integrations` is not installed")
pytest.importorskip("accelerate", reason="the extra `integrations` is not installed")

from torchridge.integrations.transformers import (  # noqa: E402
    L2TrainerCallback,
    WeightDecayMixin,
    decay_parameter_names,
)

LAMBDA = 0.05
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(32, 4, generator=generator), torch.randn(32, 1, generator=generator)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.last(self.norm(self.first(x)).tanh()) * self.scale.mean()
        return {"loss": (out - labels).square().mean(), "logits": out}


def train(
    folder: Any,
    optimizer: str = "sgd",
    weight_decay: float = 0.0,
    callbacks: Any = None,
    cls: Any = None,
    **options: Any,
) -> tuple[nn.Module, Any]:
    model = options.pop("model", None) or Regression()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=0.1,
        optim=optimizer,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        **options,
    )
    groups = weight_decay_groups(model, weight_decay, inert="keep")
    made = torch.optim.SGD(groups, lr=0.1) if optimizer == "sgd" else torch.optim.Adam(groups, lr=0.01)
    trainer = (cls or transformers.Trainer)(
        model=model, args=arguments, train_dataset=Rows(), callbacks=callbacks, optimizers=(made, None)
    )
    trainer.train()
    return model, trainer


def close(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_callback_is_the_optimizers_own_decay(tmp_path: Any, optimizer: str, steps: int, clip: float) -> None:
    options = {"gradient_accumulation_steps": steps, "max_grad_norm": clip}
    callback = L2TrainerCallback(LAMBDA, inert="keep")
    penalized, _ = train(tmp_path, optimizer, callbacks=[callback], **options)
    decayed, _ = train(tmp_path, optimizer, 2 * LAMBDA, **options)
    close(penalized, decayed)
    assert callback._hooks == []
    plain, _ = train(tmp_path, optimizer, **options)
    assert float((plain.first.weight - decayed.first.weight).abs().max()) > 1e-3  # type: ignore[union-attr,operator]


def test_under_bfloat16(tmp_path: Any) -> None:
    penalized, _ = train(tmp_path, callbacks=[L2TrainerCallback(LAMBDA, inert="keep")], bf16=True)
    close(penalized, train(tmp_path, weight_decay=2 * LAMBDA, bf16=True)[0])


def test_a_penalty_in_compute_loss_counts_as_often_as_the_trainer_adds_it(tmp_path: Any) -> None:
    """What the callback is for: the same penalty in the loss depends on how the Trainer scales it."""

    class InLoss(transformers.Trainer):  # type: ignore[misc]
        loss_is_scaled_for_ga = True  # as of a loss over `num_items_in_batch`: the Trainer does not divide it

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs) / 4 + penalty(model)

    options = {"gradient_accumulation_steps": 4, "max_grad_norm": 0.0}
    in_loss, _ = train(tmp_path, cls=InLoss, model=regularize(Regression(), L2(LAMBDA), inert="keep"), **options)
    fourfold, _ = train(tmp_path, weight_decay=8 * LAMBDA, **options)
    close(in_loss, fourfold)


def test_it_writes(tmp_path: Any) -> None:
    class Kept(dict[tuple[str, int], float]):
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self[tag, step] = value

    kept = Kept()
    train(tmp_path, callbacks=[L2TrainerCallback(LAMBDA, writer=kept, every=3, inert="keep")])
    assert kept["l2/strength", 3] == pytest.approx(LAMBDA)
    assert {step for _, step in kept} == {0, 3, 6, 9, 12, 15}


def test_the_mixin_decays_weights_alone(tmp_path: Any) -> None:
    class Decaying(WeightDecayMixin, transformers.Trainer):  # type: ignore[misc]
        pass

    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), weight_decay=0.1, report_to=[], use_cpu=True)
    for cls, decayed in ((Decaying, ["first.weight", "last.weight"]), (transformers.Trainer, None)):
        model = Regression()
        optimizer = cls(model=model, args=arguments, train_dataset=Rows()).create_optimizer()
        names = {id(p): name for name, p in model.named_parameters()}
        got = [names[id(p)] for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]]
        if decayed is None:
            assert "scale" in got  # Trainer's rule decays a gain
        else:
            assert got == decayed
    assert decay_parameter_names(torch.compile(Regression())) == ["_orig_mod.first.weight", "_orig_mod.last.weight"]  # type: ignore[arg-type]
    assert decay_parameter_names(Regression(), rules={"last.*": {"decay": False}}) == ["first.weight"]


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="`rule` is unknown"):
        L2TrainerCallback(0.1, rule=())

    class Arguments:
        deepspeed = "zero2.json"

    with pytest.raises(ValueError, match=r"flat partitions.*`WeightDecayMixin`"):
        L2TrainerCallback(0.1).on_train_begin(Arguments(), None, None, model=Regression(), optimizer=None)
