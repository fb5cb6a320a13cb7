"""Another strength for each part of a network: ordered rules by name, type, regular expression and predicate."""

import re

import torch
from torch import nn

from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups

torch.manual_seed(0)
model = nn.Sequential()
model.add_module("stem", nn.Linear(64, 128))
model.add_module("body", nn.Sequential(nn.ReLU(), nn.Linear(128, 128), nn.LayerNorm(128), nn.ReLU()))
model.add_module("head", nn.Linear(128, 10))

# The first rule that matches decides. A strength acts on weights only: `stem` decays no bias.
rules = [
    ("stem", 0.01),  # a glob, for a parameter or a module around it
    (nn.LayerNorm, {"lr_scale": 0.5}),
    (re.compile(r"^body\.\d+\.weight$"), 0.1),
    (lambda name, parameter, module: parameter.shape[0] == 10, {"weight_decay": 1.0, "lr_scale": 2.0}),
]
for row in explain_weight_decay(model, 0.05, rules=rules):
    print(f"{row.name}: {row.group}, {row.reason}")
# stem.weight: decay=0.01, weight of Linear; by the pattern 'stem'
# stem.bias: no_decay, bias of Linear
# body.1.weight: decay=0.1, weight of Linear; by the regular expression '^body\\.\\d+\\.weight$'
# body.1.bias: no_decay, bias of Linear
# body.2.weight: no_decay/lr×0.5, parameter of LayerNorm, a normalization; by the type LayerNorm
# body.2.bias: no_decay/lr×0.5, parameter of LayerNorm, a normalization; by the type LayerNorm
# head.weight: decay=1/lr×2, weight of Linear; by the predicate <lambda>
# head.bias: no_decay/lr×2, bias of Linear; by the predicate <lambda>

# A rule that does nothing is an error.
try:
    weight_decay_groups(model, 0.05, rules=[*rules, ("tail", 0.1)], lr=1e-2)
except ValueError as error:
    print(error)
# `rules` has the pattern 'tail', which matches no parameter; expected every rule to match one. The names here are
# `stem.weight`, `stem.bias`, `body.1.weight`, ...

optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.05, rules=rules, lr=1e-2))
x, y = torch.randn(256, 64), torch.randint(10, (256,))
before = {name: p.norm().item() for name, p in model.named_parameters()}
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
for name in ("stem.weight", "body.1.weight", "head.weight"):
    print(f"{name}: norm {before[name]:.2f} -> {model.get_parameter(name).norm().item():.2f}")
# stem.weight: norm 6.51 -> 10.42
# body.1.weight: norm 6.54 -> 9.65
# head.weight: norm 1.79 -> 3.32
