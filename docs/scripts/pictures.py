"""The pictures of `pictures.md`, drawn by running its code.

python docs/scripts/pictures.py
"""

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

DOCS = Path(__file__).parent.parent


def draw(page: Path, folder: Path) -> list[Path]:
    """Run every block of the page; what the last line of a block before a picture returns is that picture."""
    namespace: dict[str, Any] = {}
    written = []
    parts = re.split(r"^```python\n(.*?)^```\n", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for code, after in zip(parts[1::2], parts[2::2], strict=True):
        picture = re.match(r"\s*!\[.*\]\(images/(\w+\.png)\)", after)
        if picture is None:
            exec(code, namespace)
            continue
        head, call = re.match(r"(.*?)((?:^plot_)\w+\(.*)", code, re.DOTALL | re.MULTILINE).groups()  # type: ignore[union-attr]
        exec(head, namespace)
        ax = eval(call, namespace)
        ax.figure.savefig(folder / picture[1], dpi=110, metadata={"Software": None})
        written.append(folder / picture[1])
    return written


if __name__ == "__main__":
    (DOCS / "images").mkdir(exist_ok=True)
    print(*draw(DOCS / "pictures.md", DOCS / "images"), sep="\n")
