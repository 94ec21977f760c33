"""What bench.kernels times: a call for each op's own backends and its peers, forward, backward and both as one step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import cast

import torch
from torch import Tensor

from fasttx.ops.dispatch import as_tuple
from fasttx.ops.registry import Op

from .accuracy import check_peer, random_dout
from .op_case import OpCase, Workload
from .peers import Peer
from .timer import Call


def reason_of(problem: Exception) -> str:
    """What the column `status` says of a peer that cannot run."""
    return f"unavailable: {(str(problem).strip().splitlines() or [type(problem).__name__])[0][:100]}"


def _calls_of(peers: list[Peer], compile_backend: str, directions: Collection[str]) -> dict[str, Call | str]:
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
        return calls | {"bwd": reason_of(problem), "step": reason_of(problem)}
    return calls | {"bwd": backward}


def our_calls(op: Op, cases: list[OpCase], backend: str) -> dict[str, Call | str]:
    """Direction -> call of one backend of the op."""
    fwd = getattr(torch.ops.fasttx, f"{op.name}_fwd").default
    calls: dict[str, Call | str] = {"fwd": lambda slot: fwd(*cases[slot].args, backend)}
    if op.bwd is None:
        fwd(*cases[0].args, backend)
        return calls
    bwd = getattr(torch.ops.fasttx, f"{op.name}_bwd").default
    outputs = [as_tuple(fwd(*case.args, backend)) for case in cases]
    douts = [random_dout(outs, 1) for outs in outputs]
    back = [
        op.backward_arguments(case.args, outs, dout, **case.given)
        for case, outs, dout in zip(cases, outputs, douts, strict=True)
    ]

    def step(slot: int) -> object:
        case = cases[slot]
        outs = as_tuple(fwd(*case.args, backend))
        return bwd(*op.backward_arguments(case.args, outs, douts[slot], **case.given), backend)

    return calls | {"bwd": lambda slot: bwd(*back[slot], backend), "step": step}


def peer_calls(
    workload: Workload,
    cases: list[OpCase],
    device: torch.device,
    rehearsal: bool,
    quick: bool,
    directions: Collection[str],
) -> tuple[dict[str, dict[str, Call | str]], dict[str, tuple[float, float]]]:
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
                calls[name] = _calls_of(copies, "aot_eager" if rehearsal else "inductor", directions)
            except Exception as problem:  # an SDPA backend that does not take this call, a package that fails here
                calls[name] = dict.fromkeys(directions, reason_of(problem))
    return calls, errors


def copy_call(nbytes: float, device: torch.device, copies: int) -> Call:
    """A device copy that moves `nbytes` bytes: half of them are read, half of them written."""
    n = max(1, round(nbytes / 2))
    pairs = [
        (
            torch.randint(0, 256, (n,), dtype=torch.uint8, device=device),
            torch.empty(n, dtype=torch.uint8, device=device),
        )
        for _ in range(copies)
    ]
    return lambda slot: pairs[slot][1].copy_(pairs[slot][0])
