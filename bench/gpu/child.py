"""One stage, or a share of it, in a process of its own: `python -m bench.gpu.child MODULE ...`; check.py starts it.

Items run one after the other. Each begins and ends with a line in the journal, which the parent reads; what an item
yields goes into the stage's file at once. An item that raises is a line; where that broke the CUDA context, so that all
that follows would fail too, the process ends with the status BROKEN, and the parent starts another behind that item.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from .records import append

BROKEN = 43


def context_is_broken(module: ModuleType) -> bool:
    """Whether the device refuses everything since an error; a module may know better (``is_broken``)."""
    if hasattr(module, "is_broken"):
        return bool(module.is_broken())
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:  # of any later call as well
        return True
    return False


def one_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0][:300]}"


def make_context(module: ModuleType, rehearsal: bool, until: float) -> Any:
    """Sets the process up, and gives the :class:`~bench.gpu.item.Context`; a module may have its own."""
    if hasattr(module, "context"):
        return module.context(rehearsal, until)
    import torch
    import torch._functorch.config as functorch_config

    from .item import Context

    functorch_config.donated_buffer = False  # backward is timed with retain_graph
    if rehearsal:
        from fasttx.triton_interpreter import repair

        repair()
        torch.set_num_threads(1)
    return Context(torch.device("cpu" if rehearsal else "cuda"), rehearsal, until=until)


def run(
    module: ModuleType, out: Path, journal: Path, fixed: dict[str, Any], skip: set[str], share: tuple[int, int]
) -> int:
    """Runs the items of a share but for those to skip; the exit status."""
    context = make_context(module, bool(fixed.get("rehearsal")), float(fixed["until"]))
    items = module.items(context)[share[0] :: share[1]]
    append(journal, {"items": [item.name for item in items]})
    for item in items:
        if item.name in skip:
            continue
        if time.time() > context.until:
            break
        begun = time.time()
        append(journal, {"begins": item.name, "at": begun})
        base = {"stage": fixed["stage"], "part": fixed["part"], "item": item.name}
        base |= {"rehearsal": True} if fixed.get("rehearsal") else {}

        def add(line: dict[str, Any], base: dict[str, Any] = base, begun: float = begun) -> None:
            append(out, {**base, "ok": True, **line, "seconds": round(time.time() - begun, 2)})

        failed = False
        try:
            for line in item.run(context):
                add(line)
        except Exception as problem:  # the item is lost, and said to be; the others go on
            failed = True
            traceback.print_exc()
            add({"ok": False, "text": one_line(problem), "error": one_line(problem)})
        append(journal, {"ends": item.name})
        if failed and context_is_broken(module):
            return BROKEN
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module")
    for name in ("--stage", "--part"):
        parser.add_argument(name, required=True)
    for name in ("--out", "--journal"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--until", type=float, required=True)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--skip", nargs="*", default=[])
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    fixed = {"stage": options.stage, "part": options.part, "until": options.until, "rehearsal": options.rehearse}
    first, of = map(int, options.share.split("/"))
    module = importlib.import_module(options.module)
    return run(module, options.out, options.journal, fixed, set(options.skip), (first, of))


if __name__ == "__main__":
    sys.exit(main())
