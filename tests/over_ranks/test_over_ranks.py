"""What the bodies beside this file assert, on several gloo ranks; few processes, as each takes seconds to start."""

from pathlib import Path

import model_bodies
import pytest
import ridge_bodies
from ranks import outcomes

from torchridge import Moments, ridge
from torchridge.distributed import all_reduce


def all_four() -> None:
    ridge_bodies.moments_add_up()
    ridge_bodies.ridge_is_that_of_one_process()
    ridge_bodies.columns_make_the_whole_gram_matrix()
    ridge_bodies.refusals_reach_every_rank()
    model_bodies.estimators_are_those_of_one_process()
    model_bodies.probes_are_those_of_one_process()
    model_bodies.logistic_is_that_of_one_process()


@pytest.mark.slow
def test_on_four_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHRIDGE_TEST_FOLDER", str(tmp_path))
    assert outcomes(all_four, tmp_path, 4, seconds=ridge_bodies.SECONDS) == [(r, None) for r in range(4)]


@pytest.mark.slow
def test_killed_rank_is_named_and_fewer_ranks_go_on_from_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHRIDGE_TEST_FOLDER", str(tmp_path))
    result = outcomes(ridge_bodies.one_is_killed_and_two_go_on, tmp_path, 3, seconds=ridge_bodies.SECONDS, killed=2)
    assert result == [(0, None)]


def test_without_a_process_group() -> None:
    X, y, _ = ridge_bodies.data()
    with pytest.raises(ValueError, match="`process_group`='world': no process group is initialized"):
        ridge(X, y, 1.0, process_group="world")
    with pytest.raises(ValueError, match="`process_group`"):
        all_reduce(Moments().update(X, y))
