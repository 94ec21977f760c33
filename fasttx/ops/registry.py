"""The table of ops: what exists, which implementations each op has, and which of them runs.

An :class:`Op` is one row: a forward and a backward :class:`Direction` (schema, check, fake, PyTorch composition,
float64 reference, cost), or the forward alone for what has no gradient, and the :class:`Impl` rows that can run the
pair. Dispatch, the report of a patch, ``explain``, ``supported``, the tests and the benchmarks all read the same rows,
so that none can know an op that another does not; which backend runs is answered by :meth:`Op.choice` alone.

Every direction is a PyTorch operator ``fasttx::<name>_fwd`` / ``fasttx::<name>_bwd`` whose last argument ``backend`` is
what the caller asked for ("auto", or a forced name).  Autograd keeps that string between the two calls: since ``auto``
is a pure function of the tensors and both directions decide on the same ones, backward runs where forward ran.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from . import tuned, verdicts
from .availability import able, cannot_run_on
from .backends import BACKENDS, BackendError
from .checks import wrong
from .dispatch import LAUNCHES as LAUNCHES
from .dispatch import alone, body, without_backend
from .library import LIB
from .regimes import dtype_of, regimes_of

OPS: dict[str, Op] = {}

_warned: set[tuple[str, str]] = set()
_kernels: dict[tuple[str, torch.device, torch.dtype, str | None, int], bool] = {}


@dataclass(frozen=True)
class Impl:
    """A compiled implementation of an op: a forward and a backward launcher that belong together.

    Launchers are destination-passing: ``fwd(*outputs, *arguments)`` without the ``backend`` argument; they neither
    allocate outputs nor check anything.

    Attributes:
        backend: ``"triton"``, ``"cuda"`` or ``"cpu"``.
        fwd, bwd: ``"module:function"``, imported at the first call; bwd is "" for an op without a backward.
        supports: gets the tensors named by ``Direction.keys`` and answers None or the reason it cannot run them.
        min_arch: lowest compute capability, times ten; 0 for the kernels of a CPU.
        auto_on: types of device on which "auto" takes it.
    """

    backend: str
    fwd: str
    bwd: str
    supports: Callable[..., str | None]
    min_arch: int = 80
    auto_on: tuple[str, ...] = ("cuda",)

    def why_not(self, *tensors: Tensor) -> str | None:
        """Why it cannot run tensors like these, or None."""
        device = tensors[0].device
        if (self.backend, device, self.min_arch) not in able:  # or nothing need be asked again
            reason = cannot_run_on(self.backend, device, self.min_arch)
            if reason is not None:
                return reason
        return self.supports(*tensors)


@dataclass(frozen=True)
class Direction:
    """One direction of an op.

    Attributes:
        schema: PyTorch operator schema; the last argument must be ``str backend``.
        check: the only place where shapes, dtypes and devices are validated; raises ValueError or TypeError.
        fake: allocates the outputs from the arguments (also on fake and meta tensors).
        torch: the same result composed of PyTorch's own operators, on any device; returns what `fake` returns.
            Whoever calls it, it records no graph of its own and is not autocast.
        reference: the same result in float64, written from the formula; returns what `fake` returns, in float64
            (integers too, which every implementation must give exactly; where one hangs on a float that was rounded
            before, the real number that it rounds).
        keys: names of the tensors on which support is decided.
        cost: (flop, bytes that must move at least), from the arguments.
        compared_by: what :mod:`fasttx.testing` holds to its own size, a ``"row"`` or, where each element is computed in
            float32 and rounded at the end, an ``"element"``.
        derived: of a backward, arguments that :meth:`Op.backward_arguments` cannot find by their name: how each
            follows from the forward's arguments and results.
    """

    schema: str
    check: Callable[..., None]
    fake: Callable[..., Any]
    torch: Callable[..., Any]
    reference: Callable[..., Any]
    keys: tuple[str, ...]
    cost: Callable[..., tuple[float, float]]
    compared_by: Literal["row", "element"] = "row"
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "torch", alone(self.torch))

    def argument_names(self) -> list[str]:
        """The names of the schema's arguments, ``backend`` included."""
        inside = self.schema[self.schema.index("(") + 1 : self.schema.index(") ->")]
        return [a.split("=")[0].split()[-1] for a in inside.split(", ") if a.strip() != "*"]

    def result_names(self) -> list[str]:
        """The names of the schema's results, of which one alone has none."""
        results = self.schema.rsplit("->", 1)[1].strip(" ()").split(", ")
        return [result.split()[-1] for result in results if " " in result]

    def key_tensors(self, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """Those of `arguments` on which support is decided."""
        names = self.argument_names()
        return tuple(arguments[names.index(key)] for key in self.keys)


@dataclass(frozen=True)
class Op:
    """A row of the table; creating it registers ``fasttx::<name>_fwd`` and, where there is one, its ``_bwd``.

    Attributes:
        impls: in the order in which "auto" tries them.
        about: what it computes and how far, for the table of `fasttx supported --markdown`.
        bodies: what its operators run, by "fwd" and "bwd".
    """

    name: str
    fwd: Direction
    bwd: Direction | None
    impls: tuple[Impl, ...] = ()
    about: str = ""
    bodies: dict[str, Callable[..., Any]] = field(init=False, default_factory=dict, compare=False)

    @property
    def directions(self) -> dict[str, Direction]:
        """By name: "fwd", and "bwd" unless the op has no gradient."""
        return {"fwd": self.fwd} if self.bwd is None else {"fwd": self.fwd, "bwd": self.bwd}

    def __post_init__(self) -> None:
        OPS[self.name] = self
        for name, direction in self.directions.items():
            full, last = f"{self.name}_{name}", direction.argument_names()[-1]
            if last != "backend":
                raise ValueError(wrong(f"{full}", f"{last!r} as the last argument of the schema", "'str backend'"))
            LIB.define(full + direction.schema, tags=(torch.Tag.pt2_compliant_tag,))
            self.bodies[name] = body(self, name, direction)
            LIB.impl(full, self.bodies[name], "CompositeExplicitAutograd")
            torch.library.register_fake(f"fasttx::{full}", without_backend(direction.fake), lib=LIB)

    # ------------------------------------------------------------------------------------------- which backend runs

    def choice(self, requested: str, *tensors: Tensor) -> Impl | None:
        """The implementation that runs tensors like these; None stands for the PyTorch composition.

        "auto" takes the first of the row that can run them on their device and has not failed its check on this machine
        (:mod:`fasttx.ops.verdicts`), unless something else was measured to be faster here (:mod:`fasttx.ops.tuned`).
        Where there is no element nothing is launched: the composition defines empty results.

        Raises:
            BackendError: `requested` is a backend's name and that backend cannot run them.
        """
        auto = requested == "auto"
        if requested == "torch":
            return None
        device = tensors[0].device.type
        why: str | None = "not implemented"
        for impl in self.impls:
            if device in impl.auto_on if auto else impl.backend == requested:
                why = impl.why_not(*tensors)
                if why is None and auto:
                    why = verdicts.reason(self.name, impl.backend, *tensors)
                if why is None and not tensors[0].numel():
                    return None
                if why is None:
                    return self._fastest(impl, *tensors) if auto else impl
        if auto:
            return None
        raise BackendError(f"fasttx::{self.name}: backend '{requested}' cannot run this call: {why}")

    def _fastest(self, default: Impl, *tensors: Tensor) -> Impl | None:
        """What was measured to be faster than `default` for tensors like these, if it can run them, or `default`."""
        backend = tuned.backend_of(self.name, *tensors)
        if backend is None:
            return default
        device = tensors[0].device.type
        for impl in self.impls:
            if impl.backend == backend and device in impl.auto_on and self._why_not_auto(impl, *tensors) is None:
                return impl
        return None if backend == "torch" else default

    def measured(self, *tensors: Tensor) -> str:
        """In words, why "auto" takes another backend than the default for tensors like these; "" where it does not."""
        backend = tuned.backend_of(self.name, *tensors)
        if backend is None or self.runs("auto", *tensors) != backend:
            return ""
        dtype, regime = dtype_of(*tensors), regimes_of(self.name).name_of(*tensors)
        return tuned.reason(self.name, tensors[0].device, dtype, regime)

    def runs(self, requested: str, *tensors: Tensor) -> str:
        """The name of the backend that :meth:`choice` gives."""
        impl = self.choice(requested, *tensors)
        return "torch" if impl is None else impl.backend

    def reasons(self, *tensors: Tensor) -> dict[str, str | None]:
        """For every backend, None if it can run tensors like these, else why not.

        One that failed its check on this machine can be forced still, and the reason says so.
        """
        found: dict[str, str | None] = dict.fromkeys(BACKENDS, "not implemented") | {"torch": None}
        return found | {impl.backend: self._why_not_auto(impl, *tensors) for impl in self.impls}

    def _why_not_auto(self, impl: Impl, *tensors: Tensor) -> str | None:
        return impl.why_not(*tensors) or verdicts.reason(self.name, impl.backend, *tensors)

    def own_is_faster(self, *tensors: Tensor) -> str:
        """In words, that PyTorch's own operators were measured to be faster than a kernel for tensors like these."""
        return self.measured(*tensors) if tuned.backend_of(self.name, *tensors) == "torch" else ""

    def why(self, requested: str, *tensors: Tensor) -> str:
        """In words, why :meth:`choice` took what it took; "" for the default kernel of the row."""
        if requested != "auto":
            return f"asked for '{requested}'"
        if tensors[0].numel() == 0:
            return "there is no element"
        measured = self.measured(*tensors)
        if measured or self.choice(requested, *tensors) is not None:
            return measured
        device = tensors[0].device.type
        if not any(device in impl.auto_on for impl in self.impls):
            return f"kernels run on NVIDIA GPUs, and these tensors are on {device}"
        there = {impl.backend for impl in self.impls if device in impl.auto_on}
        return "; ".join(f"{name}: {reason}" for name, reason in self.reasons(*tensors).items() if name in there)

    def has_kernel(self, device: torch.device, dtype: torch.dtype, besides: str | None = None) -> bool:
        """Whether "auto" finds a compiled implementation on `device`, to decide before an operator is called at all.

        The answer is kept, as what a device can run does not change; dynamo takes it as a constant. Where no
        implementation runs on a GPU, it warns once, as a call of the operator does.

        Args:
            besides: what else speaks against a call, its shapes for instance; None if nothing does.
        """
        if device.type == "cpu":
            return False
        if torch.compiler.is_compiling():  # what speaks against it may hold sizes that are being traced
            return _has_kernel_traced(self.name, device, dtype, besides is None)
        key = (self.name, device, dtype, besides, verdicts.generation)
        found = _kernels.get(key)
        if found is None:
            found = _kernels[key] = self._find_kernel(device, dtype, besides)
        return found

    def _find_kernel(self, device: torch.device, dtype: torch.dtype, besides: str | None) -> bool:
        reasons = {
            i.backend: cannot_run_on(i.backend, device, i.min_arch)
            or besides
            or verdicts.why_out(self.name, i.backend, device, dtype)
            for i in self.impls
        }
        found = None in reasons.values()
        if not found and device.type == "cuda":
            self._warn_once(device, reasons)
        return found

    def warn_once(self, *tensors: Tensor) -> None:
        """Says once for each reason that PyTorch's operators run tensors like these on a GPU, and why no kernel."""
        if tensors[0].numel() and not self.measured(*tensors):
            self._warn_once(tensors[0].device, {i.backend: self._why_not_auto(i, *tensors) for i in self.impls})

    def _warn_once(self, device: torch.device, reasons: Mapping[str, str | None]) -> None:
        key = (self.name, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        if key not in _warned:
            _warned.add(key)
            warnings.warn(f"fasttx::{self.name} runs as PyTorch's own operators on {device} ({key[1]})", stacklevel=4)

    # ------------------------------------------------------------------------------------------------- its backward

    def backward_arguments(
        self, forward: Sequence[Any], outputs: Sequence[Tensor], dout: Tensor, **given: Any
    ) -> list[Any]:
        """The arguments of ``<op>_bwd`` without ``backend``: every gradient that there is, unless `given` says less.

        By name: of the forward's arguments and results; ``needs_d<x>`` is whether the forward was given an `x`, or
        True where that is none of its arguments; the rest is in ``Direction.derived``, or `given`.

        Args:
            forward: the arguments of ``<op>_fwd`` without ``backend``.
            outputs: what that returned.
            dout: the gradient of its first result.
            given: arguments by name, which win.

        Raises:
            ValueError: the op has no backward, or `given` names what is no argument of it.
        """
        if self.bwd is None:
            raise ValueError(wrong("op", repr(self.name), "one with a backward"))
        first, *names = self.bwd.argument_names()[:-1]
        if not given.keys() <= set(names):
            raise ValueError(wrong("given", sorted(given), f"arguments of {self.name}_bwd: {names}"))
        known = dict(zip(self.fwd.argument_names()[:-1], forward, strict=True))
        known |= zip(self.fwd.result_names(), outputs)
        if "out" not in known:
            known["out"] = outputs[0]
        for name in names:
            if name not in known and name.startswith("needs_d"):
                known[name] = known.get(name.removeprefix("needs_d"), dout) is not None
        known |= {name: derive(known) for name, derive in self.bwd.derived.items()} | given
        return [dout, *(known[name] for name in names)]


def _has_kernel_traced(name: str, device: torch.device, dtype: torch.dtype, supported: bool) -> bool:
    """Dynamo calls this while it traces, with constants, outside of what it compiles."""
    return OPS[name]._find_kernel(device, dtype, None if supported else "its shapes or strides are too large")


# What torch.compiler.assume_constant_result does, without its import of dynamo, which takes seconds.
_has_kernel_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
