"""The walls of the house: who may import whom, what the face may pull in, how long a file may grow."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torchridge

PACKAGE = Path(torchridge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(p) for p in FILES}


def imports(path: Path) -> set[str]:
    """The torchridge modules a file imports, anywhere in it, but for those only for type checking."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("torchridge")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if (node.module or "").startswith("torchridge"):
                for a in node.names:
                    full = f"{node.module}.{a.name}"
                    found.add(full if full in NAMES else str(node.module))
    return found


GRAPH = {module_name(p): imports(p) for p in FILES}


# From the ground up. A room imports from its own floor and those below, and rooms never form a circle.
FLOORS = [
    {"_check", "_files", "_ranks", "exceptions", "strength"},
    {"solvers", "training"},
    {"distributed", "integrations", "regularizers", "streams"},
    {"linear"},
    {"estimators", "plots"},
    {"probing", "tensorboard"},
    {"torchridge"},  # the face
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: i for i, floor in enumerate(FLOORS) for room in floor}

# What lies beside `__init__.py`: a new room belongs on a floor above, or into a room that is there.
ROOT = {f"{room}.py" for room in ("__init__", "__main__", "_check", "_ranks", "exceptions", "regularizers")}
ROOT |= {"strength.py", "tensorboard.py", "py.typed", "_files", "cli", "distributed", "estimators", "integrations"}
ROOT |= {"linear", "plots", "probing", "solvers", "streams", "training"}

# Below `linear/` arguments are checked where a public call comes in, and nowhere else.
DOORS = {
    "distributed": {"columns", "folds", "moments_folder"},
    "integrations": {"_penalized", "lightning", "transformers"},
    "solvers": {"moments.folds", "moments.finite", "moments.moments", "moments.rows", "moments.saved"},
    "streams": {"arrow", "checkpoint", "fit"},
    "training": {
        "monitor",
        "parameters.decisions",
        "penalties.attach",
        "penalties.step",
        "penalties.strengths",
        "weight_decay.gather",
        "weight_decay.references",
        "weight_decay.schedule",
    },
}


def wing(name: str) -> str:
    """The room of a module: what comes after the package's name, or the face."""
    return name.split(".")[1] if "." in name else "torchridge"


def arrows(room_of: Callable[[str], str], among: Callable[[str], bool] = lambda _: True) -> set[tuple[str, str]]:
    """Which rooms import which."""
    pairs = {(room_of(a), room_of(b)) for a, targets in GRAPH.items() for b in targets if among(a) and among(b)}
    return {(a, b) for a, b in pairs if a != b}


def circle(pairs: set[tuple[str, str]]) -> bool:
    """Whether rooms import each other round about."""
    left = set(pairs)
    while left:
        leaves = {b for _, b in left} - {a for a, _ in left}
        if not leaves:
            return True
        left = {(a, b) for a, b in left if b not in leaves}
    return False


def test_the_picture_of_rooms_floors_and_arrows() -> None:
    rooms, found = {wing(name) for name in NAMES}, arrows(wing)
    assert rooms == set(FLOOR_OF) and len(rooms) <= 20 and len(FLOORS) <= 9 and len(found) <= 60, len(found)
    assert not [(a, b) for a, b in found if FLOOR_OF[a] < FLOOR_OF[b]]
    assert not circle(found)


def test_the_rooms_of_solvers() -> None:
    inside = [name for name in NAMES if wing(name) == "solvers" and name.count(".") > 1]
    assert len({name.split(".")[2] for name in inside}) <= 8
    assert not circle(arrows(lambda name: name.split(".")[2], inside.__contains__))


def test_what_lies_at_the_root() -> None:
    assert {path.name for path in PACKAGE.iterdir()} - {"__pycache__"} == ROOT


def test_files_and_folders_are_short() -> None:
    assert not {module_name(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    folders = [folder for folder in PACKAGE.rglob("*") if folder.is_dir()]
    assert not [folder for folder in folders if len(list(folder.glob("*.py"))) > 20]


def test_arguments_are_checked_at_the_door() -> None:
    ground = FLOOR_OF["linear"]
    found: dict[str, set[str]] = {}
    for name, targets in GRAPH.items():
        if 0 < FLOOR_OF[wing(name)] < ground and "torchridge._check" in targets:
            found.setdefault(wing(name), set()).add(name.split(".", 2)[2])
    assert found == DOORS


def test_pictures_know_no_model() -> None:
    for name in NAMES:
        if wing(name) in ("plots", "tensorboard"):
            assert {wing(target) for target in GRAPH[name]} <= {"_check", "exceptions", "plots"}, name


def test_training_and_solvers_never_import_each_other() -> None:
    assert not {("training", "solvers"), ("solvers", "training")} & arrows(wing)


def test_no_import_circle() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in GRAPH.get(name, ()):
                visit(target, (*trail, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_importing_torchridge_pulls_in_no_optional_package() -> None:
    optional = "sklearn tensorboard matplotlib tqdm safetensors scipy pandas pyarrow lightning transformers skorch"
    names = "Moments, L2Linear, logistic_cv, penalty, ridge_cv, weight_decay_groups"
    # torch itself may bring some of them
    code = f"import sys, torch; had = set(sys.modules); from torchridge import {names}"
    code += f"; sys.exit(str((set(sys.modules) - had) & set({optional!r}.split()) or ''))"
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert not found.stderr.strip(), found.stderr


def test_an_import_waits_for_nothing_that_is_not_asked_for() -> None:
    code = "import sys, torch, torchridge; a = [m for m in sys.modules if m.startswith('torchridge.')]"
    code += (
        "; torchridge.ridge; b = [m for m in sys.modules if m.startswith('torchridge.training')]; sys.exit(bool(a + b))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_is_explicit_and_resolves() -> None:
    assert all(isinstance(name, str) for name in torchridge.__all__)
    assert list(torchridge.__all__) == sorted(torchridge.__all__)
    for name in torchridge.__all__:
        assert hasattr(torchridge, name), name


READERS = ("streams", "estimators", "cli")  # and what keeps states of generators and files of features
READING = {"torchridge.probing.features.frozen", "torchridge.probing.features.kept"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_numerics_are_torch_alone(path: Path) -> None:
    text, name = path.read_text(), module_name(path)
    assert "set_num_threads" not in text
    if wing(name) not in READERS and name not in READING:
        found = {a.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import) for a in n.names}
        found |= {str(n.module) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
        assert not any(f.split(".")[0] == "numpy" for f in found)


def test_few_frames_from_the_call_to_the_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []
    factor = torch.linalg.cholesky_ex

    def counted(*args: Any, **kwargs: Any) -> Any:
        frame, names = sys._getframe(1), []
        while (
            frame is not None and "torchridge" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename
        ):
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        depths.append(len(names))
        return factor(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    for n, d in ((50, 4), (4, 50)):
        torchridge.ridge(torch.randn(n, d), torch.randn(n), 1.0)
    assert depths and max(depths) <= 6


def test_a_fit_at_one_strength_takes_no_eigendecomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an eigendecomposition")

    with monkeypatch.context() as patch:
        for name in ("eigh", "eigvalsh", "svd"):
            patch.setattr(torch.linalg, name, never)
        tall = torchridge.ridge(torch.randn(50, 4), torch.randn(50), 1.0)
        wide = torchridge.ridge(torch.randn(4, 50), torch.randn(4), 1.0)
        many = torchridge.ridge(torch.randn(3, 50, 4), torch.randn(3, 50), 1.0)
    assert 0 < float(tall.dof) < 4 and 0 < float(wide.dof) < 4 and many.dof.shape == (3,)
