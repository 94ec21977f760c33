"""Every op, both directions, every backend, from the table: what is registered is what runs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import op_cases
import pytest
import torch
from torch import Tensor

import fasttx.ops
from fasttx.ops.backends import BACKENDS, BackendError
from fasttx.ops.registry import LAUNCHES, OPS, Direction, Op
from fasttx.testing import assert_as_accurate

for _module in pkgutil.iter_modules(fasttx.ops.__path__):
    importlib.import_module(f"fasttx.ops.{_module.name}")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TABLE = [pytest.param(OPS[name], id=name) for name in sorted(OPS)]
HALVES = [pytest.param(OPS[n], d, id=f"{n}_{d}") for n in sorted(OPS) for d in OPS[n].directions]
ROWS = [
    pytest.param(OPS[n], b, id=f"{n}-{b}") for n in sorted(OPS) for b in ["torch", *(i.backend for i in OPS[n].impls)]
]
HALVES_OF_ROWS = [pytest.param(*row.values, d, id=f"{row.id}-{d}") for row in ROWS for d in row.values[0].directions]
CASES = [
    pytest.param(OPS[n], case, id=f"{n}-{case}")
    for n in sorted(OPS)
    for case, _ in op_cases.FORWARD[n](torch.device("cpu"), torch.float32)
]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def operator(op: Op, direction: str):
    return getattr(torch.ops.fasttx, f"{op.name}_{direction}").default


def arguments_of(op: Op, direction: str, case: str, device: torch.device, dtype: torch.dtype):
    arguments = dict(op_cases.FORWARD[op.name](device, dtype))[case]
    if direction == "fwd":
        return arguments
    return op_cases.backward(op, arguments, tupled(operator(op, "fwd")(*arguments, "torch")))


def tupled(result) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def skip_unless_runnable(op: Op, backend: str, arguments) -> None:
    where = [op.fwd.argument_names().index(k) for k in op.fwd.keys]
    reason = op.reasons(*(arguments[i] for i in where))[backend]
    if reason is not None:
        pytest.skip(f"{op.name} on {backend}: {reason}")


@pytest.mark.parametrize("op, direction", HALVES)
def test_functions_take_the_arguments_of_the_schema(op: Op, direction: str) -> None:
    half: Direction = getattr(op, direction)
    names = half.argument_names()[:-1]
    schema = operator(op, direction)._schema
    assert [a.name for a in schema.arguments] == [*names, "backend"]
    assert not schema.is_mutable
    assert set(half.keys) <= set(names) and "Tensor" in str(schema.arguments[names.index(half.keys[0])].type)
    for function in (half.check, half.fake, half.torch, half.reference, half.cost):
        inspect.signature(function).bind(*names)  # as many as the schema has
        named = [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert named == names[: len(named)], f"{function.__qualname__} calls its arguments {named}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, case", CASES)
def test_results_are_as_the_fake_says_and_accurate(device, op: Op, case: str, dtype: torch.dtype) -> None:
    for direction, half in op.directions.items():
        arguments = arguments_of(op, direction, case, device, dtype)
        half.check(*arguments)
        fakes = tupled(half.fake(*arguments))
        flop, moved = half.cost(*arguments)
        assert min(flop, moved) >= 0 and (flop > 0) == all(t.numel() > 0 for t in arguments if isinstance(t, Tensor))
        reference, same = tupled(half.reference(*arguments)), tupled(half.torch(*arguments))
        random = dict(zip(half.argument_names(), arguments)).get("rng_state") is not None
        for backend, reason in op.reasons(*(arguments[half.argument_names().index(k)] for k in half.keys)).items():
            if reason is not None:
                continue
            before = [t.clone() if isinstance(t, Tensor) else t for t in arguments]
            found = tupled(operator(op, direction)(*arguments, backend))
            for x, fake, ref in zip(found, fakes, reference, strict=True):
                assert (x.shape, x.dtype, x.device, x.stride()) == (fake.shape, fake.dtype, fake.device, fake.stride())
                assert ref.shape == fake.shape and ref.dtype == torch.float64
            for x, y in zip(arguments, before):
                assert not isinstance(x, Tensor) or torch.equal(x, y), "an argument was overwritten"
            if not random:  # there the torch backend draws its own mask; tests/ops holds each to its own
                for x, ref, own in zip(found, reference, same):
                    assert_as_accurate(x, own, ref, f"{op.name}_{direction} on {backend}")


@pytest.mark.parametrize("op, backend, direction", HALVES_OF_ROWS)
def test_opcheck(device, op: Op, backend: str, direction: str) -> None:
    for number, (case, forward) in enumerate(op_cases.FORWARD[op.name](device, torch.float32)):
        skip_unless_runnable(op, backend, forward)
        arguments = arguments_of(op, direction, case, device, torch.float32)
        parts = ["test_schema", "test_faketensor", "test_autograd_registration"]
        if number < 2 and backend == "torch":  # seconds each, and the same compiled wrapper around every backend
            parts.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(operator(op, direction), (*arguments, backend), test_utils=parts)


@pytest.mark.parametrize("op, backend", ROWS)
def test_a_forced_call_launches_that_implementation(device, op: Op, backend: str) -> None:
    case, forward = next(op_cases.FORWARD[op.name](device, torch.float32))
    skip_unless_runnable(op, backend, forward)
    for direction in op.directions:
        arguments = arguments_of(op, direction, case, device, torch.float32)
        LAUNCHES.clear()
        operator(op, direction)(*arguments, backend)
        assert LAUNCHES == {(f"{op.name}_{direction}", backend): 1}


@pytest.mark.parametrize("op", TABLE)
def test_a_backend_that_cannot_run_refuses_with_the_reason(device, op: Op) -> None:
    _, forward = next(op_cases.FORWARD[op.name](device, torch.float32))
    where = [op.fwd.argument_names().index(k) for k in op.fwd.keys]
    reasons = op.reasons(*(forward[i] for i in where))
    assert set(reasons) == set(BACKENDS) and reasons["torch"] is None
    for backend, reason in reasons.items():
        if reason is not None:
            with pytest.raises(BackendError, match=f"fasttx::{op.name}.*{backend}"):
                operator(op, "fwd")(*forward, backend)


def test_every_op_has_cases() -> None:
    assert set(OPS) == set(op_cases.FORWARD)
