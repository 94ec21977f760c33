"""The accuracy of one op on one workload, checked before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttx.ops.dispatch import as_tuple
from fasttx.ops.registry import Op
from fasttx.testing import compare, nearest, poisoned_outputs, row_bounds, row_errors

from .op_case import Workload
from .peers import Peer


def call_op(op: Op, direction: str, args: Sequence[Any], backend: str) -> tuple[Tensor, ...]:
    """The results of an operator; what it does not write is NaN."""
    with poisoned_outputs():
        return as_tuple(getattr(torch.ops.fasttx, f"{op.name}_{direction}").default(*args, backend))


def random_dout(outputs: tuple[Tensor, ...], seed: int) -> Tensor:
    generator = torch.Generator(device=outputs[0].device).manual_seed(seed)
    out = outputs[0]
    return (
        torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
        if out.dim()
        else torch.ones_like(out)
    )


class Judged(NamedTuple):
    """One direction of an op on one workload, beside float64.

    Attributes:
        error, allowed: of the row nearest to its bound.
        rms: the largest ||out - ref|| / ||ref|| of its results.
        same: whether a second call gave the same bits; None where none was made.
    """

    error: float
    allowed: float
    rms: float
    same: bool | None

    @property
    def good(self) -> bool:
        return self.error <= self.allowed


def _rms(out: Tensor, ref: Tensor) -> float:
    size = float(ref.double().norm())
    apart = float((out.to(ref.device).double() - ref.double()).norm())
    return apart / size if size > 0.0 else (0.0 if apart == 0.0 else float("inf"))


def judge(
    workload: Workload, op: Op, device: torch.device, size: str, backend: str, twice: bool = False
) -> dict[str, Judged]:
    """Each direction of an op beside float64; what an operator does not write is NaN.

    With dropout the reference draws the op's own mask, PyTorch's composition does not: the bound is then that of the
    same call without dropout, times the scale that dropout puts on what it keeps.
    """
    case = workload.build(device, size, 0)
    outputs = call_op(op, "fwd", case.args, backend)
    plain, scale = list(case.args), 1.0
    if workload.dropout:
        names = op.fwd.argument_names()
        p = plain[names.index("dropout_p")]
        plain[names.index("rng_state")], plain[names.index("dropout_p")] = None, 0.0
        scale = 1.0 / (1.0 - p)
    found = {}
    for name, direction in op.directions.items():
        args, undropped, results = case.args, plain, outputs
        if name == "bwd":
            dout = random_dout(outputs, 1)
            args = undropped = op.backward_arguments(case.args, outputs, dout, **case.given)
            if workload.dropout:
                undropped = op.backward_arguments(plain, as_tuple(op.fwd.torch(*plain)), dout, **case.given)
            results = call_op(op, "bwd", args, backend)
        same: bool | None = None
        if twice:
            again = call_op(op, name, args, backend)
            same = all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
        reference, exact = as_tuple(direction.reference(*args)), as_tuple(direction.reference(*undropped))
        composed, by = as_tuple(direction.torch(*undropped)), direction.compared_by
        compared = [
            nearest(
                row_errors(out, ref, by),
                row_errors(same_dtype, same_ref, by),
                row_bounds(same_dtype, same_ref, same_dtype.dtype, by=by) * scale,
            )
            for out, ref, same_dtype, same_ref in zip(results, reference, composed, exact, strict=True)
        ]
        worst = max(compared, key=lambda row: row.share)
        rms = max(_rms(out, ref) for out, ref in zip(results, reference, strict=True))
        found[name] = Judged(worst.error, worst.allowed, rms, same)
    return found


def check(workload: Workload, op: Op, device: torch.device, size: str, backend: str) -> dict[str, tuple[float, float]]:
    """direction -> (error, allowed) of the row nearest to its bound, as :func:`judge` finds them."""
    return {name: found[:2] for name, found in judge(workload, op, device, size, backend).items()}


def _with_gradients(fn: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradient of every input for one random dout, rounded to `dtype`."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = fn(*leaves)
    dout = random_dout((out.to(dtype),), 1).to(out.dtype)
    return [out.detach().clone(), *torch.autograd.grad(out, leaves, dout)]


def check_peer(peer: Peer) -> tuple[float, float] | None:
    """(error, allowed) of the output or gradient of a peer that is nearest to its bound: that it computes the same, and
    how well. A peer that is compiled when it is timed is checked as it is written. None if it cannot be compared.
    """
    if peer.exact is None:
        return None
    dtype = peer.inputs[0].dtype
    reference = _with_gradients(peer.exact, [x.double() for x in peer.inputs], dtype)
    same = _with_gradients(peer.exact, peer.inputs, dtype)
    found = same if peer.fn is peer.exact else _with_gradients(peer.fn, peer.inputs, dtype)
    worst = max(
        (compare(out, plain, ref, dtype=plain.dtype) for out, ref, plain in zip(found, reference, same, strict=True)),
        key=lambda each: each.share,
    )
    return worst.error, worst.allowed
