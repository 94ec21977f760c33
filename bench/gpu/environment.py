"""The machine: versions, clocks, its own rates, whether what was prepared fits, and Triton's launchers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ..environment import describe, rates
from ..workloads import WORKLOADS
from . import prebuilt
from .compiled import watching
from .item import Context, Item, Line
from .launch import launch


def machine(context: Context) -> Iterator[Line]:
    found = describe(context.device)
    made = prebuilt.manifest()
    found["commit"] = prebuilt.commit() or made.get("commit", "unknown")
    names = ("device", "commit", "torch", "triton", "transformers")
    yield {"text": ", ".join(f"{name} {found.get(name, '?')}" for name in names), "found": found, "key": True}


def _compile(launcher: dict[str, str]) -> None:
    from triton.backends.nvidia import driver
    from triton.runtime.build import compile_module_from_src

    compile_module_from_src(
        src=launcher["src"],
        name=launcher["name"],
        library_dirs=driver.library_dirs(),
        include_dirs=driver.include_dirs,
        libraries=driver.libraries,
    )


def launchers(context: Context) -> Iterator[Line]:
    """Compiles Triton's launchers, all cores at once: one by one at first use they take 0.6 s each."""
    path = prebuilt.FOLDER / prebuilt.LAUNCHERS
    if context.rehearsal or not path.is_file():
        yield {"text": "a rehearsal launches nothing" if context.rehearsal else "none were prepared", "n": 0}
        return
    sources, begun = json.loads(path.read_text(encoding="utf-8")), time.monotonic()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(_compile, sources))
    yield {"text": f"{len(sources)} launchers in {time.monotonic() - begun:.1f} s", "n": len(sources)}


def cache(context: Context) -> Iterator[Line]:
    """One kernel, and whether it came from the cache that was prepared."""
    workload = next(w for w in WORKLOADS if w.op == "softmax")
    with watching() as seen:
        launch(workload, context, (context.checked,))
    hits, misses = seen.hits, seen.misses
    good = context.rehearsal or not prebuilt.manifest() or misses == 0
    yield {"text": f"{hits} kernels from the cache, {misses} compiled", "ok": good, "hits": hits, "misses": misses}


def speed(context: Context) -> Iterator[Line]:
    found = rates(context.device, tiny=context.rehearsal)
    text = ", ".join(f"{name} {rate:.4g}" for name, rate in found.items())
    yield {"text": text, **found, "key": True, "expected": "H200: copy 4,300 GB/s, product 790 TFLOP/s"}


def items(context: Context) -> list[Item]:
    return [Item("machine", machine), Item("launchers", launchers), Item("cache", cache), Item("rates", speed)]
