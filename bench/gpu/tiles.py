"""Tiles and numbers of programs, one changed at a time beside what the kernels take: each right first, then timed."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch

from fasttx.kernels.attention_config import OTHER_TILES
from fasttx.ops import OPS

from ..accuracy import judge
from ..kernel_calls import our_calls
from ..op_case import Workload
from ..timer import Call, copies_for, interleaved
from ..workloads import WORKLOADS
from .item import Context, Item, Line
from .launch import launch

Patch = tuple[str, str, Callable[[Any], Any]]
"""A module of the kernels, a name in it, and what takes its place, made from what stands there."""


def _tile(kernel: str, **fields: int | bool | None) -> Callable[[Any], Any]:
    """attention_config.config with another tile for one kernel."""

    def make(config: Callable[..., Any]) -> Callable[..., Any]:
        def other(name: str, *args: Any, **rest: Any) -> Any:
            found = config(name, *args, **rest)
            return found._replace(**fields) if name == kernel else found

        return other

    return make


def _fwd(**fields: int | bool | None) -> tuple[Patch, ...]:
    return (("fasttx.kernels.attention", "config", _tile("fwd", **fields)),)


def _dkdv(**fields: int | bool | None) -> tuple[Patch, ...]:
    return (("fasttx.kernels.attention_bwd", "config", _tile("dkdv", **fields)),)


@dataclass(frozen=True)
class Comparison:
    """What a workload's direction is timed with, beside what the kernels take by themselves.

    Attributes:
        arms: by name, what is changed.
        expected: the prediction.
    """

    workload: str
    direction: str
    arms: Mapping[str, tuple[Patch, ...]] = field(default_factory=dict)
    expected: str = ""


FORWARD = {
    "128 x 128, 8 warps, 2 stages": _fwd(block_m=128, block_n=128, num_warps=8, num_stages=2, max_registers=None),
    "64 x 64, 4 warps, 3 stages": _fwd(block_m=64, block_n=64, num_warps=4, num_stages=3, max_registers=None),
}
BACKWARD = {
    f"{t.block_m} x {t.block_n}, {t.num_warps} warps, {'K Q^T' if t.transposed else 'Q K^T'}": _dkdv(**t._asdict())
    for t in OTHER_TILES["dkdv", 90, 64]
} | {
    "64 x 128, 8 warps, 1 stage": _dkdv(block_m=64, block_n=128, num_warps=8, num_stages=1, transposed=True),
}
PROGRAMS = {
    str(n): (("fasttx.kernels.dropout_add_layer_norm", "PROGRAMS", lambda _, n=n: n),) for n in (132, 528, 1056)
}
ELEMENTS = {
    f"{n} elements, {warps} warps": (
        ("fasttx.kernels.bias_gelu", "TABLE", lambda table, row=(n, warps): table | {"fwd": row}),
    )
    for n, warps in ((1024, 4), (4096, 8))
}
COMPARISONS = (
    Comparison("attention-bert-base-s512", "bwd", BACKWARD, "the default, by the shorter loop of 8 warps"),
    Comparison("attention-bert-base-s512-dropout", "bwd", BACKWARD, "the default, by more than that"),
    Comparison("attention-d64-s4096", "bwd", BACKWARD, "even: twice the atomics of dq"),
    Comparison("attention-bert-base-s512", "fwd", FORWARD, "128 x 128 is ahead: 9.4 instructions an element for 11.5"),
    Comparison("attention-d64-s4096", "fwd", FORWARD, "128 x 128 is ahead"),
    Comparison("dropout_add_layer_norm-bert-base-16384x768", "bwd", PROGRAMS, "528 is ahead: latency decides"),
    Comparison("bias_gelu-bert-base-16384x3072", "fwd", ELEMENTS, "even: arithmetic decides"),
)


@contextlib.contextmanager
def changed(patches: tuple[Patch, ...]) -> Iterator[None]:
    """Within it the kernels take what the patches say.

    Raises:
        AttributeError: a module has no such name any more.
    """
    with contextlib.ExitStack() as stack:
        for module, name, make in patches:
            place = importlib.import_module(module)
            stack.enter_context(mock.patch.object(place, name, make(getattr(place, name))))
        yield


def _under(patches: tuple[Patch, ...], call: Call) -> Call:
    def run(slot: int) -> object:
        with changed(patches):
            return call(slot)

    return run


def run(comparison: Comparison, workload: Workload, context: Context) -> Iterator[Line]:
    arms: dict[str, tuple[Patch, ...]] = {"as it is": (), **comparison.arms}
    op, device, direction = OPS[workload.op], context.device, comparison.direction
    if context.dry:
        for patches in arms.values():
            with changed(patches):
                yield from launch(workload, context)
        return
    base = {"workload": workload.name, "direction": direction}
    first = workload.build(device, context.full, 0)
    copies = 2 if context.rehearsal else copies_for(device, sum(x.nbytes for x in first.args if torch.is_tensor(x)), 4)
    cases = [first, *(workload.build(device, context.full, i) for i in range(1, copies))]
    calls: dict[str, Call] = {}
    for name, patches in arms.items():
        try:
            with changed(patches):
                found = judge(workload, op, device, context.checked, "triton")[direction]
                if not found.good:
                    text = f"{direction} {name}: wrong, error {found.error:.2e} of {found.allowed:.2e} allowed"
                    yield {"text": text, "ok": False, "arm": name, **base}
                    continue
                call = our_calls(op, cases, "triton")[direction]
            assert not isinstance(call, str)
            calls[name] = _under(patches, call)
        except Exception as problem:  # a tile that does not fit: the others are compared all the same
            reason = (str(problem).strip().splitlines() or [""])[0][:160]
            yield {"text": f"{direction} {name}: {type(problem).__name__}: {reason}", "ok": False, "arm": name, **base}
    if not calls:
        return
    rehearsed = context.rehearsal
    times = interleaved(
        calls, device, rounds=1 if rehearsed else 9, copies=copies, batch_ms=0.1 if rehearsed else 4, seconds=8.0
    )
    ours = times.get("as it is")
    for name, t in times.items():
        text = f"{direction} {name}: {t.median * 1e3:.1f} us"
        text += f", {t.median / ours.median:.3f} x as it is" if ours is not None else ""
        line = {"text": text, "arm": name, "median_ms": t.median, "low_ms": t.low, "high_ms": t.high, "key": True}
        yield line | base | ({"expected": comparison.expected} if name == "as it is" else {})


def items(context: Context) -> list[Item]:
    by_name = {workload.name: workload for workload in WORKLOADS}
    comparisons = list(COMPARISONS)
    if context.rehearsal:  # each kind of change once
        comparisons = list({id(c.arms): c for c in reversed(comparisons)}.values())
    return [Item(f"{c.workload} {c.direction}", partial(run, c, by_name[c.workload])) for c in comparisons]
