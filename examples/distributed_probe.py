"""Probe a frozen network, and fit ridge to a stream, over the rows of several processes.

Every process (rank) reads batches of its own. Only moments travel, never rows; the printed results do not depend on
how many ranks there are. With a folder, ranks keep their moments in it as they go; stop the job, start it with
another number of ranks, and it goes on from there.

    python examples/distributed_probe.py
    torchrun --nproc-per-node=4 examples/distributed_probe.py
    torchrun --nproc-per-node=2 examples/distributed_probe.py --folder /tmp/moments
"""

import argparse
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from torchridge import Moments, logistic_cv, ridge_cv
from torchridge.distributed import MomentsFolder
from torchridge.probing import probe_layers

parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path, help="where moments are kept while the stream runs")
folder = parser.parse_args().folder

if "WORLD_SIZE" in os.environ:  # started by torchrun
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, size = dist.get_rank(), dist.get_world_size()


def say(text: str) -> None:
    if rank == 0:
        print(text)


# 1797 images in 36 batches; a rank takes every so many of them. Folds follow from the number of the row.
digits = load_digits()
X, y = torch.from_numpy(digits.images[:, None] / 16).float(), torch.from_numpy(digits.target)
batches = torch.arange(len(X)).split(50)
mine = batches[rank::size]
own_rows = torch.cat(mine) if mine else torch.empty(0, dtype=torch.int64)

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64))

report = probe_layers(
    model,
    [(X[rows], y[rows]) for rows in mine],
    layers=["0", "2", "5"],
    task="classification",
    cv=own_rows % 5,
    metrics="accuracy",
    process_group="world",
)
for probe in report:
    say(f"layer {probe.layer}: strength {probe.strength:.3g}, held-out accuracy {probe.scores['accuracy']:.4f}")
# layer 0: strength 2.32e-05, held-out accuracy 0.6350
# layer 2: strength 0.000196, held-out accuracy 0.9221
# layer 5: strength 0.00602, held-out accuracy 0.9405

# A stream into moments, of which every rank keeps its own every few batches. Here: how much ink, from single pixels.
pixels, ink = X.flatten(1), X.clamp(0, 0.5).sum((1, 2, 3))
with tempfile.TemporaryDirectory() as temporary:
    kept = MomentsFolder(folder or temporary)
    say(f"batches that an earlier run has kept: {len(kept.done)}")
    left = [i for i in range(len(batches)) if i not in kept.done]
    moments, done = Moments(), []
    for i in left[rank::size]:
        moments.update(pixels[batches[i]], ink[batches[i]], fold=batches[i] % 5)
        done.append(i)
        if len(done) % 4 == 0:
            kept.keep(moments, done)
    solution = ridge_cv(kept.earlier + moments, process_group="world")
say(f"ridge: alpha {float(solution.alpha):.4g}, cv error {-float(solution.best_score):.6f}, rows {solution.n_samples}")
# ridge: alpha 1.311, cv error 0.160026, rows 1797

# Logistic regression: coefficients go out to the ranks, losses and gradients come back.
chosen = logistic_cv(
    pixels[own_rows], y[own_rows], [1e-2, 1e-1, 1.0, 10.0, 100.0], cv=own_rows % 5, process_group="world"
)
say(f"logistic: C {float(chosen.C):g}, held-out log-loss {-float(chosen.best_score):.4f}")
dist.destroy_process_group()
