"""Gradient accumulation with mixed precision: the penalty counts once per step, unscaled."""

import torch
from torch import nn

from torchridge.training.penalties.attach import penalty, regularize
from torchridge.training.penalties.regularizers import L2
from torchridge.training.penalties.step import penalize_step

micro_batches, strength = 4, 0.05
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(64, 10, generator=generator), torch.randn(64, 1, generator=generator)


def network() -> nn.Module:
    torch.manual_seed(0)
    return regularize(nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)), L2(strength))


def squared_norm(model: nn.Module) -> float:
    return round(penalty(model).item() / strength, 4)


# What is meant: the full batch in float64, the penalty in the loss.
meant = network().double()
optimizer = torch.optim.SGD(meant.parameters(), lr=0.1)
for _ in range(50):
    optimizer.zero_grad()
    (nn.functional.mse_loss(meant(x.double()), y.double()) + penalty(meant)).backward()
    optimizer.step()
print("meant:", squared_norm(meant))
# meant: 4.9594

# The trap: added to every micro-batch's loss and not divided, the penalty counts four times.
trap = network()
optimizer = torch.optim.SGD(trap.parameters(), lr=0.1)
for _ in range(50):
    optimizer.zero_grad()
    for xs, ys in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        (nn.functional.mse_loss(trap(xs), ys) / micro_batches + penalty(trap)).backward()
    optimizer.step()
print("trap:", squared_norm(trap))
# trap: 0.7638

# Once per step: `GradScaler` unscales the gradients first, and clipping sees the loss's gradient alone.
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
penalize_step(optimizer, model)
scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
for _ in range(50):
    for xs, ys in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(xs)
        scaler.scale(nn.functional.mse_loss(out.float(), ys) / micro_batches).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
print("once per step:", squared_norm(model))
# once per step: 4.9594
