"""Any call may be the first of a program: what it needs is imported by itself, not by another call before it."""

import subprocess
import sys

# Each call runs in a process of its own, in which nothing of torchridge has been imported.
SCRIPT = """
import os, sys, tempfile
import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)  # threads do not survive a fork
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y, labels, rows = X.sum(1), torch.arange(40) % 2, X.numpy()
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
CALLS = [
    "import torchridge; torchridge.ridge(X, y, 1.0, solver='svd')",
    "import torchridge; torchridge.ridge_cv(X, y, cv=5)",
    "import torchridge; torchridge.banded_ridge_cv(X, y, [slice(0, 1), slice(1, 3)], cv=3)",
    "import torchridge; torchridge.logistic_cv(X, labels, [1.0], cv=3)",
    "import torchridge; torchridge.probe_layers(model, [(X, labels)])",
    "import torchridge; torchridge.fit_head_(model[-1], [(X, labels)], model=model)",
    "import torchridge; torchridge.LinearProbe(readout=['ridge', 'lda']).fit(X, labels)",
    "import torchridge; torchridge.OnlineProbe(alpha=1.0).update(X, labels).probe",
    "import torchridge; torchridge.ContinualProbe().update(X, labels).ridge(1.0)",
    "from torchridge.estimators import RidgeClassifierCV as R; R().fit(rows, labels.numpy())",
    "from torchridge.estimators import LogisticRegressionCV as L; L(Cs=[1.0]).fit(rows, labels.numpy())",
]
failed = []
for call in CALLS:
    child = os.fork()
    if not child:
        code = 1
        try:
            exec(call)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            if code:
                import traceback; traceback.print_exc()
            os._exit(code)
    failed += [call] if os.waitpid(child, 0)[1] else []
print("failed:", failed)
sys.exit(bool(failed))
"""


def test_any_call_may_be_the_first() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
