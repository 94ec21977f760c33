"""Exported programs (torch.export, ONNX, AOTInductor) hold PyTorch's own operators wherever those compute anyway.

So they run where fasttx is not installed.  What a kernel of fasttx is to compute stays an operator of fasttx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .dispatch import shortened
from .registry import Op


def exporting() -> bool:
    """Whether a program is being exported: not so under torch.compile, which may call what is installed."""
    return torch.compiler._is_exporting_flag  # is_exporting() is True in every graph of torch 2.11


def exported_as_torch(op: Op, backend: str, *keys: Tensor) -> bool:
    """Whether an exported program is to hold PyTorch's own function for a call of `op`, which no kernel computes.

    Args:
        keys: the tensors on which support is decided.
    """
    # what "auto" takes from fasttx._C_cpu is in the program as PyTorch's operators: it may run on another machine
    return exporting() and op.runs(backend, *keys) in (("torch", "cpu") if backend == "auto" else ("torch",))


def called(op: Op, exported: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The forward operator of `op`, or its composition where a program is exported that no kernel computes.

    Args:
        exported: the composition for exported programs, where it is another than the row's: no value is read there.
    """
    direction = op.fwd
    composition: Callable[..., Any] = exported or direction.torch.__wrapped__  # type: ignore[attr-defined]

    def instead(arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
        keys = direction.key_tensors(arguments)
        return composition if exported_as_torch(op, arguments[-1], *keys) else None

    return shortened(getattr(torch.ops.fasttx, f"{op.name}_fwd").default, op.bodies["fwd"], instead)


def called_backward(op: Op) -> Callable[..., Any]:
    """The backward operator of `op`."""
    return shortened(getattr(torch.ops.fasttx, f"{op.name}_bwd").default, op.bodies["bwd"])
