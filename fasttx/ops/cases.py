"""Small calls of every op, for all that go through the whole table: tests, `doctor`, `supported` and bench.host.

Those of an op stand in its folder, ``fasttx/ops/<op>/cases.py``, and are imported when somebody asks for them.  The
first is called "check", and has no dropout, whose mask differs between backends.  One is called "smallest": a handful
of elements, so that bench.host times Python and not arithmetic.  What is run on a user's machine, by `doctor` and at
first use, is :func:`checked`: all of them but those that the file names in ``REPEATED``, and its ``large`` ones, of
several blocks or tiles. Those of ``many_rows`` run on GPUs alone: Triton's interpreter takes minutes for them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .checks import wrong
from .registry import OPS, Op

Arguments = tuple[Any, ...]
"""Of ``<op>_fwd``, without the last one, ``backend``."""
Cases = Iterator[tuple[str, Arguments]]
"""What the function ``cases`` of an op yields: a name, and the arguments of one call."""


@dataclass(frozen=True)
class Draw:
    """Makes the tensors of the cases: the same numbers on every device, so that two reports can be compared."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1234))

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal numbers, of the dtype of the case unless another is named."""
        drawn = torch.randn(shape, generator=self.generator, device="cpu")
        return drawn.to(device=self.device, dtype=dtype or self.dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers from [0, 1)."""
        return torch.rand(shape, generator=self.generator, device="cpu").to(device=self.device, dtype=dtype)

    def int8(self, *shape: int) -> Tensor:
        """Integers, most of them small, some at the ends of the range."""
        return self.randn(*shape, dtype=torch.float32).mul(40).clamp(-127, 127).to(torch.int8)

    def tensor(self, values: object, dtype: torch.dtype | None = None) -> Tensor:
        """These values; integers are int64 unless another dtype is named."""
        return torch.tensor(values, dtype=dtype, device=self.device)

    def arange(self, n: int) -> Tensor:
        return torch.arange(n, device=self.device)

    def rng_state(self) -> Tensor:
        """Seed and offset of a call with dropout."""
        return self.tensor([1234, 5])


def cases(op: Op, device: torch.device, dtype: torch.dtype) -> Cases:
    """The cases of an op, by name.

    Raises:
        ModuleNotFoundError: the op has no file of cases.
    """
    make: Callable[[Draw], Cases] = importlib.import_module(f"fasttx.ops.{op.name}.cases").cases
    return make(Draw(device, dtype))


def checked(op: Op, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Arguments, bool]]:
    """The calls that show what is wrong with a kernel on this machine.

    As few as show each of the faults in tests/mutations, because every one may have to be compiled first.

    Returns:
        Names, arguments, and whether the call is one of the large ones, which the tests of the whole table leave out.
    """
    module = importlib.import_module(f"fasttx.ops.{op.name}.cases")
    left_out = {"empty", "smallest", *getattr(module, "REPEATED", ())}
    for name, arguments in cases(op, device, dtype):
        if name not in left_out:
            yield name, arguments, False
    for kind in ("large", "many_rows"):
        if hasattr(module, kind) and (kind == "large" or device.type != "cpu"):
            for name, arguments in getattr(module, kind)(Draw(device, dtype)):
                yield name, arguments, True


def case(op: Op, name: str, device: torch.device, dtype: torch.dtype) -> Arguments:
    """One of the cases of an op.

    Raises:
        ValueError: it has none of that name.
    """
    known = []
    for each, arguments in cases(op, device, dtype):
        if each == name:
            return arguments
        known.append(each)
    raise ValueError(wrong(f"case of {op.name}", repr(name), f"one of {known}"))


def like(op: Op, device: torch.device, dtype: torch.dtype, width: int | None = None) -> tuple[Tensor, ...]:
    """Tensors like those on which a call of the op is decided, without any memory behind their shapes.

    Args:
        width: of the last dimension of those that are floating; that of the case "check" if None.
    """
    found = []
    for shape, kind in _keys(op.name, dtype):
        if kind.is_floating_point and width is not None:
            shape = torch.Size((*shape[:-1], width))
        found.append(torch.empty(1, device=device, dtype=kind).expand(shape))
    return tuple(found)


@functools.cache
def _keys(name: str, dtype: torch.dtype) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    op = OPS[name]
    arguments = case(op, "check", torch.device("meta"), dtype)
    return tuple((x.shape, x.dtype) for x in op.fwd.key_tensors(arguments))
