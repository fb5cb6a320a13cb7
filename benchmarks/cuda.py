"""One CUDA device in at most ten minutes: its tests, then a table of what the closed form costs on it.

python benchmarks/cuda.py                       everything
python benchmarks/cuda.py products probes       some of the steps
python benchmarks/cuda.py --minutes 5           stop sooner; what was not reached is listed as such

The steps are in `one_device.py`. This file bears the name of a package of NVIDIA's, which torch imports: where this
folder comes first on the path, as it does for every script in it, it stands aside for that package.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ELSEWHERE = [place for place in sys.path if Path(place or ".").resolve() != HERE]

if __name__ == "cuda":
    spec = PathFinder.find_spec("cuda", ELSEWHERE)
    if spec is None:
        raise ModuleNotFoundError("No module named 'cuda'", name="cuda")
    sys.modules["cuda"] = package = module_from_spec(spec)
    if spec.loader is not None:
        spec.loader.exec_module(package)

if __name__ == "__main__":
    sys.path[:] = [*ELSEWHERE, str(HERE)]
    from one_device import main

    sys.exit(main(sys.argv[1:]))
