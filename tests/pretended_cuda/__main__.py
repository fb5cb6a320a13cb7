"""Run a module or a script in a process that believes in a CUDA device."""

import runpy
import sys

from pretended_cuda.install import install

if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
