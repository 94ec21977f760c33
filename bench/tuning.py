"""What `tune` measures: of one op or form, in one dtype and regime, which ways are right, and how long each takes.

Accuracy comes first, on a call with few rows of the same kind, by the rule of fasttx.testing; what is not right is not
timed. Then all ways are timed in interleaved rounds, forward with backward where there is one. An answer is plain data,
as it is one line between two processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fasttx.ops import OPS, tuned, verdicts
from fasttx.ops.cases import Draw
from fasttx.ops.cost import bytes_of
from fasttx.ops.forms import FORMS, Form, questions
from fasttx.ops.regimes import regimes_of
from fasttx.ops.registry import Op
from fasttx.testing import compare

from . import accuracy
from .form_arms import Arm, arm_of, results
from .kernel_calls import our_calls
from .op_case import OpCase, Workload
from .timer import Timing, copies_for, interleaved

ROUNDS, SECONDS = {True: 7, False: 15}, {True: 0.4, False: 1.5}
"""Rounds of one example, and when to stop after the third; by whether it is --quick."""
COPIES = 8
"""Slots to rotate over, at most: inputs take time to make, too."""
TOO_FAR = "{} is off by {:.1e}, allowed is {:.1e}"

Tell = Callable[[str], None]


class OnDevice(Draw):
    """Draws where the tensors are to be: large calls would spend their time on the way there."""

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=self.generator)))

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator(), device=self.device)
        return drawn.to(dtype or self.dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=self._generator(), device=self.device).to(dtype)


def measure(item: str, device: torch.device, quick: bool, without: Mapping[str, str], tell: Tell) -> dict[str, Any]:
    """Measures one item.

    Args:
        item: "name/dtype/regime", of an op or a form.
        quick: fewer rounds.
        without: what is not to run, and why.
        tell: is told what runs next, in case that it ends this process.

    Returns:
        "default" and "own", as :class:`fasttx.ops.tuned.Measured` has them; "times", from the example and what ran to
        (median, low, high) in ms; "left_out", from what is not right to the reason; "wrong", of these the backends
        whose numbers are wrong.
    """
    name, short, regime = item.split("/", 2)
    dtype, timing = getattr(torch, short), {"rounds": ROUNDS[quick], "seconds": SECONDS[quick]}
    if name in FORMS:
        return _measure_form(FORMS[name], dtype, regime, device, dict(without), tell, timing)
    return _measure_op(OPS[name], dtype, regime, device, dict(without), tell, timing)


class Broken(BaseException):
    """The device computes nothing any more, which is the fault of what ran last: this process has to end."""


def _survived(problem: Exception, device: torch.device) -> str:
    """What was raised, in one line.

    Raises:
        Broken: the device has not survived it.
    """
    try:
        float(torch.ones(1, device=device) + 1)
    except Exception as broken:
        raise Broken from broken
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"


def _of(found: Mapping[str, Timing]) -> dict[str, tuple[float, float, float]]:
    return {name: (t.median, t.low, t.high) for name, t in found.items()}


# ---------------------------------------------------------------------------------------------------------------- ops


def _workload(op: Op, dtype: torch.dtype, regime: str, example: str) -> Workload:
    """An example of a regime, as the benchmarks take it: "check" has few rows."""
    regimes = regimes_of(op.name)

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        draw = OnDevice(device, dtype, torch.Generator().manual_seed(seed))
        return OpCase(list(dict(regimes.calls(draw, regime, size == "check"))[example]), {})

    return Workload(f"{op.name}, {regime}, {example}", op.name, build, example == "dropout")


def _candidates(op: Op, case: OpCase, without: dict[str, str]) -> list[str]:
    """The backends that "auto" may take for a call, in its order, and PyTorch's own; the others go to `without`."""
    tensors, found = op.fwd.key_tensors(case.args), []
    for impl in op.impls:
        if tensors[0].device.type not in impl.auto_on or impl.backend in without:
            continue
        why = impl.why_not(*tensors) or verdicts.reason(op.name, impl.backend, *tensors)
        if why is None:
            found.append(impl.backend)
        else:
            without[impl.backend] = why
    return [*found, *(["torch"] if "torch" not in without else [])]


def _measure_op(
    op: Op, dtype: torch.dtype, regime: str, device: torch.device, left_out: dict[str, str], tell: Tell, timing: Any
) -> dict[str, Any]:
    # int8 alone decides on an op whose results have a dtype of their own: the one that is used most
    dtype = torch.bfloat16 if dtype == torch.int8 else dtype
    names = [name for name, _ in regimes_of(op.name).calls(OnDevice(torch.device("cpu"), dtype), regime, True)]
    wrong, times, default = [], {}, ""
    for name in names:
        workload = _workload(op, dtype, regime, name)
        small = workload.build(device, "check", 0)
        backends = _candidates(op, small, left_out)
        default = default or backends[0]
        for backend in list(backends):
            tell(backend)
            try:
                found = accuracy.check(workload, op, device, "check", backend)
                off = [TOO_FAR.format(d, e, allowed) for d, (e, allowed) in found.items() if not e <= allowed]
            except Exception as problem:  # whatever a kernel or a compiler raises is this backend's
                left_out[backend] = _survived(problem, device)
            else:
                if off:
                    left_out[backend] = off[0]
                    wrong.append(backend)
        first = workload.build(device, "full", 0)
        copies = copies_for(device, int(bytes_of(*first.args)), COPIES)
        cases, calls = [first, *(workload.build(device, "full", i) for i in range(1, copies))], {}
        for backend in [each for each in backends if each not in left_out]:
            tell(backend)
            try:
                made = our_calls(op, cases, backend)
                calls[backend] = made["fwd" if op.bwd is None else "step"]
                calls[backend](0)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            except Exception as problem:
                left_out[backend] = _survived(problem, device)
                calls.pop(backend, None)
        tell("")
        times[name] = _of(interleaved(calls, device, copies=copies, **timing)) if calls else {}
    own = "torch"
    return {"default": default, "own": own, "times": times, "left_out": left_out, "wrong": wrong}


# -------------------------------------------------------------------------------------------------------------- forms


def _measure_form(
    form: Form, dtype: torch.dtype, regime: str, device: torch.device, left_out: dict[str, str], tell: Tell, timing: Any
) -> dict[str, Any]:
    arm, small = (arm_of(form, dtype, regime, device, few) for few in (False, True))
    with questions() as asked, tuned.taking(form.name, device, dtype, form.options[-1], form.all()):
        arm.run()
    here = [question for question in asked if question.form == form.name and question.regime == regime]
    if not here:
        raise RuntimeError(f"{form.name}: a call of '{regime}' asks {asked}")
    steps = {}
    for option in [each for each in form.options if each not in left_out]:
        tell(option)
        try:
            off = _off(form, small, option, dtype, device)
        except Exception as problem:
            off = _survived(problem, device)
        if off:
            left_out[option] = off
        else:
            steps[option] = _step(form, arm, option, dtype, device)
    tell("")
    times = {"plain": _of(interleaved(steps, device, **timing)) if steps else {}}
    return {"default": here[-1].default, "own": form.own, "times": times, "left_out": left_out, "wrong": []}


def _off(form: Form, arm: Arm, option: str, dtype: torch.dtype, device: torch.device) -> str:
    """In words, by how much an option is off; "" where it is right. The bound is that of PyTorch's own way."""
    found = {}
    for name in dict.fromkeys((form.own, option)):
        with tuned.taking(form.name, device, dtype, name, form.all()):
            found[name] = arm.judged()
    for out, same, ref in zip(found[option], found[form.own], arm.reference(), strict=True):
        compared = compare(out, same, ref, dtype=dtype)
        if not compared.error <= compared.allowed:
            return TOO_FAR.format("it", compared.error, compared.allowed)
    return ""


def _step(form: Form, arm: Arm, option: str, dtype: torch.dtype, device: torch.device) -> Callable[[int], object]:
    def step(_: int) -> object:
        with tuned.taking(form.name, device, dtype, option, form.all()):
            return results(arm.run, arm.leaves)

    return step
