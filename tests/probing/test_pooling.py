"""Pools under padding masks equal a plain loop over examples; token-level labels."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from torch import Tensor, nn

from torchridge.probing import probe_layers
from torchridge.probing.features.pooling import pooled, tensor_of

LENGTHS = [5, 1, 3, 7, 2, 7]


def sequences(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    hidden = torch.randn(len(LENGTHS), 7, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    return hidden.masked_fill(~mask[:, :, None], torch.nan), mask


LOOP = {
    "mean": lambda rows: rows.float().mean(0),
    "max": lambda rows: rows.float().amax(0),
    "cls": lambda rows: rows[0].float(),
    "last": lambda rows: rows[-1].float(),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pool", list(LOOP))
def test_pools_equal_a_loop(pool: str, dtype: torch.dtype, side: str, device: torch.device) -> None:
    hidden, mask = sequences(dtype)
    if side == "left":
        hidden, mask = hidden.flip(1), mask.flip(1)
    want = torch.stack([LOOP[pool](h[m]) for h, m in zip(hidden, mask, strict=True)])
    got = pooled(hidden.to(device), mask.to(device), pool, "x").cpu()
    torch.testing.assert_close(got.float(), want, rtol=1e-6, atol=1e-6)
    whole = pooled(hidden[3:4], None, pool, "x")
    torch.testing.assert_close(whole.float(), LOOP[pool](hidden[3])[None], rtol=1e-6, atol=1e-6)


def test_rows_share_no_memory_with_the_output() -> None:
    for hidden in (torch.ones(2, 3), torch.ones(2, 5, 3)):
        rows = pooled(hidden, None, "cls", "x")
        hidden.zero_()
        assert bool((rows == 1).all())


def test_callable_maps_and_containers() -> None:
    hidden, mask = sequences()
    second = pooled(hidden, mask, lambda h, m: h[:, 0] * m.sum(1, keepdim=True), "x")
    torch.testing.assert_close(second, hidden[:, 0] * torch.tensor(LENGTHS)[:, None])
    maps = torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(pooled(maps, None, "mean", "x"), maps.mean((2, 3)))

    class Output:
        last_hidden_state = maps

    for output in (maps, (maps, 1), [None, maps], {"logits": maps}, Output()):
        assert tensor_of(output, "x") is maps
    with pytest.raises(TypeError, match="layer 'x' returns str"):
        tensor_of("no", "x")


@pytest.mark.parametrize(
    ("hidden", "mask", "pool", "message"),
    [
        (torch.ones(2, 3, 4, 5), None, "cls", "`pool`='cls' cannot make rows of layer 'x'"),
        (torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), "mean", "the mask has shape"),
        (torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool), "mean", "no token that counts"),
        (torch.ones(2, 3, 4), None, lambda h, m: h, "`pool` should return rows"),
    ],
)
def test_refused(hidden: Tensor, mask: Tensor | None, pool: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pooled(hidden, mask, pool, "x")


class Encoder(nn.Module):
    """Takes named inputs, as language models do, and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(20, 6), nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 5)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(input_ids)
        for layer in self.layer:
            x = layer(x).tanh()
        return x, attention_mask


def text() -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(8):
        ids = torch.randint(20, (12, 7), generator=g)
        mask = torch.arange(7) < torch.randint(1, 8, (12, 1), generator=g)
        batches.append({"input_ids": ids, "attention_mask": mask.long(), "labels": torch.randn(12, generator=g)})
    return batches


def test_mappings_with_masks(device: torch.device) -> None:
    model, batches = Encoder().to(device), text()
    report = probe_layers(model, batches, "layer.*", pool="mean", cv=4)
    assert [p.layer for p in report] == ["layer.0", "layer.1"]
    rows, y = [], torch.cat([b["labels"] for b in batches]).numpy()
    for b in batches:
        with torch.no_grad():
            out = model.layer[0](model.embed(b["input_ids"].to(device))).cpu()
        rows += [o[m.bool()].mean(0).double().numpy() for o, m in zip(out, b["attention_mask"], strict=True)]
    F, ids = np.stack(rows), np.arange(len(y)) % 4
    probe = report.of("layer.0")
    for k in range(4):
        peer = Ridge(alpha=probe.strength).fit(F[ids != k], y[ids != k])
        np.testing.assert_allclose(probe.fold_scores["r2"][k].cpu(), peer.score(F[ids == k], y[ids == k]), atol=1e-6)


def test_token_labels(device: torch.device) -> None:
    model, batches = Encoder().to(device), text()
    for b in batches:
        b["labels"] = torch.where(torch.arange(7) == 2, -100, b["input_ids"] % 3)
    report = probe_layers(
        model, batches, "layer.0", pool="token", task="classification", metrics="accuracy", cv=3, alphas=[1e-3]
    )
    rows, labels, example = [], [], []
    for i, b in enumerate(batches):
        with torch.no_grad():
            out = model.layer[0](model.embed(b["input_ids"].to(device))).cpu()
        for j in range(12):
            for t in range(7):
                if b["attention_mask"][j, t] and t != 2:
                    rows.append(out[j, t].double().numpy())
                    labels.append(int(b["labels"][j, t]))
                    example.append(12 * i + j)
    F, y, ids = np.stack(rows), np.array(labels), np.array(example) % 3  # tokens of an example stay together
    assert report.n_samples == len(y)
    probe = report.best
    for k in range(3):
        peer = RidgeClassifier(alpha=probe.strength).fit(F[ids != k], y[ids != k])
        assert float(probe.fold_scores["accuracy"][k]) == pytest.approx(peer.score(F[ids == k], y[ids == k]), abs=1e-12)


def test_padding_mask_of_torch_and_named_masks() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    x, keep = torch.randn(12, 5, 4), torch.arange(5) < torch.randint(1, 6, (12, 1))
    y = torch.randn(12)
    found = probe_layers(layer, [({"src": x, "src_key_padding_mask": ~keep}, y)], "norm2", cv=2)
    named = probe_layers(layer, [({"src": x, "src_key_padding_mask": ~keep}, y)], "norm2", cv=2, mask=lambda _: keep)
    torch.testing.assert_close(found.best.weight, named.best.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`mask`='other' is not among the inputs"):
        probe_layers(layer, [({"src": x}, y)], "norm2", cv=2, mask="other")
