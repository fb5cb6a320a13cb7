"""`python -m torchridge`: the command line."""

import sys

from torchridge.cli import main

sys.exit(main())
