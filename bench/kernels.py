"""Every op on its workloads: accuracy first, then its time beside its peers' (bench/peers.py), one CSV row each.

    python -m bench.kernels [--only NAME] [--out FILE] [--backend triton] [--device cpu] [--quick]

On a GPU the Triton kernels at full size; on a CPU PyTorch's operators as fasttx composes them, at the size that the
accuracy is checked at, few rows or heads ("check" in the column `size`): what a call costs there, not what kernels do.
A row whose accuracy check failed has no time: a speed without a right result does not count.  A peer that computes
something else, or with more than twice the error of plain PyTorch, is timed, as it is what people use, and its status
says "inexact" with the error beside it.  One that cannot run is a row with the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from fasttx.cli.cases import load_ops
from fasttx.ops.registry import Op

from .accuracy import as_tuple, backward_arguments, call_op, check, check_peer, random_dout
from .peers import Peer
from .table import Watch, unwatched, write
from .timer import Call, bytes_of, copies_for, interleaved
from .workloads import Case, Workload, select


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


# -------------------------------------------------------------------------------------------------------- times


def _reason(problem: Exception) -> str:
    return f"unavailable: {(str(problem).strip().splitlines() or [type(problem).__name__])[0][:100]}"


def _peer_calls(peers: list[Peer], compile_backend: str, directions: Collection[str]) -> dict[str, Call | str]:
    """Direction -> call over one peer's copies, or why that direction is not timed.

    Raises:
        Exception: whatever the peer's forward raises.
    """
    fn: Callable[..., Tensor] = peers[0].fn
    if peers[0].compiled:
        torch._dynamo.reset()
        fn = torch.compile(fn, dynamic=False, backend=compile_backend)
    early = peers[0].early_gradient
    inputs = [[x.clone() if early else x.detach() for x in peer.inputs] for peer in peers]

    def forward(slot: int) -> object:
        with torch.no_grad():
            return fn(*inputs[slot])

    forward(0)
    calls: dict[str, Call | str] = {"fwd": forward}
    if "bwd" not in directions:
        return calls
    leaves = [[x.detach().requires_grad_() for x in xs] for xs in inputs]

    def step(slot: int) -> object:
        out = fn(*leaves[slot])
        return torch.autograd.grad(out, leaves[slot], torch.ones_like(out))

    if "step" in directions:
        calls["step"] = step
    if early:
        return calls | {"bwd": "not timed: its gradient is made in forward; the row of `step` has both"}
    try:
        outs = [fn(*x) for x in leaves]
        douts = [random_dout((out,), 1) for out in outs]

        def backward(slot: int) -> object:
            return torch.autograd.grad(outs[slot], leaves[slot], douts[slot], retain_graph=True)

        backward(0)
    except Exception as problem:  # an inference kernel: its forward still counts
        return calls | {"bwd": _reason(problem), "step": _reason(problem)}
    return calls | {"bwd": backward}


def _our_calls(op: Op, cases: list[Case], backend: str) -> dict[str, Call | str]:
    fwd = getattr(torch.ops.fasttx, f"{op.name}_fwd").default
    calls: dict[str, Call | str] = {"fwd": lambda slot: fwd(*cases[slot].args, backend)}
    if op.bwd is None:
        fwd(*cases[0].args, backend)
        return calls
    bwd = getattr(torch.ops.fasttx, f"{op.name}_bwd").default
    outputs = [as_tuple(fwd(*case.args, backend)) for case in cases]
    douts = [random_dout(outs, 1) for outs in outputs]
    back = [
        backward_arguments(op.name, case.args, outs, dout)
        for case, outs, dout in zip(cases, outputs, douts, strict=True)
    ]

    def step(slot: int) -> object:
        case = cases[slot]
        outs = as_tuple(fwd(*case.args, backend))
        return bwd(*backward_arguments(op.name, case.args, outs, douts[slot]), backend)

    return calls | {"bwd": lambda slot: bwd(*back[slot], backend), "step": step}


def _peers(
    workload: Workload, cases: list[Case], device: torch.device, rehearsal: bool, quick: bool,
    directions: Collection[str],
) -> tuple[dict[str, dict[str, Call | str]], dict[str, tuple[float, float]]]:  # fmt: skip
    """By name, the calls or reasons of every peer by direction, and (error, allowed) of those that can be compared."""
    calls: dict[str, dict[str, Call | str]] = {}
    errors: dict[str, tuple[float, float]] = {}
    small = workload.build(device, "tiny" if rehearsal else "check", 0).peers
    for name, peer in cases[0].peers.items():
        if isinstance(peer, str):
            calls[name] = dict.fromkeys(directions, f"unavailable: {peer}")
        elif quick and peer.compiled:
            calls[name] = dict.fromkeys(directions, "not run: --quick compiles nothing")
        else:
            try:
                judged = check_peer(cast(Peer, small[name]))
                if judged is not None:
                    errors[name] = judged
                copies = [cast(Peer, case.peers[name]) for case in cases]
                calls[name] = _peer_calls(copies, "aot_eager" if rehearsal else "inductor", directions)
            except Exception as problem:  # an SDPA backend that does not take this call, a package that fails here
                calls[name] = dict.fromkeys(directions, _reason(problem))
    return calls, errors


def _place(device: torch.device, rehearsal: bool) -> str:
    """Rows of a rehearsal must never be taken for figures."""
    return "rehearsal" if rehearsal else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measure(
    workload: Workload, device: torch.device, backend: str, rehearsal: bool, hot: bool, quick: bool = False
) -> Iterator[Row]:
    """Checks and times one workload; yields its rows."""
    op = load_ops()[workload.op]
    size = "tiny" if rehearsal else "full" if device.type == "cuda" else "check"
    if workload.dropout and backend == "torch":
        reason = "not compared: the torch backend draws masks of its own"
        yield Row(workload.name, "", "", _place(device, rehearsal), "fasttx[torch]", size, "", reason)
        return
    errors = check(workload, op, device, "tiny" if rehearsal else "check", backend)
    first = workload.build(device, size, 0)
    dtype = str(first.args[0].dtype).removeprefix("torch.")
    ours, place = f"fasttx[{backend}]", _place(device, rehearsal)
    wrong = [d for d, (found, allowed) in errors.items() if not found <= allowed]
    if wrong:
        for direction, (found, allowed) in errors.items():
            status = "wrong" if direction in wrong else "not timed: the other direction is wrong"
            yield Row(workload.name, direction, dtype, place, ours, size, "", status, found, allowed)
        return
    copies = 2 if rehearsal or device.type == "cpu" else copies_for(device, bytes_of(*first.args), limit=8)
    cases = [first, *(workload.build(device, size, i) for i in range(1, copies))]
    directions = [*op.halves, "step"] if first.step else list(op.halves)
    peers, peer_errors = _peers(workload, cases, device, rehearsal, quick, directions)
    calls = {ours: _our_calls(op, cases, backend)} | peers
    forward = first.args
    outputs = call_op(op, "fwd", forward, backend)
    costs = {"fwd": op.fwd.cost(*forward)}
    if op.bwd is not None:
        costs["bwd"] = op.bwd.cost(*backward_arguments(op.name, forward, outputs, random_dout(outputs, 1)))
        costs["step"] = (costs["fwd"][0] + costs["bwd"][0], costs["fwd"][1] + costs["bwd"][1])
    for direction in directions:
        found = {name: by_direction[direction] for name, by_direction in calls.items()}
        timed = {name: call for name, call in found.items() if not isinstance(call, str)}
        for inputs, n in (("cold", copies), ("hot", 1)):
            if inputs == "hot" and not hot:
                continue
            timings = interleaved(
                timed, device, rounds=2 if rehearsal else 3 if quick else 11, copies=n,
                batch_ms=0.1 if rehearsal else 4, seconds=20.0,
            )  # fmt: skip
            flop, nbytes = costs[direction]
            for name, t in timings.items():
                row = Row(workload.name, direction, dtype, place, name, size, inputs)
                if name in peer_errors:
                    row.error, row.allowed = peer_errors[name]
                    row.status = "ok" if row.error <= row.allowed else "inexact"
                elif name == ours and direction in errors:
                    row.error, row.allowed = errors[direction]
                row.median_ms, row.low_ms, row.high_ms, row.wall_ms = t.median, t.low, t.high, t.wall
                row.tflops, row.GBps = flop / t.median / 1e9, nbytes / t.median / 1e6
                row.ratio = t.median / timings[ours].median
                yield row
        for name, reason in found.items():
            if isinstance(reason, str):
                yield Row(workload.name, direction, dtype, place, name, size, "", reason)


def run(
    device: torch.device, out: Path, *, only: str = "", backend: str = "triton", rehearsal: bool = False,
    hot: bool = False, deadline: float | None = None, say: Callable[[str], None] = print, quick: bool = False,
    watch: Watch[Workload] = unwatched,
) -> tuple[list[Row], list[str]]:  # fmt: skip
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
            new = list(measure(workload, device, backend, rehearsal, hot, quick))
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
                )  # fmt: skip
            ]
        rows += new
        write([asdict(row) for row in rows], [f.name for f in fields(Row)], out)
        best = [f"{r.direction} {r.peer} {r.ratio:.2f}x" for r in new if r.inputs == "cold" and r.ratio != 1.0]
        bad = sorted({f"{r.peer}: {r.status}" for r in new if r.status != "ok"})
        say(f"{workload.name} ({time.monotonic() - begun:.0f} s): {'; '.join(best + bad)}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, left


def main(arguments: list[str] | None = None, watch: Watch[Workload] = unwatched) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a workload's name")
    parser.add_argument("--out", type=Path, default=Path("kernels.csv"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=("triton", "cuda", "torch"), help="triton on a GPU, torch on a CPU")
    parser.add_argument("--hot", action="store_true", help="time on cached inputs as well")
    parser.add_argument("--quick", action="store_true", help="one workload an op, three rounds, no torch.compile")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny sizes, Triton's interpreter: no figures")
    options = parser.parse_args(arguments)
    device = torch.device("cpu" if options.cpu_rehearsal else options.device)
    backend = options.backend or ("triton" if options.cpu_rehearsal or device.type == "cuda" else "torch")
    if device.type == "cpu" and backend != "torch" and not options.cpu_rehearsal:
        parser.error(f"--backend {backend} needs a GPU; --cpu-rehearsal runs it at tiny size, without figures")
    if options.cpu_rehearsal:
        rehearse()
    rows, _ = run(
        device, options.out, only=options.only, backend=backend, rehearsal=options.cpu_rehearsal, hot=options.hot,
        quick=options.quick, watch=watch,
    )  # fmt: skip
    return int(any(row.peer.startswith("fasttx") and not row.status.startswith(("ok", "not ")) for row in rows))


def rehearse() -> None:
    """Switches Triton to its interpreter; must be called before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    from fasttx.triton_interpreter import repair

    repair()


if __name__ == "__main__":
    sys.exit(main())
