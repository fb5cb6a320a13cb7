"""The reference, generated from `__all__`: a public name cannot be left out of it. A hook of mkdocs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torchridge

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

# Title and first line of a page. A public module that is not here has a page all the same.
PAGES = {
    "torchridge": ("Closed form", "Ridge and logistic regression, and what they are computed from."),
    "torchridge.training": ("Training", "Penalties in the loss, weight decay in the optimizer, and watching both."),
    "torchridge.streams": ("Streams", "Rows from files, frames and batches, past memory."),
    "torchridge.distributed": ("Over processes", "Moments of all ranks, and of features sharded by columns."),
    "torchridge.exceptions": ("Warnings", "What `torchridge` warns of; each has something that can be done about it."),
    "torchridge.regularizers": ("Regularizers", "Keras 3's regularizers for PyTorch."),
    "torchridge.estimators": ("Estimators", "scikit-learn's protocol, for arrays and tensors alike."),
    "torchridge.probing": ("Probing", "Linear readouts of frozen models, layer by layer."),
    "torchridge.plots": ("Plots", "Pictures with matplotlib."),
    "torchridge.integrations.lightning": ("Lightning", "The penalty once per optimizer step, and its log."),
    "torchridge.integrations.transformers": ("Hugging Face Trainer", "The penalty once per step, and decayed names."),
    "torchridge.integrations.skorch": ("skorch", "The penalty once per optimizer step, and its history."),
    "torchridge.tensorboard": ("TensorBoard", "Sweeps, paths and layers for TensorBoard."),
    "torchridge.cli": (
        "Command line",
        "What `torchridge` and `python -m torchridge` run; `--help` lists the commands.",
    ),
}


# What is looked up first, in the order of use; other names follow.
ORDER = [
    *("ridge", "ridge_cv", "ridge_path", "banded_ridge_cv", "RidgeSolution", "logistic", "logistic_cv"),
    *("LogisticSolution", "convert_strength", "Moments", "open_rows", "stream_moments", "LinearOperator"),
    *("weight_decay_groups", "explain_weight_decay", "penalty", "regularize", "L2Linear", "penalize_step", "L2Monitor"),
    *("penalties", "clear_regularizers", "LazyL2Linear", "check_optimizer", "muon_groups", "DecoupledWeightDecay"),
    *("ConstantWeightDecay", "CosineWeightDecay", "probe_layers", "LinearProbe", "ProbeReport", "Probe", "fit_head_"),
    *("Ridge", "RidgeCV", "RidgeClassifier", "RidgeClassifierCV", "LogisticRegression", "LogisticRegressionCV"),
    *(
        "plot_cv",
        "plot_path",
        "plot_layers",
        "plot_bands",
        "plot_decay",
        "log_sweep",
        "log_cv",
        "log_path",
        "log_layers",
    ),
]


def public_modules() -> list[str]:
    """Modules whose path has no underscore and that declare `__all__`, the package first."""
    found = ["torchridge"]
    for info in pkgutil.walk_packages(torchridge.__path__, "torchridge."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            try:
                module = importlib.import_module(info.name)
            except ImportError:
                if info.name.startswith("torchridge.integrations."):
                    continue  # its framework is not installed
                raise
            if inspect.ismodule(module) and hasattr(module, "__all__"):
                found.append(info.name)
    return found


def names(module: str) -> Iterator[tuple[str, Any]]:
    """The public names of a module and what they are, in its order."""
    imported = importlib.import_module(module)
    for name in imported.__all__:
        yield name, getattr(imported, name)


def path(value: Any) -> str:
    """Where a class or function is defined, which is where its docstring is read."""
    return f"{value.__module__}.{value.__qualname__}"


def page_of(module: str, value: Any) -> str:
    """The page a name is on: that of its module; those of the package itself are sorted by their wing."""
    home = getattr(value, "__module__", "") or ""
    wings = ("torchridge.training", "torchridge.exceptions", "torchridge.probing", "torchridge.streams")
    if module == "torchridge" and home.startswith(wings):
        return ".".join(home.split(".")[:2])
    return module


def pages() -> dict[str, str]:
    """The Markdown of every page, by file name without its ending."""
    written: dict[str, list[tuple[int, str]]] = {}
    shown: dict[tuple[str, int], Any] = {}
    for module in public_modules():
        for name, value in names(module):
            page = page_of(module, value)
            first = shown.setdefault((page, id(value)), (name, value))[0]
            place = ORDER.index(first) if first in ORDER else len(ORDER)
            written.setdefault(page, []).append((place, entry(module, name, value, first)))
    ordered = [*(page for page in PAGES if page in written), *(page for page in written if page not in PAGES)]
    entries = {page: [text for _, text in sorted(written[page], key=lambda pair: pair[0])] for page in ordered}
    return {page.replace("._", "."): heading(page) + "\n".join(entries[page]) for page in ordered}


def heading(page: str) -> str:
    """The title of a page and its first line."""
    title, line = PAGES.get(page, (page, ""))
    return f"# {title}\n\n{line}\n\n"


def entry(module: str, name: str, value: Any, first: str) -> str:
    """What a page says about one name; `first` is the name under which the same thing stands already."""
    if (inspect.isclass(value) or inspect.isroutine(value)) and first == name:
        return f"::: {path(value)}\n"
    if inspect.ismodule(value):
        return f"`{name}` has [a page of its own]({value.__name__}.md).\n"
    title, anchor = name.replace("_", r"\_"), f'<a id="{module}.{name}"></a>'
    if first != name:
        return f"## {title}\n\n{anchor}Another name of [`{first}`][{path(value)}].\n"
    what = f"`{value!r}`" if isinstance(value, str | tuple) else f"A {type(value).__name__}."
    return f"## {title}\n\n{anchor}{what}\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages behind those that are written, and what the list of pages does not name after them."""
    nav = list(config.nav or [])
    named = set(re.findall(r"[\w-]+\.md", str(nav)))
    others = sorted(page.name for page in Path(config.docs_dir).glob("*.md") if page.name not in named)
    reference = [f"reference/{name}.md" for name in pages()]
    config.nav = [*nav, *others, {"Reference": reference}, {"Changelog": "changelog.md"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    changelog = Path(config.docs_dir).parent / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", content=changelog.read_text()))
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
