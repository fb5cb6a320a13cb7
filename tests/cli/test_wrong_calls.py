"""Twenty wrong calls and more of every sub-command: an exit code, one clear line, no traceback; JSON is JSON."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from torchridge import RidgeSolution, _files
from torchridge.cli import main

BIG = "9" * 20
TRAINING = [
    ("none.csv --target y", 1, "there is no file 'none.csv'"),
    ("rows.csv", 2, "required: --target"),
    ("rows.csv --target z", 1, "rows.csv has no column 'z'"),
    ("rows.csv --target 9", 1, "rows.csv has 4 columns"),
    (f"rows.csv --target {BIG}", 1, "has no column"),
    ("rows.csv --target y,y", 1, "names a column of rows.csv twice"),
    ("rows.csv --target y --features q", 1, "--features: rows.csv has no column 'q'"),
    ("rows.csv --target y --features y", 1, "is target, weight or fold too"),
    ("rows.csv --target y --alphas none", 2, "should be auto, LOW:HIGH:COUNT"),
    (f"rows.csv --target y --alphas 1:2:{BIG}", 2, "should be auto, LOW:HIGH:COUNT"),
    ("rows.csv --target y --alphas 1:2:1e3", 2, "should be auto, LOW:HIGH:COUNT"),
    ("rows.csv --target y --alphas nan", 1, "--alphas"),
    ("rows.csv --target y --fold-rows 0", 1, "--fold-rows"),
    ("rows.csv --target y --fold-rows x", 2, "invalid int value"),
    ("rows.csv --target y --max-memory 0", 1, "--max-memory"),
    ("rows.csv --target y --max-memory lots", 2, "should be a size"),
    ("rows.csv --target y --device abacus", 2, "--device"),
    ("rows.csv --target y --checkpoint no/c.st", 1, "--checkpoint: there is no folder 'no'"),
    ("rows.csv --target y --checkpoint rows.csv", 1, "--checkpoint: rows.csv is truncated or not a safetensors file"),
    ("rows.csv --target y --checkpoint m.st", 1, "--checkpoint: m.st should be a file of kind"),
    ("rows.csv --target y --delimiter ab", 1, "--delimiter should be one character"),
    ("rows.csv --target y --header maybe", 2, "invalid choice: 'maybe'"),
    ("bad.csv --target y", 1, "bad.csv, line 3, column 1 ('a'): expected a finite number, got 'x'"),
    ("cut.csv.gz --target y", 1, "cut.csv.gz is truncated or damaged gzip"),
    ("gz.csv --target y", 1, "gz.csv is not CSV, but gzip"),
    ("return.csv --target y", 1, "return.csv, line 1: a carriage return"),
    ("empty.npy --target 0", 1, "empty.npy is not a .npy file"),
    ("empty.parquet --target y", 1, "empty.parquet is truncated"),
    ("folder --target y", 1, "holds no .parquet file"),
    ("none-*.parquet --target y", 1, "no file matches"),
    ("rows.txt2 --target y", 1, "there is no file"),
    ("rows.csv --target y --frobnicate", 2, "unrecognized arguments: --frobnicate"),
]
CALLS: dict[str, list[tuple[str, int, str]]] = {
    "fit": [
        *TRAINING,
        (f"rows.csv --target y --cv {BIG}", 2, "--cv should be a number of folds"),
        ("rows.csv --target y --cv 999999999999999999", 1, "fill only 40 folds"),
        ("rows.csv --target y --cv ²", 2, "--cv should be a number of folds"),
        ("rows.csv --target y --alpha -1", 1, "--alpha should not be negative"),
        ("rows.csv --target y -o m.txt", 2, "-o should end in .safetensors"),
        ("rows.csv --target y -o no/m.safetensors", 1, "there is no folder 'no'"),
    ],
    "path": [
        *TRAINING,
        ("rows.csv --target y -o p.xyz", 2, "-o should end in"),
        ("rows.csv --target y -o no/p.png", 1, "there is no folder 'no'"),
    ],
    "predict": [
        ("", 2, "required: MODEL, ROWS"),
        ("m.st", 2, "required: ROWS"),
        ("none.st rows.csv", 1, "MODEL: there is no file 'none.st'"),
        ("folder rows.csv", 1, "MODEL: there is no file 'folder'"),
        ("rows.csv rows.csv", 1, "MODEL: rows.csv is truncated or not a safetensors file"),
        ("c.st rows.csv", 1, "MODEL: c.st should be a file of kind"),
        ("flat.st rows.csv", 1, "MODEL: flat.st does not hold what a file of its kind holds"),
        ("lacking.st rows.csv", 1, "MODEL: lacking.st does not hold what a file of its kind holds (KeyError: 'bias')"),
        ("names.st rows.csv", 1, "MODEL: names.st does not hold what a file of its kind holds"),
        ("twice.st rows.csv", 1, "MODEL: twice.st does not hold"),
        ("whole.st rows.csv", 1, "MODEL: whole.st does not hold"),
        ("list.st rows.csv", 1, "MODEL: list.st does not hold"),
        ("deep.st rows.csv", 1, "MODEL: deep.st does not hold"),
        ("nan.st rows.csv", 1, "MODEL: nan.st does not hold"),
        ("m.st none.csv", 1, "there is no file 'none.csv'"),
        ("m.st rows.csv --features a", 1, "the rows have 1 features, the model 3"),
        ("m.st rows.csv --features a,b,y", 1, "a feature 'y' in the place of the model's 'c'"),
        ("m.st bad.csv", 1, "bad.csv, line 3, column 1 ('a')"),
        ("m.st nan.npy", 1, "row 1 of nan.npy holds NaN"),
        ("m.st rows.csv -o p.xlsx", 2, "-o should end in .csv or .npy"),
        ("m.st rows.csv -o no/p.csv", 1, "there is no folder 'no'"),
        ("m.st rows.csv -o p.csv --json", 2, "leave one out"),
        ("m.st rows.csv --delimiter ab", 1, "--delimiter should be one character"),
        ("m.st rows.csv --target y", 2, "unrecognized arguments"),
    ],
    "convert": [
        ("", 2, "required: value, --from, --to"),
        ("1", 2, "required: --from, --to"),
        ("1 --from keras", 2, "required: --to"),
        ("x --from keras --to torch", 2, "invalid float value: 'x'"),
        ("1 --from keros --to torch", 2, "invalid choice: 'keros'"),
        ("1 --from keras --to torche", 2, "invalid choice: 'torche'"),
        ("-1 --from keras --to torch", 1, "should"),
        ("nan --from keras --to torch", 1, "should"),
        ("inf --from keras --to torch", 1, "should"),
        ("1 --from keras --to sklearn", 1, "--n-samples is missing"),
        ("1 --from keras --to sklearn --n-samples 0", 1, "--n-samples should be positive"),
        ("1 --from keras --to sklearn --n-samples x", 2, "invalid float value"),
        ("1 --from keras --to sklearn --n-samples nan", 1, "--n-samples"),
        ("1 --from keras --to sklearn --n-samples -3", 1, "--n-samples should be positive"),
        ("1 --from keras --to glmnet", 1, "--target-std is missing"),
        ("1 --from keras --to glmnet --target-std 0", 1, "--target-std"),
        ("1 --from keras --to glmnet --target-std x", 2, "invalid float value"),
        ("1 --from keras --to glmnet --target-std 1 --feature-std 1,x", 2, "should be numbers separated by commas"),
        ("1 --from keras --to glmnet --target-std 1 --feature-std=-1", 1, "--feature-std"),
        ("1 --from keras --to torch --n-targets x", 2, "invalid int value"),
        ("1 --from keras --to torch extra", 2, "unrecognized arguments: extra"),
    ],
    "decay": [
        ("", 2, "required: MODULE:NAME"),
        ("torch", 2, "MODULE:NAME should name a model"),
        ("torch:", 2, "MODULE:NAME should name a model"),
        (":x", 2, "MODULE:NAME should name a model"),
        ("no_such_module:f", 1, "cannot be imported"),
        ("torch..nn:f", 1, "cannot be imported"),
        (".torch:f", 1, "cannot be imported"),
        ("bad-name!:f", 1, "cannot be imported"),
        ("raises_on_import:f", 1, "cannot be imported, ZeroDivisionError"),
        ("leaves_on_import:f", 1, "cannot be imported, SystemExit"),
        ("does_not_parse:f", 1, "cannot be imported, SyntaxError"),
        ("lacks_a_module:f", 1, "cannot be imported: No module named 'nowhere'"),
        ("torch.nn:Lineer", 1, "has no 'Lineer'"),
        ("torch.nn:Linear", 1, "torch.nn:Linear() raised TypeError"),
        ("math:pi", 1, "should be or make an nn.Module, got float"),
        ("os:getcwd", 1, "should be or make an nn.Module, got str"),
        ("raises_when_made:f", 1, "raised KeyError"),
        ("leaves_when_made:f", 1, "raised SystemExit"),
        ("torch.nn:Identity --weight-decay x", 2, "invalid float value"),
        ("torch.nn:Identity --weight-decay=-1", 1, "--weight-decay should be"),
        ("torch.nn:Identity --weight-decay nan", 1, "--weight-decay"),
        ("torch.nn:Identity --layer-decay=-1", 1, "--layer-decay"),
        ("torch.nn:Identity --frobnicate", 2, "unrecognized arguments"),
    ],
    "env": [
        *[(f"extra{i}", 2, f"unrecognized arguments: extra{i}") for i in range(5)],
        *[(f"--unknown-{i}", 2, f"unrecognized arguments: --unknown-{i}") for i in range(5)],
        *[(f"--json={i}", 2, "ignored explicit argument") for i in range(5)],
        *[(f"--json a{i} --b", 2, "unrecognized arguments") for i in range(5)],
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of many kinds of bad weather, a model and a checkpoint."""
    place = tmp_path_factory.mktemp("calls")
    rng = np.random.default_rng(0)
    lines = [",".join(map(str, row)) for row in rng.standard_normal((40, 4)).round(3)]
    text = "a,b,c,y\n" + "\n".join(lines) + "\n"
    (place / "rows.csv").write_text(text)
    (place / "bad.csv").write_text("a,b,c,y\n1,2,3,4\nx,2,3,4\n" + "1,2,3,4\n" * 9)
    (place / "cut.csv.gz").write_bytes(gzip.compress(text.encode())[:-20])
    (place / "gz.csv").write_bytes(gzip.compress(text.encode()))
    (place / "return.csv").write_bytes(text.replace("\n", "\r").encode())
    for name in ("empty.npy", "empty.parquet"):
        (place / name).touch()
    (place / "folder").mkdir()
    np.save(place / "nan.npy", np.array([[1.0, 2, 3], [np.nan, 1, 2]]))
    write_models(place)
    code = {
        "raises_on_import": "1 / 0",
        "leaves_on_import": "raise SystemExit(3)",
        "does_not_parse": "def (",
        "lacks_a_module": "import nowhere",
        "raises_when_made": "def f(): raise KeyError('weights')",
        "leaves_when_made": "def f(): raise SystemExit",
    }
    for name, line in code.items():
        (place / f"{name}.py").write_text(line + "\n")
    return place


def write_models(place: Path) -> None:
    good = {"weight": torch.ones(1, 3, dtype=torch.float64), "bias": torch.zeros(1, dtype=torch.float64)}
    good |= {"alpha": torch.tensor(1.0, dtype=torch.float64)}
    rest = {"solver": "cholesky", "reason": "few strengths", "n_samples": 40}
    names = {"features": ["a", "b", "c"], "targets": ["y"]}
    names |= {"values": {**dict.fromkeys(good, "tensor"), **rest}}  # type: ignore[dict-item]
    for name, tensors, content in (
        ("m", good, names),
        ("flat", good | {"weight": torch.ones(3, dtype=torch.float64)}, names),
        ("lacking", {"weight": good["weight"], "alpha": good["alpha"]}, names),
        ("names", good, names | {"targets": ["y", "z"]}),
        ("twice", good, names | {"features": ["a", "a", "c"]}),
        ("whole", {k: v.long() for k, v in good.items()}, names),
        ("nan", good | {"bias": torch.tensor([torch.nan], dtype=torch.float64)}, names),
        ("list", good, [1, 2]),
    ):
        _files.write(place / f"{name}.st", RidgeSolution.KIND, tensors, content)  # type: ignore[arg-type]
    deep: list[object] = []
    for _ in range(900):
        deep = [deep]
    _files.write(place / "deep.st", RidgeSolution.KIND, good, names | {"features": deep})
    _files.write(place / "c.st", "torchridge.stream-checkpoint/2", good, {})


@pytest.mark.parametrize(("command", "number"), [(c, i) for c, calls in CALLS.items() for i in range(len(calls))])
@pytest.mark.parametrize("as_json", [False, True])
def test_one_clear_line(
    command: str,
    number: int,
    as_json: bool,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    arguments, code, message = CALLS[command][number]
    before = sorted(folder.rglob("*"))
    got = main([command, *arguments.split(), *["--json"] * (as_json and "--json" not in arguments)])
    out, err = capsys.readouterr()
    both = as_json and "leave one out" in err
    assert (got, out) == (2 if both else code, ""), err
    assert err.startswith(f"torchridge {command}: error: ") and err.endswith("\n") and err.count("\n") == 1
    assert message in err or both
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in str(p)] == [
        p for p in before if "__pycache__" not in str(p)
    ]


@pytest.mark.parametrize("command", CALLS)
def test_there_are_twenty_calls_of_each(command: str) -> None:
    assert len(CALLS[command]) >= 20


@pytest.mark.parametrize("argument", ["1e308", "5e-324"])
def test_json_holds_null_and_not_nan(argument: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def strict(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    code = main(["convert", argument, "--from", "lambda", "--to", "sklearn", "--n-samples", "1e300", "--json"])
    out = capsys.readouterr().out
    assert code == 1 or json.loads(out, parse_constant=strict)["value"] == float(argument)
    (folder / "huge.csv").write_text("a,b,c\n1e308,1e308,1e308\n")
    assert main(["predict", str(folder / "m.st"), str(folder / "huge.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=strict) == {"y": None}
    (folder / "one.csv").write_text("a,y\n1,1\n1,2\n1,3\n")
    main(["fit", str(folder / "one.csv"), "--target", "y", "--alpha", "0", "--json"])
    json.loads(capsys.readouterr().out, parse_constant=strict)
