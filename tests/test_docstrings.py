"""Every example in a docstring runs, and every public name says what it takes, what it refuses, and how it is used."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import matplotlib
import pytest
from public_api import docs_script

import torchridge

matplotlib.use("Agg")

FOUND = sorted(info.name for info in pkgutil.walk_packages(torchridge.__path__, "torchridge."))
MODULES = ["torchridge", *(name for name in FOUND if not name.endswith("__main__"))]
REFERENCE = docs_script("reference")


def public() -> dict[str, Any]:
    """The public functions and classes by the path they are defined at."""
    found = [value for module in REFERENCE.public_modules() for _, value in REFERENCE.names(module)]
    return {REFERENCE.path(v): v for v in found if inspect.isclass(v) or inspect.isroutine(v)}


PUBLIC = public()
WARNINGS = [path for path, value in PUBLIC.items() if inspect.isclass(value) and issubclass(value, Exception)]
DESCRIBED = [path for path in PUBLIC if path not in WARNINGS]


# Nothing is computed by them that has a cost of its own: conversions, names, handles, the abstract base, the shell.
FREE = {"StepPenalty", "clear_regularizers", "convert_strength", "Regularizer", "validate_float_arg", "main"}


def computes(path: str) -> bool:
    """Whether a name does work in proportion to the data or the model: no result, no picture, no name of a class."""
    drawn = path.startswith(("torchridge.plots", "torchridge.tensorboard", "torchridge.training.penalties.identifiers"))
    record = is_dataclass(PUBLIC[path]) or (inspect.isclass(PUBLIC[path]) and issubclass(PUBLIC[path], tuple))
    return not drawn and not record and path.rpartition(".")[2] not in FREE


def members() -> dict[str, Any]:
    """Public functions and classes, and the methods that public classes define or override themselves."""
    found = dict(PUBLIC)
    for path, value in PUBLIC.items():
        if inspect.isclass(value) and path not in WARNINGS:
            own = {name: item for name, item in vars(value).items() if not name.startswith("_")}
            found |= {f"{path}.{name}": item for name, item in own.items() if inspect.isfunction(item)}
    return found


MEMBERS = members()


def doc(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def section(text: str, *titles: str) -> str:
    """The indented lines below any of the titles."""
    pattern = rf"^(?:{'|'.join(titles)}):\n((?:[ ]+.*\n?|\n)+)"
    return "".join(re.findall(pattern, text, re.MULTILINE))


def body(value: Any) -> ast.AST:
    """The code of a function, or of the initialization of a class."""
    target = value.__init__ if inspect.isclass(value) else value
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(target))))


def refuses(value: Any) -> bool:
    """Whether it raises by its own words, or checks its arguments."""
    if inspect.isclass(value) and ("__init__" not in vars(value) or is_dataclass(value)):
        return False
    nodes = list(ast.walk(body(value)))
    checks = any(
        isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "_check" for n in nodes
    )
    return checks or any(isinstance(n, ast.Raise) and n.exc is not None for n in nodes)


def parameters(value: Any) -> Iterator[str]:
    for name, parameter in inspect.signature(value).parameters.items():
        if name not in ("self", "cls") and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            yield name


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
def test_examples_print_what_they_state(name: str) -> None:
    if name.startswith("torchridge.integrations."):
        pytest.importorskip(name, reason="the extra `integrations` is not installed", exc_type=ImportError)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    names = {**vars(module)}
    results = doctest.testmod(module, extraglobs=names, optionflags=flags, report=True)
    assert results.failed == 0


@pytest.mark.parametrize(
    "path", [p for p, v in PUBLIC.items() if not (inspect.isclass(v) and issubclass(v, Exception))]
)
def test_a_public_name_has_an_example(path: str) -> None:
    assert ">>> " in doc(PUBLIC[path]), f"{path} has no example"


@pytest.mark.parametrize("path", MEMBERS)
def test_a_public_name_is_described(path: str) -> None:
    text = doc(MEMBERS[path])
    assert text, f"{path} has no docstring"
    assert text.splitlines()[0].endswith((".", ":")), f"{path} begins with half a sentence"


@pytest.mark.parametrize("path", DESCRIBED)
def test_a_public_name_describes_each_argument(path: str) -> None:
    value = PUBLIC[path]
    described = section(doc(value), "Args", "Keyword Args", "Attributes")
    missing = [name for name in parameters(value) if not re.search(rf"^ +{name}(?: \(.*\))?:", described, re.MULTILINE)]
    assert not missing, f"{path} leaves out {missing}"


@pytest.mark.parametrize("path", [path for path in DESCRIBED if computes(path)])
def test_what_computes_states_its_cost(path: str) -> None:
    assert re.search(r"^Cost: ", doc(PUBLIC[path]), re.MULTILINE), f"{path} does not say what it costs"


@pytest.mark.parametrize("path", [path for path, value in MEMBERS.items() if refuses(value)])
def test_what_refuses_says_so(path: str) -> None:
    assert section(doc(MEMBERS[path]), "Raises"), f"{path} raises, and does not say what"


# What K folds are: for regression, for classes, and of a stream.
FOLDS = ("contiguous runs of rows", "stratified by class", "row i goes to fold i mod K")


def test_every_cv_says_what_a_number_of_folds_means() -> None:
    takes = {
        path: inspect.getdoc(value) for path, value in PUBLIC.items() if path in DESCRIBED and "cv" in parameters(value)
    }
    assert len(takes) >= 11
    for path, text in takes.items():
        entry = re.search(r"^( +)cv: .*(?:\n\1 +.*)*", text or "", re.MULTILINE)
        assert entry is not None, path
        assert any(rule in re.sub(r"\s+", " ", entry[0]) for rule in FOLDS), (path, entry[0])
