"""Says, before the Makefile installs torch, how large that is and what a machine without a GPU can take instead."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ADVICE = """
make: pip fetches PyTorch now. From PyPI that is a build with CUDA, about 5 GB on the disk{without}.
      A build for CPUs alone is a tenth of it. Press Ctrl-C, and name its index (pytorch.org shows the address):
          make PIP_ARGS="--extra-index-url ADDRESS" ...
"""


def advice(arguments: Sequence[str], environment: Mapping[str, str], system: str, has_gpu: bool, here: bool) -> str:
    """What to say; nothing where it does not hold.

    Args:
        arguments: of pip.
        environment: of pip.
        system: of platform.system().
        has_gpu: whether an NVIDIA GPU is here.
        here: whether torch is installed already.
    """
    named = any("index-url" in a or "find-links" in a or a in ("-i", "-f") for a in arguments)
    named = named or any(environment.get(f"PIP_{name}") for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS"))
    if here or named or system != "Linux":
        return ""
    return ADVICE.format(without="" if has_gpu else ", and no NVIDIA GPU was found here")


def main() -> None:
    has_gpu = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    here = importlib.util.find_spec("torch") is not None
    print(advice(sys.argv[1:], os.environ, platform.system(), has_gpu, here), end="", flush=True)


if __name__ == "__main__":
    main()
