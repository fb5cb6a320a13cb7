"""The Keras line, and the line that replaces it: the same penalty, the same training."""

import torch
from torch import nn

from torchridge.regularizers import L1L2, deserialize, get, l2, serialize
from torchridge.training.penalties.attach import penalties, penalty, regularize
from torchridge.training.penalties.layers import L2Linear

torch.manual_seed(0)
x, y = torch.randn(256, 20), torch.randint(0, 3, (256,))

# Keras: Dense(25, activation="relu", kernel_regularizer=l2(0.01)), Dense(3, kernel_regularizer="l2")
model = nn.Sequential(L2Linear(20, 25, l2=0.01), nn.ReLU(), L2Linear(25, 3, weight_regularizer="l2"))
print(model[0])
# L2Linear(in_features=20, out_features=25, bias=True, weight_regularizer=L2(l2=0.01))

# Keras adds the penalties in `fit`; here they are a term of the loss. Biases are not penalized, as in Keras.
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(100):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y) + penalty(model)
    loss.backward()
    optimizer.step()
print({name: round(value.item(), 3) for name, value in penalties(model).items()})
# {'0.weight': 0.169, '2.weight': 0.167}

# The strength is Keras's: for SGD and Adam it is half of torch's `weight_decay`. AdamW's is something else.
weight = model[0].weight.detach()
print(torch.allclose(torch.autograd.grad(penalty(model), model[0].weight)[0], 2 * 0.01 * weight))
# True

# A network that exists already takes regularizers too; `bias=` and `activity=` are Keras's other two arguments.
plain = nn.Sequential(nn.Linear(20, 25), nn.ReLU(), nn.LayerNorm(25), nn.Linear(25, 3))
regularize(plain, l2(1e-4), bias=L1L2(l1=1e-5, l2=1e-5), activity=l2(1e-3))
plain(x)
print(list(penalties(plain)))
# ['0.weight', '0.bias', '3.weight', '3.bias', '0.activity', '3.activity']

# Configs are Keras's, and go round exactly.
config = serialize(l2(0.1))
print(config)
# {'module': 'torchridge.regularizers', 'class_name': 'L2', 'config': {'l2': 0.1}, 'registered_name': None}
print(deserialize(config) == l2(0.1), get("l1_l2"))
# True L1L2(l1=0.01, l2=0.01)
