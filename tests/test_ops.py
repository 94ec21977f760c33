"""Every op, both directions, every backend, from the table: what is registered is what runs."""

from __future__ import annotations

import inspect
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import fasttx.ops
from fasttx.ops import OPS, cases
from fasttx.ops.backends import BACKENDS, BackendError
from fasttx.ops.checks import FLOATS as DTYPES
from fasttx.ops.dispatch import as_tuple
from fasttx.ops.registry import LAUNCHES, Direction, Op
from fasttx.testing import assert_as_accurate

TABLE = [pytest.param(OPS[name], id=name) for name in OPS]
HALVES = [pytest.param(OPS[n], d, id=f"{n}_{d}") for n in OPS for d in OPS[n].directions]
ROWS = [pytest.param(OPS[n], b, id=f"{n}-{b}") for n in OPS for b in ["torch", *(i.backend for i in OPS[n].impls)]]
HALVES_OF_ROWS = [pytest.param(*row.values, d, id=f"{row.id}-{d}") for row in ROWS for d in row.values[0].directions]
CASES = [
    pytest.param(OPS[n], case, id=f"{n}-{case}")
    for n in OPS
    for case, _ in cases.cases(OPS[n], torch.device("cpu"), torch.float32)
]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in rows beyond the tensor


def operator(op: Op, direction: str):
    return getattr(torch.ops.fasttx, f"{op.name}_{direction}").default


def arguments_of(op: Op, direction: str, case: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    forward = cases.case(op, case, device, dtype)
    if direction == "fwd":
        return forward
    outputs = as_tuple(operator(op, "fwd")(*forward, "torch"))
    given = {"deterministic": True} if op.name == "attention" else {}
    return tuple(op.backward_arguments(forward, outputs, torch.randn_like(outputs[0]), **given))


def skip_unless_runnable(op: Op, backend: str, arguments) -> None:
    reason = op.reasons(*op.fwd.key_tensors(arguments))[backend]
    if reason is not None:
        pytest.skip(f"{op.name} on {backend}: {reason}")


@pytest.mark.parametrize("op, direction", HALVES)
def test_functions_take_the_arguments_of_the_schema(op: Op, direction: str) -> None:
    row: Direction = getattr(op, direction)
    names = row.argument_names()[:-1]
    schema = operator(op, direction)._schema
    assert [a.name for a in schema.arguments] == [*names, "backend"]
    assert not schema.is_mutable
    assert set(row.keys) <= set(names) and "Tensor" in str(schema.arguments[names.index(row.keys[0])].type)
    for function in (row.check, row.fake, row.torch, row.reference, row.cost):
        inspect.signature(function).bind(*names)  # as many as the schema has
        named = [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert named == names[: len(named)], f"{function.__qualname__} calls its arguments {named}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, case", CASES)
def test_results_are_as_the_fake_says_and_accurate(device, op: Op, case: str, dtype: torch.dtype) -> None:
    for direction, row in op.directions.items():
        arguments = arguments_of(op, direction, case, device, dtype)
        row.check(*arguments)
        fakes = as_tuple(row.fake(*arguments))
        flop, moved = row.cost(*arguments)
        assert min(flop, moved) >= 0 and (flop > 0) == all(t.numel() > 0 for t in arguments if isinstance(t, Tensor))
        reference, same = as_tuple(row.reference(*arguments)), as_tuple(row.torch(*arguments))
        random = dict(zip(row.argument_names(), arguments)).get("rng_state") is not None
        for backend, reason in op.reasons(*row.key_tensors(arguments)).items():
            if reason is not None:
                continue
            before = [t.clone() if isinstance(t, Tensor) else t for t in arguments]
            found = as_tuple(operator(op, direction)(*arguments, backend))
            for x, fake, ref in zip(found, fakes, reference, strict=True):
                assert (x.shape, x.dtype, x.device, x.stride()) == (fake.shape, fake.dtype, fake.device, fake.stride())
                assert ref.shape == fake.shape and ref.dtype == torch.float64
            for x, y in zip(arguments, before):
                assert not isinstance(x, Tensor) or torch.equal(x, y), "an argument was overwritten"
            if not random:  # there the torch backend draws its own mask; tests/ops holds each to its own
                for x, ref, own in zip(found, reference, same):
                    assert_as_accurate(x, own, ref, f"{op.name}_{direction} on {backend}", by=row.compared_by)


@pytest.mark.parametrize("op, backend, direction", HALVES_OF_ROWS)
def test_opcheck(device, op: Op, backend: str, direction: str) -> None:
    for number, (case, forward) in enumerate(cases.cases(op, device, torch.float32)):
        skip_unless_runnable(op, backend, forward)
        arguments = arguments_of(op, direction, case, device, torch.float32)
        parts = ["test_schema", "test_faketensor", "test_autograd_registration"]
        if number in (1, 2) and backend == "torch":  # seconds each, and the same compiled wrapper around every backend
            parts.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(operator(op, direction), (*arguments, backend), test_utils=parts)


@pytest.mark.parametrize("op, backend", ROWS)
def test_a_forced_call_launches_that_implementation(device, op: Op, backend: str) -> None:
    case, forward = next(cases.cases(op, device, torch.float32))
    skip_unless_runnable(op, backend, forward)
    for direction in op.directions:
        arguments = arguments_of(op, direction, case, device, torch.float32)
        LAUNCHES.clear()
        operator(op, direction)(*arguments, backend)
        assert LAUNCHES == {(f"{op.name}_{direction}", backend): 1}


@pytest.mark.parametrize("op", TABLE)
def test_a_backend_that_cannot_run_refuses_with_the_reason(device, op: Op) -> None:
    _, forward = next(cases.cases(op, device, torch.float32))
    reasons = op.reasons(*op.fwd.key_tensors(forward))
    assert set(reasons) == set(BACKENDS) and reasons["torch"] is None
    for backend, reason in reasons.items():
        if reason is not None:
            with pytest.raises(BackendError, match=f"fasttx::{op.name}.*{backend}"):
                operator(op, "fwd")(*forward, backend)


@pytest.mark.parametrize("op", TABLE)
def test_cases_are_what_their_readers_expect(op: Op) -> None:
    """doctor runs "check", the first, and bench.host "smallest"; on a device of no memory they have their shapes."""
    cpu, meta = torch.device("cpu"), torch.device("meta")
    found = dict(cases.cases(op, cpu, torch.bfloat16))
    assert next(iter(found)) == "check"
    known = dict(zip(op.fwd.argument_names(), found["check"]))
    assert known.get("rng_state") is None, "the masks of two backends differ"
    assert max(t.numel() for t in found["smallest"] if isinstance(t, Tensor)) <= 64
    again, shapes = cases.case(op, "check", cpu, torch.bfloat16), cases.case(op, "check", meta, torch.bfloat16)
    for x, y, shape in zip(found["check"], again, shapes, strict=True):
        assert not isinstance(x, Tensor) or (torch.equal(x, y) and x.shape == shape.shape and x.dtype == shape.dtype)
    with pytest.raises(ValueError, match=f"case of {op.name}: got 'largest'; allowed is one of .*'smallest'"):
        cases.case(op, "largest", cpu, torch.float32)


@pytest.mark.parametrize("op", [p for p in TABLE if p.values[0].bwd is not None])
def test_backward_asks_for_every_gradient_unless_told(op: Op) -> None:
    forward = cases.case(op, "check", torch.device("cpu"), torch.float32)
    outputs = as_tuple(op.fwd.torch(*forward))
    names = op.bwd.argument_names()[:-1]
    needs = [name for name in names if name.startswith("needs_")]
    asked = dict(zip(names, op.backward_arguments(forward, outputs, torch.ones_like(outputs[0])), strict=True))
    assert all(asked[name] for name in needs)  # the case has every input
    for name in needs:
        less = dict(zip(names, op.backward_arguments(forward, outputs, outputs[0], **{name: False})))
        assert [less[other] for other in needs] == [other != name for other in needs]
    with pytest.raises(ValueError, match=r"given: got \['needs_dy'\]; allowed"):
        op.backward_arguments(forward, outputs, outputs[0], needs_dy=True)


def test_an_op_without_a_gradient_has_no_arguments_of_one() -> None:
    with pytest.raises(ValueError, match="op: got 'int8_linear'; allowed is one with a backward"):
        OPS["int8_linear"].backward_arguments([], [], torch.zeros(1))


def test_the_order_of_ops_is_not_that_of_imports() -> None:
    assert list(OPS) == sorted(OPS)


def test_importing_the_package_imports_no_cases() -> None:
    code = "import sys, fasttx.ops; print([m for m in sys.modules if m.endswith('cases')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(OPS))
def test_folder_of_an_op(name: str) -> None:
    """One folder an op: what it is, what runs anywhere, what it is held to, small calls, and the way to CUDA C++."""
    folder = pathlib.Path(fasttx.ops.__file__).parent / name
    found = {path.stem for path in folder.glob("*.py")}
    wanted = {"__init__", "op", "composed", "reference", "cases"}
    wanted |= {"cuda"} if any(impl.backend == "cuda" for impl in OPS[name].impls) else set()
    assert wanted <= found and ("cuda" in found) == ("cuda" in wanted)
