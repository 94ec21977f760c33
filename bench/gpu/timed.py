"""Workloads beside chosen peers, as bench.kernels measures them: what the stages on kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial

import torch

from ..kernels import failed, measure
from ..op_case import OpCase, Workload
from ..peers import Peer
from .item import Context, Item, Line
from .launch import launch

Wanted = Callable[[str, Peer | str], bool]
Expected = Mapping[tuple[str, str], str]
"""What is predicted of fasttx's own row, by workload and direction."""


def with_peers(workload: Workload, wanted: Wanted) -> Workload:
    """The same workload beside those peers alone."""

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        case = workload.build(device, size, seed)
        return replace(case, peers={name: peer for name, peer in case.peers.items() if wanted(name, peer)})

    return replace(workload, build=build)


def run(
    workload: Workload, wanted: Wanted, expected: Expected, beside: tuple[str, ...], context: Context
) -> Iterator[Line]:
    if context.dry:
        yield from launch(workload, context)
        return
    rows = measure(
        with_peers(workload, wanted), context.device, "triton", context.rehearsal, hot=False, quick=False, beside=beside
    )
    for row in rows:
        ours = row.peer.startswith("fasttx")
        text = f"{row.direction} {row.peer}: {row.status}"
        if isinstance(row.median_ms, float):
            text += f", {row.median_ms * 1e3:.1f} us, {row.ratio:.2f} x our time"
            text += f", {row.tflops:.0f} TFLOP/s" if workload.op == "attention" else f", {row.GBps:.0f} GB/s"
        prediction = expected.get((workload.name, row.direction), "") if row.peer == "fasttx[triton]" else ""
        line = {"text": text, "ok": not failed(row), "key": ours, **asdict(row)}
        if ours and isinstance(row.error, float):  # a verdict as those of the stages `ops` and `sweep`
            line |= {"op": workload.op, "backend": row.peer[len("fasttx[") : -1]}
        yield line | ({"expected": prediction} if prediction else {})
    if context.device.type == "cuda":
        torch.cuda.empty_cache()


def items_of(workloads: list[Workload], wanted: Wanted, expected: Expected, beside: tuple[str, ...] = ()) -> list[Item]:
    """An item a workload."""
    return [Item(w.name, partial(run, w, wanted, expected, beside)) for w in workloads]
