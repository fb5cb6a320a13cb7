"""Probe every layer of a trained network in one forward pass, then refit its last layer in closed form.

A small convolutional network learns the digits for a few epochs. `probe_layers` reads out every layer; the strength is
chosen among 100 by 5 folds, from moments alone, and a second pass gives accuracy. `fit_head_` replaces the network's
own head by its closed-form optimum.

    python examples/probe_layers.py
"""

import copy
import tempfile

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn

from torchridge.probing import ProbeReport, fit_head_, probe_layers

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.fc1, self.drop, self.fc = nn.Linear(32 * 16, 48), nn.Dropout(0.2), nn.Linear(48, 10)

    def features(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        return self.fc1(x.flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.features(x)))


digits = load_digits()
X, y = torch.from_numpy(digits.images[:, None] / 16).float(), torch.from_numpy(digits.target)
order = torch.randperm(len(X))
train, valid = order[:1200], order[1200:]


def batches(rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(X[i], y[i]) for i in rows.split(100)]


model = Net()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(3):
    for inputs, labels in batches(train):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def accuracy(net: nn.Module) -> float:
    net.eval()
    with torch.no_grad():
        return float((net(X[valid]).argmax(1) == y[valid]).double().mean())


# Every layer, two readouts, one pass for the fit and a second one for accuracy.
report = probe_layers(
    model,
    batches(train),
    layers=["conv*", "fc*"],
    pool="mean",
    task="classification",
    readout=["ridge", "lda"],
    metrics="accuracy",
    control=True,
    bootstrap=500,
)
for probe in report:
    print(
        f"{probe.layer:6} {probe.readout:6} strength {probe.strength:8.3g}  accuracy {probe.scores['accuracy']:.3f} "
        f"({probe.interval[0]:.3f} to {probe.interval[1]:.3f})  shuffled labels {probe.control['accuracy']:.3f}"
    )
print("best:", report.best.layer, report.best.readout)
# RESULT1#

# The usual way gives the same weights: extract the features, then scikit-learn.
with torch.no_grad():
    features = model.eval().conv2(model.norm1(model.conv1(X[train])).relu()).mean((2, 3)).double().numpy()
ridge = report.of("conv2", "ridge")
peer = RidgeClassifier(alpha=ridge.strength).fit(features, y[train].numpy())
print(f"largest difference of weights to scikit-learn: {abs(peer.coef_ - ridge.weight.numpy()).max():.0e}")
# RESULT2#

# A report is saved without pickle, and a probe is an nn.Linear.
with tempfile.TemporaryDirectory() as folder:
    report.save(f"{folder}/probe.safetensors")
    head = ProbeReport.load(f"{folder}/probe.safetensors").to_linear("fc1", "lda")
print(head)
# RESULT3#

# The last layer, refitted in closed form on the inputs it has.
refitted = copy.deepcopy(model)
fit_head_(refitted.fc, batches(train), model=refitted)
print(f"validation accuracy: own head {accuracy(model):.4f}, closed form {accuracy(refitted):.4f}")
# RESULT4#
