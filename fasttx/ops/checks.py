"""What the checks of several ops have in common."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
NONE, MEAN, SUM = REDUCTIONS = (0, 1, 2)
_FAKE = torch._C._TorchDispatchModeKey.FAKE
FEW = 64
"""Values that a loop in Python reads in less time than one call of torch takes."""


def wrong(name: str, given: object, allowed: str) -> str:
    """The text of an error about one argument: what was given, and what may be."""
    return f"{name}: got {given}; allowed is {allowed}"


def described(x: object) -> str:
    """What was given where a tensor belongs, for the text of an error: dtype and shape of a tensor, else the type."""
    if isinstance(x, Tensor):
        return f"{x.dtype} {tuple(x.shape)}"
    kind = type(x).__name__
    return "None" if x is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def is_number(x: object) -> bool:
    """Whether x is a number of Python, NumPy or a graph that is being traced, or a tensor of one."""
    if isinstance(x, Tensor):
        return x.numel() == 1
    return isinstance(x, NUMBERS) or hasattr(x, "__float__")


def is_index(x: object) -> bool:
    """Whether x stands for an int; the types come first, as an attribute of a symbol cannot be traced."""
    return isinstance(x, (int, torch.SymInt)) or hasattr(x, "__index__")


def _variable(name: str, value: str) -> tuple[Any, Any, Any]:
    """The environment as it is at any time, with a name and a value as they stand in it: os.environ takes four calls of
    Python to look something up, and a step asks fifty times."""
    encoded = getattr(os.environ, "_data", None)
    if encoded is None:
        return os.environ, name, value
    return encoded, os.environ.encodekey(name), os.environ.encodevalue(value)


_environment, _CHECK, _YES = _variable("FASTTX_CHECK", "1")


def values_may_be_read(device: torch.device) -> bool:
    """Where checks may look at values: on a CPU; with FASTTX_CHECK=1 on a GPU too, which the host then waits for."""
    return device.type == "cpu" or bool(_environment.get(_CHECK) == _YES)


def values_are_known(x: Tensor) -> bool:
    """Whether the host can read the values of x: not of a fake tensor, and not while a graph is made, which is to hold
    for others too."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if not isinstance(x, Tensor):
        return True
    if isinstance(x, FakeTensor) or x.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return torch._C._get_dispatch_mode(_FAKE) is None


def check_one_device(first: str, device: torch.device, **others: Tensor | None) -> None:
    """Raises ValueError unless all tensors, by the names of their arguments, are on `device`, where `first` is."""
    for name, other in others.items():
        if other is not None and other.device != device:
            raise ValueError(wrong(name, f"a tensor on {other.device}", f"{device}, where {first} is"))


def broadcasts(shape: torch.Size, full: torch.Size) -> bool:
    """Whether a tensor of `shape` broadcasts to `full` without adding to it: each dim of its size or 1."""
    return len(shape) <= len(full) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(full), strict=False))


def check_dloss(dloss: Tensor, shape: torch.Size, reduction: int) -> None:
    """Raises ValueError unless dloss is the gradient of a float32 loss, one number or, unreduced, of `shape`."""
    expected = shape if reduction == NONE else ()
    if dloss.shape != expected or dloss.dtype != torch.float32:
        raise ValueError(wrong("dloss", f"{dloss.dtype} {tuple(dloss.shape)}", f"float32 {tuple(expected)}"))


def check_target_values(target: Tensor, n_cols: int, ignore_index: int) -> None:
    """Raises torch's IndexError for an index outside [0, n_cols) that is not ignored, where values may be read."""
    if not values_may_be_read(target.device):
        return
    if target.numel() <= FEW:
        for index in target.tolist():
            if not 0 <= index < n_cols and index != ignore_index:
                raise IndexError(f"Target {index} is out of bounds.")
        return
    low, high = target.aminmax()
    if low.item() >= 0 and high.item() < n_cols:
        return
    bad = target[((target < 0) | (target >= n_cols)) & (target != ignore_index)]
    if bad.numel():
        raise IndexError(f"Target {int(bad[0])} is out of bounds.")


def check_index_values(name: str, index: Tensor, n_table: int) -> None:
    """Raises ValueError for a number outside [0, n_table), where values may be read."""
    if index.numel() == 0 or not (values_may_be_read(index.device) and values_are_known(index)):
        return
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= n_table:
        raise ValueError(wrong(name, low if low < 0 else high, f"rows 0 to {n_table - 1} of the table"))


def row_too_long(x: Tensor, max_cols: int) -> str | None:
    """The reason why kernels that hold rows of max_cols at most in registers cannot run x, or None."""
    n_cols = x.shape[-1]
    if n_cols > max_cols:
        return f"rows of at most {max_cols} columns fit the registers of a block, x has shape {tuple(x.shape)}"
    if x.numel() // max(n_cols, 1) >= 2**31:
        return f"rows are counted in 32 bits, x has shape {tuple(x.shape)}"
    return None


def not_countable(x: Tensor) -> str | None:
    """The reason why kernels that count rows and columns in 32 bits cannot run x, or None."""
    n_cols = x.shape[-1]
    if n_cols >= 2**31 or x.numel() // max(n_cols, 1) >= 2**31:
        return f"rows and columns are counted in 32 bits, x has shape {tuple(x.shape)}"
    return None
