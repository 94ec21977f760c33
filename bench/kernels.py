"""Every op on its workloads: accuracy first, then its time beside its peers' (bench/peers.py), one CSV row each.

    python -m bench.kernels [--only NAME] [--out FILE] [--backend triton] [--beside cuda] [--device cpu] [--quick]

On a GPU the Triton kernels at full size; on a CPU PyTorch's operators as fasttx composes them, at the size that the
accuracy is checked at, few rows or heads ("check" in the column `size`): what a call costs there, not what kernels do.
A row whose accuracy check failed has no time: a speed without a right result does not count.  `--beside` checks and
times another backend of ours in the same turns.  Where memory decides, the peer "device copy" moves as many bytes as
the op must: its `ratio` is the share of the copy rate that we reach.  A peer that computes something else, or with more
than twice the error of plain PyTorch, is timed, as it is what people use, and its status says "inexact" with the error
beside it.  One that cannot run is a row with the reason.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch._functorch.config as functorch_config

from fasttx.ops import OPS
from fasttx.ops.cost import bytes_of
from fasttx.ops.registry import Op

from .accuracy import call_op, check, random_dout
from .environment import device_of
from .kernel_calls import copy_call, our_calls, peer_calls, reason_of
from .op_case import Workload
from .options import parser_of
from .progress import Watch, bound_of, unwatched, watcher
from .progress import deadline as deadline_in
from .table import write
from .timer import Call, copies_for, interleaved
from .workloads import select

OF_PRODUCTS = ("attention", "linear_cross_entropy", "int8_linear")
"""Ops that tensor cores decide; all others are held to the rate of a device copy."""


@dataclass
class Row:
    """One peer on one workload. Times in ms; `ratio` is the peer's time over ours, so above 1 we are faster.

    `direction` is fwd, bwd, or step: forward and backward timed as one, where a peer makes its gradient in forward.
    """

    workload: str
    direction: str
    dtype: str
    device: str
    peer: str
    size: str = ""
    inputs: str = ""
    status: str = "ok"
    error: float | str = ""
    allowed: float | str = ""
    median_ms: float | str = ""
    low_ms: float | str = ""
    high_ms: float | str = ""
    wall_ms: float | str = ""
    tflops: float | str = ""
    GBps: float | str = ""
    ratio: float | str = ""


def failed(row: Row) -> bool:
    """Whether it is a row of ours that ought to have a time; a backend beside may have no kernel for an op."""
    return row.peer.startswith("fasttx") and not row.status.startswith(("ok", "not ", "unavailable: "))


def _place(device: torch.device, rehearsal: bool) -> str:
    """Rows of a rehearsal must never be taken for figures."""
    return "rehearsal" if rehearsal else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _check_all(
    workload: Workload, op: Op, device: torch.device, size: str, backends: Collection[str]
) -> dict[str, dict[str, tuple[float, float]] | str]:
    """For each backend (error, allowed) by direction, or why it is not checked. The first must run."""
    found: dict[str, dict[str, tuple[float, float]] | str] = {}
    for i, backend in enumerate(backends):
        if workload.dropout and backend == "torch":
            found[backend] = "not compared: the torch backend draws masks of its own"
            continue
        try:
            found[backend] = check(workload, op, device, size, backend)
        except Exception as problem:  # a backend beside that has no kernel for this op, or not for this call
            if i == 0:
                raise
            found[backend] = reason_of(problem)
    return found


def measure(
    workload: Workload,
    device: torch.device,
    backend: str,
    rehearsal: bool,
    hot: bool,
    quick: bool = False,
    beside: Collection[str] = (),
) -> Iterator[Row]:
    """Checks and times one workload; yields its rows."""
    op = OPS[workload.op]
    size = "tiny" if rehearsal else "full" if device.type == "cuda" else "check"
    dtype, place = "", _place(device, rehearsal)

    def row(direction: str, peer: str, inputs: str, status: str = "ok") -> Row:
        return Row(workload.name, direction, dtype, place, peer, size, inputs, status)

    checked = _check_all(workload, op, device, "tiny" if rehearsal else "check", dict.fromkeys((backend, *beside)))
    first = workload.build(device, size, 0)
    errors: dict[str, tuple[dict[str, tuple[float, float]], bool]] = {}  # by name, and whether all are right
    for each, found in checked.items():
        name = f"fasttx[{each}]"
        if isinstance(found, str):
            yield row("", name, "", found)
            continue
        dtype = str(first.args[0].dtype).removeprefix("torch.")
        wrong = [d for d, (error, allowed) in found.items() if not error <= allowed]
        errors[name] = found, not wrong
        for direction in found if wrong else ():
            status = "wrong" if direction in wrong else "not timed: the other direction is wrong"
            bad = row(direction, name, "", status)
            bad.error, bad.allowed = found[direction]
            yield bad
    fasttx_peer = f"fasttx[{backend}]"
    if fasttx_peer not in errors or not errors[fasttx_peer][1]:
        return
    copies = 2 if rehearsal or device.type == "cpu" else copies_for(device, bytes_of(*first.args), limit=8)
    cases = [first, *(workload.build(device, size, i) for i in range(1, copies))]
    directions = [*op.directions, "step"] if first.step else list(op.directions)
    peers, peer_errors = peer_calls(workload, cases, device, rehearsal, quick, directions)
    right = [name for name, (_, good) in errors.items() if good]
    calls = {name: our_calls(op, cases, name[len("fasttx[") : -1]) for name in right} | peers
    forward = first.args
    outputs = call_op(op, "fwd", forward, backend)
    costs = {"fwd": op.fwd.cost(*forward)}
    if op.bwd is not None:
        costs["bwd"] = op.bwd.cost(*op.backward_arguments(forward, outputs, random_dout(outputs, 1), **first.given))
        costs["step"] = (costs["fwd"][0] + costs["bwd"][0], costs["fwd"][1] + costs["bwd"][1])
    for direction in directions:
        flop, nbytes = costs[direction]
        all_calls: dict[str, Call | str] = {name: by_direction[direction] for name, by_direction in calls.items()}
        if op.name not in OF_PRODUCTS:
            all_calls["device copy"] = copy_call(nbytes, device, copies)
        timed = {name: call for name, call in all_calls.items() if not isinstance(call, str)}
        for inputs, n in (("cold", copies), ("hot", 1)):
            if inputs == "hot" and not hot:
                continue
            timings = interleaved(
                timed,
                device,
                rounds=2 if rehearsal else 3 if quick else 11,
                copies=n,
                batch_ms=0.1 if rehearsal else 4,
                seconds=20.0,
            )
            for name, t in timings.items():
                new = row(direction, name, inputs)
                if name in peer_errors:
                    new.error, new.allowed = peer_errors[name]
                    new.status = "ok" if new.error <= new.allowed else "inexact"
                elif name in errors and direction in errors[name][0]:
                    new.error, new.allowed = errors[name][0][direction]
                new.median_ms, new.low_ms, new.high_ms, new.wall_ms = t.median, t.low, t.high, t.wall
                new.tflops, new.GBps = flop / t.median / 1e9, nbytes / t.median / 1e6
                if name == "device copy":
                    new.tflops = ""
                new.ratio = t.median / timings[fasttx_peer].median
                yield new
        for name, reason in all_calls.items():
            if isinstance(reason, str):
                yield row(direction, name, "", reason)


def run(
    device: torch.device,
    out: Path,
    *,
    only: str = "",
    backend: str = "triton",
    rehearsal: bool = False,
    hot: bool = False,
    deadline: float | None = None,
    say: Callable[[str], None] = print,
    quick: bool = False,
    watch: Watch = unwatched,
    beside: Collection[str] = (),
) -> tuple[list[Row], list[str]]:
    """Measures the workloads in order, writes `out` after each; `quick`: the first of each op, without compiled peers.

    Returns:
        The rows, and the names of the workloads that `deadline` (time.monotonic) left no time for.
    """
    functorch_config.donated_buffer = False  # backward of a compiled peer is timed with retain_graph
    rows, left = [], []
    chosen = select(only)
    if quick:
        chosen = list({w.op: w for w in reversed(chosen) if not w.dropout or backend != "torch"}.values())[::-1]
    for workload in watch(chosen):
        if deadline is not None and time.monotonic() > deadline:
            left.append(workload.name)
            continue
        begun = time.monotonic()
        try:
            new = list(measure(workload, device, backend, rehearsal, hot, quick, beside))
        except Exception as problem:  # a workload that cannot run is a row, and the others still run
            text = (str(problem).strip().splitlines() or [""])[0][:160]
            new = [
                Row(
                    workload.name,
                    "",
                    "",
                    _place(device, rehearsal),
                    f"fasttx[{backend}]",
                    "",
                    "",
                    f"{type(problem).__name__}: {text}",
                )
            ]
        rows += new
        write([asdict(row) for row in rows], [f.name for f in fields(Row)], out)
        best = [f"{r.direction} {r.peer} {r.ratio:.2f}x" for r in new if r.inputs == "cold" and r.ratio != 1.0]
        bad = sorted({f"{r.peer}: {r.status}" for r in new if r.status != "ok"})
        say(f"{workload.name} ({time.monotonic() - begun:.0f} s): {'; '.join(best + bad)}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, left


def main(arguments: list[str] | None = None, watch: Watch | None = None) -> int:
    parser = parser_of("kernels")
    options = parser.parse_args(arguments)
    device = device_of("cpu" if options.cpu_rehearsal else options.device)
    backend = options.backend or ("triton" if options.cpu_rehearsal or device.type == "cuda" else "torch")
    if device.type == "cpu" and backend != "torch" and not options.cpu_rehearsal:
        parser.error(f"--backend {backend} needs a GPU; --cpu-rehearsal runs it at tiny size, without figures")
    if options.cpu_rehearsal:
        rehearse()
    bound = bound_of(parser, options)
    rows, left = run(
        device,
        options.out,
        only=options.only,
        backend=backend,
        rehearsal=options.cpu_rehearsal,
        hot=options.hot,
        deadline=deadline_in(bound),
        quick=options.quick,
        watch=watch or watcher("bench kernels"),
        beside=options.beside,
    )
    if left:
        print(f"not begun in time: {', '.join(left)}")
    return int(any(map(failed, rows)))


def rehearse() -> None:
    """Switches Triton to its interpreter; must be called before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    from fasttx.triton_interpreter import repair

    repair()


if __name__ == "__main__":
    sys.exit(main())
