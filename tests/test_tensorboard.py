"""What is written to TensorBoard is read back from the event files as it was computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from torch import Tensor

from torchridge import ridge, ridge_cv, ridge_path
from torchridge.probing import LinearProbe
from torchridge.tensorboard import log_cv, log_layers, log_path, log_sweep

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

matplotlib.use("Agg")
ALPHAS = [0.1, 10.0, 1.0, 100.0]


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(60, 5, generator=g, dtype=torch.float64)
    return X, X.sum(1) + 3 * torch.randn(60, generator=g, dtype=torch.float64)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def hparams_of(accumulator: EventAccumulator) -> dict[str, Any]:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = accumulator.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_a_sweep_is_one_run_with_the_chosen_strength_marked(tmp_path: Path) -> None:
    X, y = data()
    solution = ridge_cv(X, y, ALPHAS, cv=5)
    with SummaryWriter(str(tmp_path)) as writer:
        chosen = log_sweep(writer, solution, hparams={"standardize": False})
    assert solution.fold_scores is not None and solution.scores is not None
    error, order = solution.fold_scores[:, :, 0].std(0) / 5**0.5, torch.tensor(ALPHAS).argsort()
    read = events(tmp_path)
    for tag, values in (("mse", solution.scores[order, 0]), ("standard_error", error[order])):
        logged = [(event.step, event.value) for event in read.Scalars(f"sweep/{tag}")]
        assert logged == [(i, pytest.approx(float(v), rel=1e-6)) for i, v in enumerate(values)]
    alphas = [event.value for event in read.Scalars("sweep/alpha")]
    assert alphas == pytest.approx(sorted(ALPHAS)) and alphas[chosen] == pytest.approx(float(solution.alpha))
    table = read.Tensors("sweep/text_summary")[0].tensor_proto.string_val[0].decode().splitlines()
    assert ["chosen" in line for line in table[2:]] == [i == chosen for i in range(4)]
    runs = {p.parent.relative_to(tmp_path) for p in tmp_path.rglob("events*")}
    assert runs == {Path("."), Path("sweep")}
    assert hparams_of(events(tmp_path / "sweep")) == {"alpha": float(solution.alpha), "standardize": False}


def test_a_probe_has_a_sweep_of_its_own(tmp_path: Path) -> None:
    X, y = data()
    probe = LinearProbe("classification", "lda", shrinkages=[0.01, 0.1, 0.5]).fit(X, (y > 0).long()).best
    with SummaryWriter(str(tmp_path)) as writer:
        chosen = log_sweep(writer, probe, "lda")
    logged = [event.value for event in events(tmp_path).Scalars("lda/log_likelihood")]
    assert logged == pytest.approx(probe.strength_scores.mean(0).tolist(), rel=1e-6)
    assert hparams_of(events(tmp_path / "lda")) == {"shrinkage": probe.strength}
    assert probe.strength == pytest.approx([0.01, 0.1, 0.5][chosen])


def test_figures_arrive_as_images_under_their_step(tmp_path: Path) -> None:
    X, y = data()
    with SummaryWriter(str(tmp_path)) as writer:
        log_path(writer, ridge_path(X, y, ALPHAS), step=3, chosen=1.0)
        log_cv(writer, ridge_cv(X, y, ALPHAS, cv=5), step=4)
    read = events(tmp_path)
    for tag, step in (("path", 3), ("cross_validation", 4)):
        (image,) = read.Images(tag)
        assert image.step == step
        assert image.encoded_image_string[:4] == b"\x89PNG"
        assert image.width > 400


def test_layers_are_scalars_over_depth_and_a_figure(tmp_path: Path) -> None:
    X, y = data()
    report = LinearProbe(cv=3).fit({"first": X, "second": X[:, 1:]}, y)
    with SummaryWriter(str(tmp_path)) as writer:
        log_layers(writer, report)
    read = events(tmp_path)
    logged = [(event.step, event.value) for event in read.Scalars("probe/ridge/r2")]
    assert logged == [(i, pytest.approx(p.scores["r2"], rel=1e-6)) for i, p in enumerate(report)]
    assert len(read.Images("probe")) == 1


def test_no_figure_is_left_with_pyplot() -> None:
    from matplotlib import pyplot

    class Keeper:
        def add_figure(self, tag: str, figure: Any, global_step: int) -> None: ...

    X, y = data()
    before = pyplot.get_fignums()
    log_path(Keeper(), ridge_path(X, y, ALPHAS))
    assert pyplot.get_fignums() == before


class Silent:
    def __init__(self) -> None:
        self.calls = 0

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1

    def add_text(self, *args: Any) -> None:
        self.calls += 1

    def add_figure(self, *args: Any) -> None:
        self.calls += 1


class Whole(Silent):
    def add_scalar(self, *args: Any) -> None:
        raise AssertionError("written")


BAD: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda w: log_sweep(print, ridge_cv(*data(), ALPHAS, cv=5)), TypeError, r"`writer` should have .*`add_scalar`"),
    (lambda w: log_path(print, ridge_path(*data(), ALPHAS)), TypeError, r"`writer` should have a method `add_figure`"),
    (lambda w: log_cv(print, ridge_cv(*data(), ALPHAS, cv=5)), TypeError, r"`writer` should have a method `add_fig"),
    (lambda w: log_layers(w, LinearProbe().fit(*data())), TypeError, r"`writer` should have a method `add_scalar`"),
    (lambda w: log_sweep(Whole(), ridge(*data(), 1.0)), ValueError, r"fitted at given strengths"),
    (lambda w: log_path(w, ridge(*data(), 1.0)), ValueError, r"one strength, expected a path"),
    (lambda w: log_cv(w, [1.0]), TypeError, r"`result` should come from `ridge_cv`"),
]


@pytest.mark.parametrize(("call", "error", "pattern"), BAD)
def test_bad_input_writes_nothing(call: Callable[[Any], Any], error: type[Exception], pattern: str) -> None:
    writer = Silent()
    with pytest.raises(error, match=pattern):
        call(writer)
    assert writer.calls == 0
