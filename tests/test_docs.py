"""What README and documentation show runs, prints what they say, and leaves no public name out."""

import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from markdown_blocks import run_block, run_file
from public_api import docs_script

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What a reader of the README has at hand before each block: a model, a loss, and data. Names of the library come from
# the blocks' own imports.
README = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 25), nn.ReLU(), nn.Linear(25, 10))
criterion = nn.CrossEntropyLoss()
X = x = torch.randn(100, 64)
y = torch.arange(100) % 10
batches = [(torch.randn(40, 3), torch.randn(40)) for _ in range(10)]
labelled = list(zip(x.split(25), y.split(25)))
"""


def beside_the_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay down the file that the README reads, and what torchrun sets."""
    rng = np.random.default_rng(0)
    table = "\n".join(",".join(map(str, row)) for row in rng.standard_normal((50, 3)).round(3))
    (folder / "rows.csv").write_text("a,b,y\n" + table + "\n")
    monkeypatch.chdir(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in (address | {"RANK": "0", "WORLD_SIZE": "1"}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
def test_every_block_runs_and_prints_what_is_stated(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if page.name == "README.md":
        beside_the_reader(tmp_path, monkeypatch)
    try:
        assert run_file(page, README if page.name == "README.md" else "") == []
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_wrong_result_is_found() -> None:
    assert run_block("print(1 + 1)\n# 2\nprint(2)  # trailing\n", {}, "page") == []
    assert run_block("print('a  b')\n# a b\n\n# a remark\n", {}, "page") == []
    (wrong,) = run_block("x = 1\nprint(x)\n# 2\n", {}, "page")
    assert wrong == "page, `print(x)` states [' 2'], prints '1\\n'"


def test_every_public_name_is_in_the_reference() -> None:
    reference = docs_script("reference")
    text = "\n".join(reference.pages().values())
    for module in ("torchridge", "torchridge.estimators", "torchridge.probing", "torchridge.regularizers"):
        assert module in reference.public_modules()
    for module in reference.public_modules():
        for name, value in reference.names(module):
            entries = (f"::: {getattr(value, '__module__', '')}.{name}\n", f'id="{module}.{name}"', f"`{name}` has [a")
            assert any(entry in text for entry in entries), f"{module}.{name}"


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_holds_every_name(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    html = "\n".join(page.read_text() for page in (tmp_path / "reference").rglob("*.html"))
    reference = docs_script("reference")
    for module in reference.public_modules():
        for name, value in reference.names(module):
            anchors = (f'id="{getattr(value, "__module__", "")}.{name}"', f'id="{module}.{name}"')
            assert any(anchor in html for anchor in anchors) or isinstance(value, ModuleType), f"{module}.{name}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
def test_the_comparisons_say_what_the_others_do() -> None:
    pytest.importorskip("keras")
    compare = docs_script("compare")
    tables = {name: compare.markdown(make()) for name, make in compare.TABLES.items()}
    marked = []
    for path in compare.PAGES:
        page = path.read_text()
        marked += re.findall(r"<!-- table: (\w+) -->", page)
        assert compare.differences(page, compare.filled(page, tables)) == []
    assert sorted(marked) == sorted(tables)  # each has its place

    errors = [[float(cell) if cell != "fails" else 9.0 for cell in row[1:]] for row in compare.digits()[1:]]
    assert all(row[-1] < 1e-7 and row[-1] < min(row[:-1]) for row in errors)
    assert compare.dependent()[-1][1:] == ["yes", "yes", "`RankDeficientWarning`"]


@pytest.mark.slow
def test_the_pictures_are_those_of_the_code_beside_them(tmp_path: Path) -> None:
    drawn = docs_script("pictures").draw(ROOT / "docs" / "pictures.md", tmp_path)
    assert sorted(p.name for p in drawn) == sorted(p.name for p in (ROOT / "docs" / "images").iterdir())
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ("a 2e-07", "a 9e-07", 0),
        ("a 2e-07", "a 9e-05", 1),
        ("a yes", "a no", 1),
        ("a", "a\nb", 1),
        ("| 0.5 |", "| 9 |", 1),
    ],
)
def test_a_table_out_of_date_is_found(old: str, new: str, count: int) -> None:
    pytest.importorskip("keras")
    assert len(docs_script("compare").differences(old, new)) == count


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert re.search(r'^version: "?(.*?)"?$', citation, re.MULTILINE)[1] == version[1]  # type: ignore[index]
    for key in ("cff-version: 1.2.0", "message:", "title: ", "authors:", "license: BSD-3-Clause"):
        assert key in citation


def anchors(path: Path) -> set[str]:
    """The anchors that headings make, as GitHub and mkdocs do."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", list(ROOT.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Links of the site are checked by `mkdocs build --strict`; these are of the files beside it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            file, _, anchor = target.partition("#")
            place = page.parent / file if file else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


def test_words_are_spelled_as_they_are() -> None:
    assert subprocess.run([sys.executable, str(ROOT / ".ci" / "spelling.py")], check=False).returncode == 0


def test_readme_is_short_and_has_one_picture() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"!\[", text)) == 1


def test_the_source_archive_holds_what_the_commands_of_the_readme_read() -> None:
    listed = re.search(r"sdist\]\ninclude = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert listed is not None
    for name in ("constraints.txt", "examples", "tests", ".ci", "docs"):
        assert f'"{name}"' in listed[1]


def test_the_oldest_versions_that_are_claimed_are_those_that_are_tested() -> None:
    """`.ci/bound` tests those of torch and NumPy; of everything else, what the tests run with."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    claimed = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    for name, bound in claimed:
        if name in pins and name not in ("torch", "numpy"):
            assert bound.count(".") and f"{pins[name]}.".startswith(f"{bound}."), name
