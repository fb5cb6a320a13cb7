"""AdamW on a small transformer: weights decayed, biases and gains not, and the table that says why."""

import torch
from torch import nn

from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups
from torchridge.training.weight_decay.schedule import CosineWeightDecay

torch.manual_seed(0)
vocabulary, width, length = 16, 32, 12


class TinyTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


model = TinyTransformer()

# Before: AdamW(model.parameters(), weight_decay=0.1) shrinks the norms' gains and every bias as well.
table = explain_weight_decay(model, 0.1, layer_decay=0.8)
for name in ("embed.weight", "pos_embed", "blocks.0.self_attn.in_proj_weight", "blocks.0.self_attn.in_proj_bias"):
    print(f"{name}: {table[name].group}, {table[name].reason}")
# embed.weight: layer_0/decay, weight of Linear; tied with `head.weight`
# pos_embed: layer_0/no_decay, `pos_embed` of TinyTransformer is named as a learned token or position
# blocks.0.self_attn.in_proj_weight: layer_1/decay, weight of MultiheadAttention
# blocks.0.self_attn.in_proj_bias: layer_1/no_decay, `in_proj_bias` of MultiheadAttention is named as a bias
print(str(table).splitlines()[-1])
# 9 decayed, 20 not decayed, 0 frozen

groups = weight_decay_groups(model, 0.1, lr=3e-3, layer_decay=0.8, optimizer=torch.optim.AdamW)
for group in groups:
    print(
        f"{group['name']}: {len(group['params'])} tensors, weight_decay {group['weight_decay']}, lr {group['lr']:.5f}"
    )
# layer_0/decay: 1 tensors, weight_decay 0.1, lr 0.00154
# layer_0/no_decay: 1 tensors, weight_decay 0.0, lr 0.00154
# layer_1/decay: 4 tensors, weight_decay 0.1, lr 0.00192
# layer_1/no_decay: 8 tensors, weight_decay 0.0, lr 0.00192
# layer_2/decay: 4 tensors, weight_decay 0.1, lr 0.00240
# layer_2/no_decay: 8 tensors, weight_decay 0.0, lr 0.00240
# layer_3/no_decay: 3 tensors, weight_decay 0.0, lr 0.00300

optimizer = torch.optim.AdamW(groups)
schedule = CosineWeightDecay(optimizer, total_steps=150, end_factor=0.1)

# The task: repeat the sequence back to front.
for step in range(150):
    tokens = torch.randint(vocabulary, (32, length))
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flip(1).flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step in (0, 149):
        print(f"step {step}: loss {loss.item():.2f}, weight decay {schedule.get_last_weight_decay()[0]:.3f}")
# step 0: loss 2.94, weight decay 0.100
# step 149: loss 0.64, weight decay 0.010
