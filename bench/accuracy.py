"""The accuracy of one op on one workload, checked before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fasttx.ops.registry import Op
from fasttx.testing import bound, error, share_of_bound

from .op_case import Workload
from .peers import Peer


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def backward_arguments(name: str, forward: list[Any], outputs: tuple[Tensor, ...], dout: Tensor) -> list[Any]:
    """The arguments of ``<op>_bwd`` without ``backend``.

    Raises:
        ValueError: an op that has no rule here yet.
    """
    if name == "attention":
        return [dout, *forward[:3], *outputs, *forward[3:], False]
    if name == "softmax":
        return [dout, outputs[0] if forward[2] is None else forward[0], *forward[1:]]
    if name == "cross_entropy":
        return [dout, *forward[:3], outputs[1], outputs[2], *forward[3:]]
    if name == "linear_cross_entropy":
        return [dout, *forward[:5], *outputs[1:], True, True, forward[2] is not None, *forward[5:]]
    if name == "dropout_add_layer_norm":
        tensors, mask = forward[:4], forward[4:7]
        needs = [t is not None for t in tensors]
        if mask[1] is None:  # one gradient for x and residual, written once, as autograd asks for it
            needs[1] = False
        return [dout, *tensors, *outputs[1:], *mask, *needs]
    if name == "bias_gelu":
        return [dout, *forward, True, forward[1] is not None]
    if name == "embedding_layer_norm":
        few = forward[5] is not None and forward[5].shape[0] <= 2
        return [dout, *forward[:8], *outputs[1:], *forward[8:11], True, few, *(t is not None for t in forward[6:8])]
    if name == "kl_div":
        return [dout, *forward[1:], forward[0].dtype]
    if name == "binary_cross_entropy":
        return [dout, *forward]
    raise ValueError(f"op: no rule for the backward arguments of {name!r}; add it to bench/kernels.py")


def call_op(op: Op, direction: str, args: list[Any], backend: str) -> tuple[Tensor, ...]:
    return as_tuple(getattr(torch.ops.fasttx, f"{op.name}_{direction}").default(*args, backend))


def random_dout(outputs: tuple[Tensor, ...], seed: int) -> Tensor:
    generator = torch.Generator(device=outputs[0].device).manual_seed(seed)
    out = outputs[0]
    return (
        torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
        if out.dim()
        else torch.ones_like(out)
    )


def check(workload: Workload, op: Op, device: torch.device, size: str, backend: str) -> dict[str, tuple[float, float]]:
    """direction -> (error, allowed) of the output nearest to its bound.

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
    for direction, half in op.directions.items():
        if direction == "fwd":
            args, undropped, results = case.args, plain, outputs
        else:
            dout = random_dout(outputs, 1)
            args = backward_arguments(op.name, case.args, outputs, dout)
            undropped = args
            if workload.dropout:
                undropped = backward_arguments(op.name, plain, as_tuple(op.fwd.torch(*plain)), dout)
                for i, name in enumerate(half.argument_names()[:-1]):
                    if name.startswith("needs_"):  # the same gradients, one of which may repeat another without dropout
                        undropped[i] = args[i]
            results = call_op(op, "bwd", args, backend)
        reference = as_tuple(half.reference(*args))
        if workload.dropout:
            allowed = [
                bound(same, ref, same.dtype) * scale
                for same, ref in zip(
                    as_tuple(half.torch(*undropped)), as_tuple(half.reference(*undropped)), strict=True
                )
            ]
        else:
            allowed = [
                bound(same, ref, same.dtype) for same, ref in zip(as_tuple(half.torch(*args)), reference, strict=True)
            ]
        pairs = [(error(out, ref), limit) for out, ref, limit in zip(results, reference, allowed, strict=True)]
        found[direction] = max(pairs, key=lambda pair: share_of_bound(*pair))
    return found


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
    pairs = [
        (error(out, ref), bound(plain, ref, plain.dtype))
        for out, ref, plain in zip(found, reference, same, strict=True)
    ]
    return max(pairs, key=lambda pair: share_of_bound(*pair))
