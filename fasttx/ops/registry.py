"""The table of ops: what exists, which implementations each op has, and which of them runs.

An :class:`Op` is one row: a forward and a backward :class:`Half` (schema, check, fake, PyTorch composition, float64
reference, cost), or the forward alone for what has no gradient, and the :class:`Impl` rows that can run the pair.
Dispatch, ``python -m fasttx supported``, the tests and the benchmarks all read the same rows, so that none of them can
know an op that another does not.

Every half is a PyTorch operator ``fasttx::<name>_fwd`` / ``fasttx::<name>_bwd`` whose last argument ``backend`` is what
the caller asked for ("auto", or a forced name).  Autograd keeps that string between the two calls: since ``auto`` is a
pure function of the tensors and both halves decide on the same ones, backward runs where forward ran.
"""

from __future__ import annotations

import functools
import importlib
import operator
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from .availability import cannot_run_on
from .backends import BACKENDS, BackendError
from .decisions import note, recording
from .library import LIB

OPS: dict[str, Op] = {}
LAUNCHES: Counter[tuple[str, str]] = Counter()
"""How often each (operator, backend) ran in this process, e.g. ``LAUNCHES["softmax_fwd", "triton"]``."""

_warned: set[tuple[str, str]] = set()
_below_autograd = torch._C._AutoDispatchBelowAutograd


def _resolve(path: str) -> Callable[..., None]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Impl:
    """A compiled implementation of an op: a forward and a backward launcher that belong together.

    Launchers are destination-passing: ``fwd(*outputs, *arguments)`` without the ``backend`` argument; they neither
    allocate outputs nor check anything.

    Attributes:
        backend: ``"triton"`` or ``"cuda"``.
        fwd, bwd: ``"module:function"``, imported at the first call; bwd is "" for an op without a backward.
        supports: gets the tensors named by ``Half.keys`` and answers None or the reason it cannot run them.
        min_arch: lowest compute capability, times ten.
    """

    backend: str
    fwd: str
    bwd: str
    supports: Callable[..., str | None]
    min_arch: int = 80


@dataclass(frozen=True)
class Half:
    """One direction of an op.

    Attributes:
        schema: PyTorch operator schema; the last argument must be ``str backend``.
        check: the only place where shapes, dtypes and devices are validated; raises ValueError or TypeError.
        fake: allocates the outputs from the arguments (also on fake and meta tensors).
        torch: the same result composed of PyTorch's own operators, on any device; returns what `fake` returns.
        reference: the same result in float64, written from the formula; returns what `fake` returns, in float64
            (integers too, which every implementation must give exactly; where one hangs on a float that was rounded
            before, the real number that it rounds).
        keys: names of the tensors on which support is decided.
        cost: (flop, bytes that must move at least), from the arguments.
    """

    schema: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    torch: Callable[..., Any]
    reference: Callable[..., Any]
    keys: tuple[str, ...]
    cost: Callable[..., tuple[float, float]]

    def argument_names(self) -> list[str]:
        inside = self.schema[self.schema.index("(") + 1 : self.schema.index(") ->")]
        return [a.split("=")[0].split()[-1] for a in inside.split(", ") if a.strip() != "*"]


@dataclass(frozen=True)
class Op:
    """A row of the table; creating it registers ``fasttx::<name>_fwd`` and, where there is one, its ``_bwd``."""

    name: str
    fwd: Half
    bwd: Half | None
    impls: tuple[Impl, ...] = ()

    @property
    def halves(self) -> dict[str, Half]:
        """By direction: "fwd", and "bwd" unless the op has no gradient."""
        return {"fwd": self.fwd} if self.bwd is None else {"fwd": self.fwd, "bwd": self.bwd}

    def __post_init__(self) -> None:
        OPS[self.name] = self
        for direction, half in self.halves.items():
            full = f"{self.name}_{direction}"
            names = half.argument_names()
            if names[-1] != "backend":
                raise ValueError(f"{full}: the last argument of the schema must be 'str backend', got {names[-1]!r}")
            LIB.define(full + half.schema, tags=(torch.Tag.pt2_compliant_tag,))
            LIB.impl(full, _body(self, direction, half, names), "CompositeExplicitAutograd")
            torch.library.register_fake(f"fasttx::{full}", _without_backend(half.fake), lib=LIB)

    def reasons(self, *tensors: Tensor) -> dict[str, str | None]:
        """For every backend, None if it can run tensors like these, else why not."""
        found: dict[str, str | None] = {name: "not implemented" for name in BACKENDS}
        found["torch"] = None
        for impl in self.impls:
            found[impl.backend] = self._why_not(impl, tensors)
        return found

    def pick(self, requested: str, *tensors: Tensor) -> Impl | None:
        """The implementation that runs tensors like these; None stands for the PyTorch composition.

        Raises:
            BackendError: `requested` is a backend's name and that backend cannot run them.
        """
        device = tensors[0].device
        if requested == "torch":
            return None
        if requested != "auto":
            why = "not implemented"
            for impl in self.impls:
                if impl.backend == requested:
                    reason = self._why_not(impl, tensors)
                    if reason is None:
                        return impl
                    why = reason
            raise BackendError(f"fasttx::{self.name}: backend '{requested}' cannot run this call: {why}")
        if device.type != "cuda":
            return None
        reasons = []
        for impl in self.impls:
            reason = self._why_not(impl, tensors)
            if reason is None:
                return impl
            reasons.append(f"{impl.backend}: {reason}")
        self._warn_once(device, reasons)
        return None

    def has_kernel(self, device: torch.device, besides: str | None = None) -> bool:
        """Whether "auto" finds a compiled implementation on `device`; warns as :meth:`pick` does where none is.

        Args:
            besides: what else speaks against a call, its shapes for instance; None if nothing does.
        """
        reasons = []
        for impl in self.impls:
            reason = cannot_run_on(impl.backend, device, impl.min_arch) or besides
            if reason is None:
                return True
            reasons.append(f"{impl.backend}: {reason}")
        if device.type == "cuda":
            self._warn_once(device, reasons)
        return False

    def _warn_once(self, device: torch.device, reasons: list[str]) -> None:
        key = (self.name, "; ".join(reasons))
        if key not in _warned:
            _warned.add(key)
            warnings.warn(f"fasttx::{self.name} runs as PyTorch's own operators on {device} ({key[1]})", stacklevel=3)

    def why(self, requested: str, impl: Impl | None, tensors: tuple[Tensor, ...]) -> str:
        """In words, why `impl` runs these tensors and no other backend does."""
        if requested != "auto":
            return f"asked for '{requested}'"
        if tensors[0].numel() == 0:
            return "there is no element"
        if impl is not None:
            return ""
        device = tensors[0].device.type
        if device != "cuda":
            return f"kernels run on NVIDIA GPUs, and these tensors are on {device}"
        return "; ".join(f"{name}: {reason}" for name, reason in self.reasons(*tensors).items() if reason)

    @staticmethod
    def _why_not(impl: Impl, tensors: tuple[Tensor, ...]) -> str | None:
        return cannot_run_on(impl.backend, tensors[0].device, impl.min_arch) or impl.supports(*tensors)


def _without_backend(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        return fn(*args[:-1])

    return call


def _runs(impl: Impl | None, tensors: tuple[Tensor, ...]) -> str:
    """The backend that computes these: a launcher is not called for tensors without elements."""
    return impl.backend if impl is not None and tensors[0].numel() else "torch"


def _body(op: Op, direction: str, half: Half, names: list[str]) -> Callable[..., Any]:
    """The operator's implementation: check, choose, allocate, launch.

    A profiler sees the operator by its own name, and within it a range that names the backend.
    """
    full = f"{op.name}_{direction}"
    where = [names.index(k) for k in half.keys]
    first = where[0]
    keys_of = operator.itemgetter(*where) if len(where) > 1 else lambda args: (args[first],)
    check, composition = half.check, half.torch
    launchers: dict[str, Callable[..., None]] = {}

    def composed(device: str, args: tuple[Any, ...]) -> Any:
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return composition(*args)
        with torch.autocast(device, enabled=False):  # casts are layer 4's business: a float32 sum would be one in fp16
            return composition(*args)

    def body(*args: Any) -> Any:
        requested, args = args[-1], args[:-1]
        check(*args)
        tensors = keys_of(args)
        impl = op.pick(requested, *tensors)
        if recording():
            note(full, _runs(impl, tensors), op.why(requested, impl, tensors))
        if profiler._is_profiler_enabled:
            with torch.profiler.record_function(f"fasttx::{full}[{_runs(impl, tensors)}]"):
                return run(impl, tensors, args)
        return run(impl, tensors, args)

    def run(impl: Impl | None, tensors: tuple[Tensor, ...], args: tuple[Any, ...]) -> Any:
        if impl is None or tensors[0].numel() == 0:  # nothing to launch on: the composition defines empty results
            LAUNCHES[full, "torch"] += 1
            if not torch.is_grad_enabled():
                return composed(tensors[0].device.type, args)
            with _below_autograd():  # gradients are layer 4's business: the composition must not record its own
                return composed(tensors[0].device.type, args)
        launch = launchers.get(impl.backend)
        if launch is None:
            launch = launchers[impl.backend] = _resolve(getattr(impl, direction))
        outputs = half.fake(*args)
        flat = outputs if isinstance(outputs, tuple) else (outputs,)
        device = tensors[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                launch(*flat, *args)
        else:
            launch(*flat, *args)
        LAUNCHES[full, impl.backend] += 1
        return outputs

    return body
