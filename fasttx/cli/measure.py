"""Measures ops and forms for `tune`, as a process of its own: a crash costs one way of one regime and not the table.

:mod:`fasttx.trust.tune` starts it with a device, and ``quick`` or ``whole``. The first line of its output is
``{"device": "", "key": {...}}``, or why the device cannot be used. Then it reads a line for each item, ``{"item": name,
"without": {way: reason}}``, and answers with any number of ``{"item": name, "runs": way}`` and at last with
``{"item": name, "found": {...}}`` (:func:`fasttx.bench.tuning.measure`) or ``{"item": name, "problem": why}``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import torch

from ..bench import tuning
from ..ops import tuned
from .check import _first_line, _why_no_device


def main() -> None:
    device, quick = torch.device(sys.argv[1]), sys.argv[2] == "quick"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what kernels print
    if os.environ.get("TRITON_INTERPRET") == "1":
        from ..triton_interpreter import repair

        repair()

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=out, flush=True)

    reason = _why_no_device(device)
    tell({"device": reason} if reason else {"device": "", "key": tuned.key(device)})
    warnings.simplefilter("ignore")  # an op that runs as PyTorch's own is what is wanted here
    for line in sys.stdin if not reason else ():
        asked = json.loads(line)
        item = asked["item"]
        try:
            found = tuning.measure(
                item, device, quick, asked["without"], lambda way, item=item: tell({"item": item, "runs": way})
            )
        except tuning.Broken:
            os._exit(70)
        except Exception as problem:  # whatever PyTorch, a compiler or a missing package raises is this item's
            tell({"item": item, "problem": _first_line(problem)})
        else:
            tell({"item": item, "found": found})
    out.flush()
    os._exit(0)  # a broken context can hang in its end


if __name__ == "__main__":
    main()
