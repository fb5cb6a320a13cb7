"""Lightning itself, against SGD's own weight decay in the same trainer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torchridge import CosineWeightDecay, DecoupledWeightDecay, penalty, regularize, weight_decay_groups
from torchridge.regularizers import L2

lightning = pytest.importorskip("lightning.pytorch", reason="the extra `integrations` is not installed")

from torchridge.integrations.lightning import L2Callback  # noqa: E402

LAMBDA = 0.05
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Regression(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, weight_decay: float = 0.0, make: Any = torch.optim.SGD, in_loss: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.weight_decay, self.make, self.in_loss = weight_decay, make, in_loss
        self.skip = False

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        x, y = batch
        loss = (self.model(x) - y).square().mean()
        return None if self.skip and index % 2 else loss + penalty(self) if self.in_loss else loss

    def configure_optimizers(self) -> Any:
        optimizer = self.make(weight_decay_groups(self, self.weight_decay), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def fit(module: Any, callbacks: Any = (), epochs: int = 2, **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 4, generator=generator), torch.randn(32, 1, generator=generator)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"logger": False, "accelerator": "cpu", "devices": 1, **quiet, **options}
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=list(callbacks), **given)
    trainer.fit(module, DataLoader(TensorDataset(x, y), 4))
    return [p.detach().clone() for p in module.model.parameters()]


def close(a: list[Tensor], b: list[Tensor], rtol: float = 1e-5) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=1e-6)


OPTIONS = [
    {},
    {"accumulate_grad_batches": 4},
    {"gradient_clip_val": 0.05},
    {"precision": "bf16-mixed"},
    {"precision": "64-true"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_the_callback_is_the_optimizers_own_decay(make: Any, options: Any) -> None:
    penalized = fit(Regression(make=make), [L2Callback(LAMBDA)], **options)
    close(penalized, fit(Regression(2 * LAMBDA, make=make), **options))
    assert float((penalized[0] - fit(Regression(make=make), **options)[0]).abs().max()) > 1e-3


def test_in_the_loss_lightning_divides_the_penalty_by_the_accumulation() -> None:
    in_loss = fit(regularize(Regression(in_loss=True), L2(LAMBDA)), accumulate_grad_batches=4)
    close(in_loss, fit(Regression(2 * LAMBDA), accumulate_grad_batches=4))


def test_a_module_that_skips_batches() -> None:
    skipping = Regression()
    skipping.skip = True
    fit(skipping, [L2Callback(LAMBDA)])


def test_regularizers_of_the_module_and_a_second_fit() -> None:
    callback = L2Callback()
    module = regularize(Regression(), L2(LAMBDA))
    fit(module, [callback], epochs=1)
    again, plain = fit(module, [callback], epochs=1), Regression(2 * LAMBDA)
    fit(plain, epochs=1)
    close(again, fit(plain, epochs=1))
    assert callback._hooks == []


def test_it_logs_through_the_modules_own_logger() -> None:
    from lightning.pytorch.loggers.logger import Logger

    rows: list[tuple[int, dict[str, float]]] = []

    class Kept(Logger):  # type: ignore[misc]
        name = version = "kept"

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            rows.append((step or 0, metrics))

    fit(Regression(), [L2Callback(LAMBDA, every=2)], epochs=1, logger=Kept(), log_every_n_steps=1)
    seen = {step: metrics for step, metrics in rows if "l2/strength" in metrics}
    assert sorted(seen) == [0, 2, 4, 6]
    assert seen[2]["l2/strength"] == pytest.approx(LAMBDA)
    assert {"l2/weight_norm/model.0.weight", "l2/total_norm", "l2/lr/decay"} <= set(seen[2])


def test_backbone_finetuning_adds_groups_without_names() -> None:
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Finetuned(Regression):
        def __init__(self, names: bool) -> None:
            super().__init__()
            self.backbone, self.names = nn.Linear(4, 4), names

        def training_step(self, batch: Any, index: int) -> Tensor:
            return self.model(self.backbone(batch[0])).square().mean()

        def configure_optimizers(self) -> Any:
            groups = weight_decay_groups(self.model, 0.1, param_names=self.names)
            optimizer = torch.optim.AdamW(groups, lr=0.1)
            DecoupledWeightDecay(optimizer, independent_of_lr=True)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0, verbose=False)
    module = Finetuned(names=False)
    fit(module, [callback], epochs=2)
    with pytest.raises(ValueError, match="with/without names"):
        fit(Finetuned(names=True), [callback], epochs=2)


def test_schedules_and_decoupled_decay_in_configure_optimizers() -> None:
    class Scheduled(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(weight_decay_groups(self, 0.5), lr=0.1)
            DecoupledWeightDecay(optimizer)
            self.schedule = CosineWeightDecay(optimizer, total_steps=8)
            return optimizer

        def on_train_batch_end(self, *args: Any) -> None:
            self.schedule.step()

    module = Scheduled()
    fit(module, epochs=1)
    assert module.schedule.get_last_weight_decay() == pytest.approx([0.0, 0.0])


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="`rule` is unknown; expected `bias`"):
        L2Callback(0.1, rule=())
    with pytest.raises(ValueError, match="`every` should be an integer"):
        L2Callback(0.1, every=0)
    with pytest.raises(ValueError, match="carries no regularizer of weights"):
        fit(Regression(), [L2Callback()])
