"""What `python -m fasttx.cli.check` is, with the ops of probes.py in its table."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from trust import probes  # noqa: E402

from fasttx.cli import check  # noqa: E402
from fasttx.ops import OPS  # noqa: E402

if __name__ == "__main__":
    OPS.update(probes.PROBES)
    check.main()
