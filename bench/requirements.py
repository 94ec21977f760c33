"""What a Python lacks to run bench.gpu.check: ``python -m bench.requirements``, which `make gpu-check` asks.

The standard library alone, and no syntax that an old Python could not read.
"""

import importlib
import sys

PACKAGES = ("pytest", "numpy", "torch", "triton", "transformers")


def lacks(packages=PACKAGES):
    """What is missing, in words; empty if nothing is."""
    if sys.version_info < (3, 10):  # noqa: UP036  a candidate may be older
        return [f"Python 3.10 or later (it is {sys.version_info[0]}.{sys.version_info[1]})"]
    found = []
    for name in packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as problem:
            found.append(name if problem.name == name else f"{problem.name}, which {name} needs")
        except Exception as problem:  # whatever a broken installation raises
            found.append(f"a {name} that can be imported ({' '.join(str(problem).split())[:200]})")
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        found.append(f"a GPU that its torch {torch.__version__} can see")
    return found


if __name__ == "__main__":
    missing = lacks()
    print(", ".join(missing))
    sys.exit(bool(missing))
