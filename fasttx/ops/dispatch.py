"""What an operator of the table does when it is called: check, choose, allocate, launch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import profiler

from . import decisions, verdicts

if TYPE_CHECKING:
    from .registry import Direction, Op

LAUNCHES: Counter[tuple[str, str]] = Counter()
"""How often each (operator, backend) ran in this process, e.g. ``LAUNCHES["softmax_fwd", "triton"]``."""

around: list[Callable[[], contextlib.AbstractContextManager[Any]]] = []
"""Makers of contexts in which operators run; empty unless :func:`fasttx.testing.poisoned_outputs` asks for one."""

_knew: dict[str, int] = {}
"""Which verdicts the last forward of each op knew: :data:`fasttx.ops.verdicts.generation` then."""

_below_autograd = torch._C._AutoDispatchBelowAutograd
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._is_torch_function_mode_enabled
_tracing = torch._C._get_tracing_state
_PLAIN = (Tensor, torch.nn.Parameter)


def resolve(path: str) -> Callable[..., None]:
    """The launcher that an :class:`Impl` names by ``"module:function"``."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """What an operator returned, one tensor or several, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def alone(composition: Callable[..., Any]) -> Callable[..., Any]:
    """A composition of PyTorch's operators that records no graph of its own and is not autocast.

    Gradients are the business of fasttx.functional, and so are casts: a float32 sum would be one in float16.
    """

    @functools.wraps(composition)
    def run(*args: Any) -> Any:
        device = args[0].device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return run(*args)
        if not torch.is_grad_enabled():
            return composition(*args)
        with _below_autograd():
            return composition(*args)

    return run


def shortened(
    operator: Callable[..., Any], run: Callable[..., Any], exported: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """An operator as fasttx.functional calls it: without PyTorch's dispatcher, which takes longer than a launch.

    The operator itself is called where a mode, a tracer, a compiler or a profiler is to see it. The caller has made
    sure of plain tensors outside of transforms, and that autograd records nothing.

    Args:
        operator: takes a tensor first.
        run: what it runs on every device.
        exported: of the arguments, while a program is exported: what the program holds in its place, or None.
    """

    def call(*arguments: Any) -> Any:
        if torch.compiler._is_exporting_flag and exported is not None:
            composition = exported(arguments)
            if composition is not None:
                return composition(*arguments[:-1])
        first = arguments[0]
        if (
            torch.compiler.is_dynamo_compiling()
            or _modes()
            or _function_modes()
            or profiler._is_profiler_enabled
            or _tracing() is not None
            or type(first) not in _PLAIN
            or first.is_meta
        ):
            return operator(*arguments)
        return run(*arguments)

    return call


def without_backend(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as an operator calls it: with ``backend`` as one more argument."""

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        return fn(*args[:-1])

    return call


def _within(range_of: str) -> contextlib.ExitStack:
    """The contexts of :data:`around` and a profiler's range, entered."""
    stack = contextlib.ExitStack()
    for make in around:
        stack.enter_context(make())
    stack.enter_context(torch.profiler.record_function(range_of))
    return stack


def body(op: Op, name: str, direction: Direction) -> Callable[..., Any]:
    """The implementation of the operator ``fasttx::<op>_<name>``.

    A profiler sees the operator by its own name, and within it a range that names the backend.
    """
    full = f"{op.name}_{name}"
    names = direction.argument_names()
    where = [names.index(key) for key in direction.keys]
    first = where[0]
    keys_of = operator.itemgetter(*where)
    check, fake, composition = direction.check, direction.fake, direction.torch
    launchers: dict[str, Callable[..., None]] = {}
    forward, knew = name == "fwd", _knew
    several = len(where) > 1
    composed = (full, "torch")
    current_device = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)

    def call(*args: Any) -> Any:
        requested, args = args[-1], args[:-1]
        check(*args)
        tensors = keys_of(args) if several else (args[first],)
        if forward:
            impl = op.choice(requested, *tensors)
            knew[op.name] = verdicts.generation
        elif knew.get(op.name, verdicts.generation) == verdicts.generation:
            impl = op.choice(requested, *tensors)
        else:  # backward runs where forward ran, whatever was found out meanwhile
            with verdicts.as_of(knew[op.name]):
                impl = op.choice(requested, *tensors)
        if impl is None and requested == "auto" and tensors[0].device.type == "cuda":
            op.warn_once(*tensors)
        if decisions.records:
            decisions.note(full, "torch" if impl is None else impl.backend, op.why(requested, *tensors))
        stack = None
        if profiler._is_profiler_enabled or around:
            stack = _within(f"fasttx::{full}[{'torch' if impl is None else impl.backend}]")
        try:
            if impl is None:
                LAUNCHES[composed] += 1
                return composition(*args)
            launch = launchers.get(impl.backend)
            if launch is None:
                launch = launchers[impl.backend] = resolve(getattr(impl, name))
            outputs = fake(*args)
            flat = outputs if isinstance(outputs, tuple) else (outputs,)
            device = tensors[0].device
            # of torch.cuda.current_device the part that asks: tensors of a GPU say that CUDA is in use
            if device.type == "cuda" and device.index != current_device():
                with torch.cuda.device(device):
                    launch(*flat, *args)
            else:
                launch(*flat, *args)
            LAUNCHES[full, impl.backend] += 1
            return outputs
        finally:
            if stack is not None:
                stack.close()

    return call
