"""The calls by which an op is judged, what is right in each, and how far a backend is off.

They are the small calls of the op (:mod:`fasttx.ops.cases`): several blocks and tiles, packed rows, masks, windows,
lengths, strides, dropout, and dtypes that are mixed as under autocast. Each holds forward and backward to float64 by
the rule of :mod:`fasttx.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.cases import checked
from ..ops.dispatch import as_tuple
from ..ops.registry import Direction, Op
from ..testing import compare, poisoned_outputs


class Call(NamedTuple):
    """A call of one direction of an op, and what is right.

    Attributes:
        case: the name of the case.
        arguments: of the operator, without ``backend``.
        composed: what PyTorch's own operators make of it in the same dtype.
        reference: the same in float64.
        drops: whether it has dropout, of which PyTorch's own operators draw another mask.
    """

    case: str
    arguments: Sequence[Any]
    composed: Sequence[Tensor]
    reference: Sequence[Tensor]
    drops: bool


class Judged(NamedTuple):
    """The result that is nearest to its bound.

    Attributes:
        share: how much of the allowed error was made: more than 1 is wrong.
        unit: what error and bound count: "" a number of the output, "ulp" units of the last place of an int8 output.
    """

    case: str
    share: float
    error: float
    allowed: float
    unit: str


def calls(op: Op, device: torch.device, dtype: torch.dtype, with_large: bool = True) -> dict[str, list[Call]]:
    """The calls of an op in a dtype, by direction; the numbers are the same on every device."""
    found: dict[str, list[Call]] = {name: [] for name in op.directions}
    for case, forward, large in checked(op, device, dtype):
        for name, call in _directions(op, case, forward, large) if with_large or not large else ():
            found[name].append(call)
    return found


def _directions(op: Op, case: str, forward: Sequence[Any], large: bool) -> Iterator[tuple[str, Call]]:
    """Forward, and backward: that of a large case also as it is asked to be deterministic, where that is an option."""
    plain = _without_dropout(op, forward)
    outputs = as_tuple(op.fwd.torch(*plain))
    call = _call(op.fwd, case, forward, plain)
    yield "fwd", call
    if op.bwd is None:
        return
    kept = outputs
    if plain is not forward:
        kept = as_tuple(op.fwd.fake(*forward))
        for out, exact in zip(kept, call.reference, strict=True):
            out.copy_(exact)
    dout = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0])
    twice = large and "deterministic" in op.bwd.argument_names()
    for given in ({}, {"deterministic": True}) if twice else ({},):
        back = back_plain = op.backward_arguments(forward, kept, dout, **given)
        if plain is not forward:
            back_plain = op.backward_arguments(plain, outputs, dout, **given)
        yield "bwd", _call(op.bwd, " ".join((case, *given)), back, back_plain)


def _without_dropout(op: Op, forward: Sequence[Any]) -> Sequence[Any]:
    """The same call without dropout; `forward` itself if it has none."""
    names = op.fwd.argument_names()[:-1]
    if dict(zip(names, forward)).get("rng_state") is None:
        return forward
    none = {"rng_state": None, "dropout_p": 0.0}
    return tuple(none.get(name, given) for name, given in zip(names, forward))


def _call(direction: Direction, case: str, arguments: Sequence[Any], plain: Sequence[Any]) -> Call:
    """With dropout PyTorch's errors are those that it makes without."""
    reference = as_tuple(direction.reference(*arguments))
    composed = as_tuple(direction.torch(*plain))
    if plain is not arguments:
        scale = 1.0 / (1.0 - dict(zip(direction.argument_names(), arguments))["dropout_p"])
        exact = as_tuple(direction.reference(*plain))
        composed = tuple(
            right + scale * torch.where(own.isfinite(), same.double() - own, 0.0)
            for right, same, own in zip(reference, composed, exact, strict=True)
        )
    return Call(case, arguments, composed, reference, plain is not arguments)


def _nothing() -> None:
    return None


def judge(
    op: Op,
    name: str,
    backend: str,
    wanted: Sequence[Call],
    before: Callable[[], None] = _nothing,
    launched: Callable[[], None] = _nothing,
) -> Judged:
    """The worst result of the calls of a direction on a backend; the first that is wrong ends them.

    Args:
        before: called before each operator runs.
        launched: called when it has returned; its kernels may run still.
    """
    operator, direction = getattr(torch.ops.fasttx, f"{op.name}_{name}").default, op.directions[name]
    worst = Judged("", -1.0, 0.0, 0.0, "")
    for case, arguments, composed, reference, drops in wanted:
        if drops and backend == "torch":
            continue
        before()
        with poisoned_outputs():
            outputs = as_tuple(operator(*arguments, backend))
        launched()
        if outputs[0].is_cuda:
            torch.cuda.synchronize(outputs[0].device)
        for out, same, ref in zip(outputs, composed, reference, strict=True):
            compared = compare(out, same, ref, by=direction.compared_by)
            if not compared.share <= worst.share:
                unit = "" if out.dtype.is_floating_point else "ulp"
                worst = Judged(case, compared.share, compared.error, compared.allowed, unit)
        if worst.share > 1.0:
            break
    return worst
