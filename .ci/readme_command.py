"""Print one of the two commands of the README: the fenced block after the marker `<!-- command: NAME -->`."""

import re
import sys
from pathlib import Path

name = sys.argv[1]
text = (Path(__file__).parent.parent / "README.md").read_text()
match = re.search(rf"<!-- command: {name} -->\n```bash\n(.*?)\n```", text, re.DOTALL)
if match is None:
    sys.exit(f"README.md has no command marked {name!r}")
print(match[1])
