"""The notebooks as they are committed: run from top to bottom, with their pictures, and with nothing of a machine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def test_all_eight_are_there() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{i:02d}" for i in range(1, 9)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_run_once_in_order_without_errors_or_warnings(notebook: Path) -> None:
    code = cells(notebook, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_names_no_machine(notebook: Path) -> None:
    content = json.loads(notebook.read_text())
    assert not any(cell["metadata"] for cell in content["cells"])
    assert set(content["metadata"]) <= {"kernelspec", "language_info"}
    texts = [
        json.dumps({k: v for k, v in o.items() if k != "data"}) for c in cells(notebook, "code") for o in c["outputs"]
    ]
    assert not [text for text in texts if re.search(r"/(home|tmp|root|work|Users)/| at 0x", text)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_results_are_printed_by_code_and_not_typed_into_text(notebook: Path) -> None:
    """Decimals in text are inputs: they stand in the code of the notebook too."""
    code = "".join("".join(cell["source"]) for cell in cells(notebook, "code"))
    for cell in cells(notebook, "markdown"):
        text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", "".join(cell["source"]))
        for number in re.findall(r"\d+\.\d+", text):
            assert number in code, f"{number} is typed into the text: {text[:60]!r}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_to_files_that_are_there(notebook: Path) -> None:
    for cell in cells(notebook, "markdown"):
        for link in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
            assert link.startswith("https://") or (notebook.parent / link).exists(), link


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_opens_with_what_the_reader_will_be_able_to_do(notebook: Path) -> None:
    assert "**You will be able to**" in "".join(json.loads(notebook.read_text())["cells"][0]["source"])
