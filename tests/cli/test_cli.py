"""The command line against the library: same numbers, results alone on standard output, exit codes that tell."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchridge import convert_strength, ridge, ridge_cv, ridge_path
from torchridge.cli import main
from torchridge.exceptions import GridEdgeWarning
from torchridge.solvers.moments.folds import contiguous_folds

N, D = 300, 4
NAMES = ["a", "b", "c, d", "e"]
ALPHAS = torch.logspace(-2, 3, 20, dtype=torch.float64)
GRID = "0.01:1000:20"


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    X = torch.randn(N, D, generator=g, dtype=torch.float64)
    return X, X @ torch.arange(1.0, 5.0, dtype=torch.float64) + 3 + 4 * torch.randn(N, generator=g, dtype=torch.float64)


@pytest.fixture
def table(rows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    with Path("rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*NAMES, "y"])
        writer.writerows(torch.cat([rows[0], rows[1][:, None]], 1).tolist())
    return Path("rows.csv")


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run a command; return standard output where it worked, standard error where it did not."""
    got = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert got == code, err
    if code:
        assert out == "" and "Traceback" not in err
    return out if code == 0 else err


@pytest.mark.parametrize("kind", ["csv", "parquet", "npy", "safetensors"])
def test_fit_gives_the_numbers_of_the_library(
    kind: str, rows: tuple[torch.Tensor, torch.Tensor], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    X, y = rows
    options: list[str] = ["--target", "y"]
    if kind == "parquet":
        import pyarrow.csv
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.csv.read_csv(table), "rows.parquet", row_group_size=70)
    elif kind == "npy":
        np.save("rows.npy", torch.cat([X, y[:, None]], 1).numpy())
        options = ["--target=-1"]
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"X": X, "y": y}, "rows.safetensors")
    report = json.loads(
        said(capsys, "fit", f"rows.{kind}", *options, "--alphas", GRID, "-o", "m.safetensors", "--json")
    )
    want = ridge_cv(X, y, ALPHAS, cv=5)
    assert report["alpha"] == float(want.alpha) and report["n_samples"] == N and report["folds"] == 5
    assert np.allclose(report["weight"], want.weight, rtol=1e-12) and np.allclose(report["bias"], want.bias, rtol=1e-12)
    assert np.allclose(report["scores"], want.scores.mean(1), rtol=1e-12)
    assert report["lambda"] == pytest.approx(report["alpha"] / N, rel=1e-15)
    source = [f"rows.{kind}"] if kind != "npy" else ["rows.npy", "--features", "0,1,2,3"]
    printed = list(csv.reader(io.StringIO(said(capsys, "predict", "m.safetensors", *source))))
    assert printed[0] == ["y"]
    assert np.allclose([float(line[0]) for line in printed[1:]], want.predict(X), rtol=1e-12)


def test_other_ways_to_fit(
    rows: tuple[torch.Tensor, torch.Tensor], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    X, y = rows

    def fitted(*options: str) -> dict[str, object]:
        return dict(json.loads(said(capsys, "fit", table, "--json", *options)))

    one = fitted("--target", "y", "--alpha", "2.5", "--no-intercept", "--standardize")
    want = ridge(X, y, 2.5, fit_intercept=False, standardize=True)
    assert np.allclose(one["weight"], want.weight, rtol=1e-12) and "scores" not in one
    gcv = fitted("--target", "y", "--cv", "gcv", "--alphas", GRID)
    assert gcv["alpha"] == float(ridge_cv(X, y, ALPHAS).alpha) and gcv["scoring"] == "gcv"
    both = fitted("--target", "a,y", "--features", "b,e", "--alphas", GRID, "--scoring", "r2", "--cv", "3")
    want = ridge_cv(X[:, [1, 3]], torch.stack([X[:, 0], y], 1), ALPHAS, cv=3, scoring="r2")
    assert both["targets"] == ["a", "y"] and both["alpha"] == float(want.alpha)
    assert np.allclose(both["weight"], want.weight, rtol=1e-12)


def test_weights_and_folds_come_from_columns(
    rows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    X, y = rows
    weight, ids = torch.rand(N, dtype=torch.float64) + 0.5, torch.randperm(N) % 3
    np.savetxt(tmp_path / "a.csv", np.column_stack([X, y, weight, ids]), delimiter=",", fmt="%.17g")
    options = ("--target", "4", "--weight", "5", "--fold", "6", "--alphas", GRID, "--json")
    report = json.loads(said(capsys, "fit", tmp_path / "a.csv", *options))
    want = ridge_cv(X, y, ALPHAS, cv=ids, sample_weight=weight)
    assert report["alpha"] == float(want.alpha) and np.allclose(report["weight"], want.weight, rtol=1e-11)
    assert report["lambda"] == pytest.approx(report["alpha"] / float(weight.sum()), rel=1e-12)


def test_standard_input_is_csv(
    rows: tuple[torch.Tensor, torch.Tensor],
    table: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pipe() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(table.read_bytes())))

    pipe()
    options = ("-", "--target", "y", "--alphas", GRID, "--fold-rows", "60", "-o", "m.safetensors")
    report = json.loads(said(capsys, "fit", *options, "--json"))
    want = ridge_cv(*rows, ALPHAS, cv=contiguous_folds(N, 5))
    assert report["alpha"] == float(want.alpha)
    pipe()
    lines = said(capsys, "predict", "m.safetensors", "-", "--json").splitlines()
    assert np.allclose([json.loads(line)["y"] for line in lines], want.predict(rows[0]), rtol=1e-12)


def test_predictions_go_to_files(
    rows: tuple[torch.Tensor, torch.Tensor], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "fit", table, "--target", "y", "--alpha", "1", "-o", "m.safetensors")
    want = ridge(*rows, 1.0).predict(rows[0]).numpy()
    assert said(capsys, "predict", "m.safetensors", table, "-o", "out.npy") == ""
    assert np.allclose(np.load("out.npy")[:, 0], want, rtol=1e-12)
    said(capsys, "predict", "m.safetensors", table, "-o", "out.csv")
    assert np.allclose(np.loadtxt("out.csv", skiprows=1), want, rtol=1e-12)
    before = Path("out.csv").read_bytes()
    table.write_text(table.read_text() + "1,2,3,4\n")
    assert "line 302: expected 5 cells, got 4" in said(
        capsys, "predict", "m.safetensors", table, "-o", "out.csv", code=1
    )
    assert Path("out.csv").read_bytes() == before and not list(Path().glob("*.part"))


def test_the_model_is_a_plain_file_of_weight_and_bias(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    said(capsys, "fit", table, "--target", "y", "--alpha", "1", "-o", "m.safetensors")
    layer = torch.nn.Linear(D, 1, dtype=torch.float64)
    layer.load_state_dict({k: v for k, v in load_file("m.safetensors").items() if k in ("weight", "bias")})


def test_path_prints_and_draws(
    rows: tuple[torch.Tensor, torch.Tensor], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("path", table, "--target", "y", "--alphas", GRID)
    lines = list(csv.reader(io.StringIO(said(capsys, *options, "-o", "path.png"))))
    want = ridge_path(*rows, ALPHAS)
    assert lines[0] == ["alpha", "target", "bias", *NAMES]
    numbers = np.array([[float(v) for v in (line[0], *line[2:])] for line in lines[1:]])
    assert np.allclose(numbers, torch.cat([ALPHAS[:, None], want.bias, want.weight[:, 0]], 1), rtol=1e-11)
    assert Path("path.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(said(capsys, *options, "--json"))
    assert np.allclose(content["weight"], want.weight, rtol=1e-11)
    assert content["gcv_alpha"] == float(ridge_cv(*rows, ALPHAS, cv="gcv").alpha)


def test_convert(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("convert", "0.01", "--from", "keras", "--to", "sklearn", "--n-samples", "1000")
    assert said(capsys, *options) == "10.0\n"
    assert json.loads(said(capsys, *options, "--json"))["result"] == 10.0
    many = said(capsys, "convert", "0.5", "--from", "lambda", "--to", "glmnet", "--target-std=2", "--feature-std=1,2,4")
    assert many == "1.0,0.25,0.0625\n"
    assert "error: --n-samples is missing" in said(capsys, "convert", "1", "--from", "keras", "--to", "sklearn", code=1)
    assert "invalid choice: 'keros'" in said(capsys, "convert", "1", "--from", "keros", "--to", "sklearn", code=2)
    assert convert_strength(0.01, source="keras", target="sklearn", n_samples=1000) == 10.0


def test_decay(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "from torch import nn\nmodel = nn.Linear(2, 3)\nnumber = 5\ndef make(): return nn.Sequential(nn.LayerNorm(3))\n"
    )
    Path("some_models.py").write_text(code + "def broken(): raise RuntimeError('no weights')\n")
    rows = json.loads(said(capsys, "decay", "some_models:model", "--weight-decay", "0.3", "--json"))
    assert [(r["name"], r["weight_decay"]) for r in rows] == [("weight", 0.3), ("bias", 0.0)]
    assert "0.weight" in said(capsys, "decay", "some_models:make")
    for name, message, status in (
        ("some_models", "MODULE:NAME should name a model", 2),
        ("no_such_module:f", "cannot be imported", 1),
        ("some_models:other", "has no 'other'", 1),
        ("some_models:number", "should be or make an nn.Module, got int", 1),
        ("some_models:broken", "raised RuntimeError: no weights", 1),
    ):
        assert message in said(capsys, "decay", name, code=status)


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "env", "--json"))
    assert found["torch"] == torch.__version__ and "cuda" in found
    assert f"torch         {torch.__version__}" in said(capsys, "env")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "the following arguments are required: COMMAND"),
        (("fit", "rows.csv"), 2, "required: --target"),
        (("fit", "rows.csv", "--target", "y", "--alphas", "1:2"), 2, "should be auto, LOW:HIGH:COUNT"),
        (("fit", "rows.csv", "--target", "y", "--cv", "1"), 2, "--cv should be a number of folds"),
        (("fit", "rows.csv", "--target", "y", "--max-memory", "lots"), 2, "should be a size"),
        (("fit", "rows.csv", "--target", "z"), 1, "has no column 'z'; its columns are 'a', 'b', 'c, d', 'e', 'y'"),
        (("fit", "none.csv", "--target", "y"), 1, "there is no file 'none.csv'"),
        (("fit", "rows.csv", "--target", "y", "--max-memory", "1M"), 1, "--max-memory 1048576 is too small"),
        (("fit", "rows.csv", "--target", "y", "--alpha", "-1"), 1, "error: --alpha should not be negative"),
        (("fit", "rows.csv", "--target", "y", "--alphas=-1,2"), 1, "error: --alphas should not be negative"),
        (("fit", "rows.csv", "--target", "y", "--alphas", "1:2:0"), 2, "should be auto, LOW:HIGH:COUNT"),
        (("fit", "rows.csv", "--target", "y", "--cv", "900"), 1, "--cv 900: the 300 rows fill only 300 folds. Lower"),
        (("fit", "rows.csv", "--target", "y", "--fold", "a"), 1, "error: --fold should be a column of whole numbers"),
        (("fit", "rows.csv", "--target", "y", "--fold", "one"), 1, "--fold: column one holds a single fold"),
        (("fit", "rows.csv", "--target", "y", "--cv", "gcv", "--scoring", "r2"), 2, "--scoring r2 needs folds"),
        (("fit", "rows.csv", "--target", "y", "--delimiter", ",,"), 1, "--delimiter should be one character, got ',,'"),
        (("fit", "rows.npy", "--target", "y"), 1, "--target: there is no file 'y', and the columns of an array"),
        (("fit", "rows.npy", "--target", "y,z"), 1, "--target: the columns of an array have no names, got ['y', 'z']"),
        (("fit", "none.npy", "--target", "0"), 1, "error: ROWS: there is no file 'none.npy'"),
        (("predict", "none.safetensors", "rows.csv"), 1, "error: MODEL: there is no file 'none.safetensors'"),
        (("convert", "1", "--from", "keras", "--to", "sklearn", "--n-samples=-4"), 1, "--n-samples should be positive"),
        (("decay", "torch.nn:Identity", "--weight-decay=-1"), 1, "error: --weight-decay should be a finite number"),
        (("predict", "rows.csv", "rows.csv"), 1, "not a safetensors file"),
        (("predict", "m.safetensors", "rows.csv", "--features", "a,b"), 1, "have 2 features, the model 4"),
        (("predict", "m.safetensors", "rows.csv", "--features", "a,b,e,y"), 1, "in the place of the model's 'c, d'"),
        (("predict", "m.safetensors", "rows.csv", "-o", "out.xlsx"), 2, "-o should end in .csv or .npy"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...], code: int, message: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "fit", table, "--target", "y", "--alpha", "1", "-o", "m.safetensors")
    np.save("rows.npy", np.ones((3, 2)))
    first, *rest = table.read_text().splitlines()
    table.write_text("\n".join([f"{first},one", *(f"{line},1" for line in rest)]))
    assert message in said(capsys, *arguments, code=code)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("fit", "none.csv", "--target", "y", "-o", "m.txt"), "-o should end in .safetensors, got 'm.txt'", 2),
        (("fit", "none.csv", "--target", "y", "-o", "no/m.safetensors"), "-o: there is no folder 'no'", 1),
        (("fit", "none.csv", "--target", "y", "-o", "rows.csv/m.safetensors"), "-o: there is no folder 'rows.csv'", 1),
        (("fit", "none.csv", "--target", "y", "-o", "taken.safetensors"), "-o: 'taken.safetensors' is a folder", 1),
        (("fit", "rows.csv", "--target", "y", "--checkpoint", "no/c"), "--checkpoint: there is no folder 'no'", 1),
        (("path", "none.csv", "--target", "y", "-o", "no/p.png"), "-o: there is no folder 'no'", 1),
        (("path", "none.csv", "--target", "y", "-o", "p.gif2"), "-o should end in .", 2),
        (("path", "none.csv", "--target", "y", "-o", "picture"), "-o should end in .", 2),
        (("predict", "none.safetensors", "none.csv", "-o", "no/p.csv"), "-o: there is no folder 'no'", 1),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    arguments: tuple[str, ...], message: str, code: int, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken.safetensors").mkdir()
    assert message in said(capsys, *arguments, code=code)


def test_a_folder_that_is_not_ours_to_write_in(
    table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the user who runs the tests may write anywhere
    error = said(capsys, "fit", "none.csv", "--target", "y", "-o", "m.safetensors", code=1)
    assert "-o: files cannot be written in the folder '.'" in error


@pytest.mark.parametrize("kind", ["csv", "npy"])
def test_no_rows_have_no_predictions(kind: str, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "fit", table, "--target", "y", "--alpha", "1", "-o", "m.safetensors")
    with Path("none.csv").open("w", newline="") as file:
        csv.writer(file).writerow(NAMES)
    np.save("none.npy", np.ones((0, D)))
    said(capsys, "predict", "m.safetensors", f"none.{kind}", "-o", "out.npy")
    assert np.load("out.npy").shape == (0, 1)
    said(capsys, "predict", "m.safetensors", f"none.{kind}", "-o", "out.csv")
    assert Path("out.csv").read_text() == "y\n"


def test_warnings_are_lines_of_standard_error(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(table), "--target", "y", "--alphas", "1e5:1e6:3", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["alpha"] == 1e5
    assert err.startswith("torchridge fit: warning: the best strength") and err.count("\n") == 1
    assert err.endswith("Widen --alphas, or pass --alphas auto.\n")
    with pytest.warns(GridEdgeWarning):  # and the library warns as ever
        ridge_cv(torch.randn(20, 2), torch.randn(20), [1e5, 1e6])


def test_a_reader_that_goes_away_is_no_traceback(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "fit", table, "--target", "y", "--alpha", "1", "-o", "m.safetensors")
    lines = table.read_text().splitlines(keepends=True)
    table.write_text(lines[0] + "".join(lines[1:]) * 100)
    command = [sys.executable, "-m", "torchridge", "predict", "m.safetensors", str(table)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == b"y\n"
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


@pytest.mark.parametrize("missing", ["foo", "meta", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_refused_first(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "missing.csv", "--target", "y", "-o", "m.safetensors", "--device", missing]) == 2
    assert "--device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--alpha", "1", "--cv", "5"],
        ["--alpha", "1", "--alphas", "0.1:10:3"],
        ["--alpha", "1", "--scoring", "r2"],
        ["--fold", "a", "--cv", "5"],
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "missing.csv", "--target", "y", *options]) == 2
    assert "leave one out" in capsys.readouterr().err
