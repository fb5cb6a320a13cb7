"""scikit-learn's own tests of ridge and logistic models, on ours, and its checks under array API dispatch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sklearn = pytest.importorskip("sklearn")

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
    "SCIPY_ARRAY_API": "1",
    "SKLEARN_SEED": "0",  # theirs is random
    "OMP_NUM_THREADS": "1",
    "PYTEST_XDIST_WORKER_COUNT": "64",  # or their configuration starts a BLAS thread for each core
}
DISPATCHED = """
import sys, pytest, sklearn
sklearn.set_config(array_api_dispatch=True)
sys.exit(pytest.main(["-p", "no:cacheprovider", "-k", "test_check_estimator", sys.argv[1]]))
"""


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=HERE.parents[1], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]


@pytest.mark.slow
@pytest.mark.skipif(not sklearn.__version__.startswith("1.9."), reason="the list of what is left out is that of 1.9")
@pytest.mark.parametrize("module", ["test_ridge", "test_logistic"])
def test_their_tests_pass(module: str) -> None:
    options = [
        "-p",
        "scikit_learn_patch",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "-q",
        "--tb=short",
        "-W",
        "ignore",
    ]
    run(sys.executable, "-m", "pytest", *options, "--pyargs", f"sklearn.linear_model.tests.{module}")


@pytest.mark.slow
def test_their_checks_pass_under_array_api_dispatch() -> None:
    run(sys.executable, "-c", DISPATCHED, str(HERE / "test_protocol.py"))
