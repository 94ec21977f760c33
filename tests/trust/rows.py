"""An op for tests of `tune`: twice a number and its gradient, by kernels for the CPU that take what a clock says."""

from __future__ import annotations

import sys
import types
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from trust.probes import OnCpu

from fasttx.ops.cases import Draw
from fasttx.ops.regimes import Axis, Regimes, rows_and_columns
from fasttx.ops.registry import OPS, Direction, Op

NAME = "probe_rows"
LAUNCHED: Counter[str] = Counter()
"""How often each way ran in this process, by "<direction> <backend>"."""
FACTOR = {"cuda": 2.0, "triton": 2.0}
"""By what each kernel multiplies; a test makes one of them wrong."""


class Clock:
    """A time that passes only where something says that it has run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cost = {"cuda": 3.0, "triton": 3.0, "torch": 3.0}

    def perf_counter(self) -> float:
        self.now += 1e-9  # no batch takes no time
        return self.now

    monotonic = perf_counter

    def passes(self, way: str, columns: int) -> None:
        self.now += self.cost[way] * 1e-3 * (LONG_COSTS.get(way, 1.0) if columns > 16 else 1.0)


LONG_COSTS: dict[str, float] = {}
"""By what the cost of a way is multiplied for long rows."""
clock = Clock()


def _ran(direction: str, way: str, x: Tensor) -> None:
    LAUNCHED[f"{direction} {way}"] += 1
    clock.passes(way, x.shape[-1])


def cuda_fwd(out: Tensor, x: Tensor) -> None:
    _ran("fwd", "cuda", x)
    out.copy_(FACTOR["cuda"] * x)


def cuda_bwd(dx: Tensor, dout: Tensor, x: Tensor) -> None:
    _ran("bwd", "cuda", x)
    dx.copy_(FACTOR["cuda"] * dout)


def triton_fwd(out: Tensor, x: Tensor) -> None:
    _ran("fwd", "triton", x)
    out.copy_(FACTOR["triton"] * x)


def triton_bwd(dx: Tensor, dout: Tensor, x: Tensor) -> None:
    _ran("bwd", "triton", x)
    dx.copy_(FACTOR["triton"] * dout)


def _torch_fwd(x: Tensor) -> Tensor:
    _ran("fwd", "torch", x)
    return 2 * x


def _torch_bwd(dout: Tensor, x: Tensor) -> Tensor:
    _ran("bwd", "torch", x)
    return 2 * dout


def _cases(draw: Draw) -> Any:
    yield "check", (draw.randn(4, 8),)


def _examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Any:
    yield "plain", (draw.randn(4 if few else 32, n_cols),)


COLUMNS = Axis(("short rows", "long rows"), (17,), (8, 32))
REGIMES = Regimes(rows_and_columns, (COLUMNS, Axis(("any rows",), (), (1,))), ("short rows", "any rows"), _examples)
SHORT, LONG = "short rows, any rows", "long rows, any rows"
for _part in ("cases", "regimes"):
    _module: Any = types.ModuleType(f"fasttx.ops.{NAME}.{_part}")
    _module.cases, _module.REGIMES = _cases, REGIMES
    sys.modules[_module.__name__] = _module


class Fn(torch.autograd.Function):
    """Over the operators, as those of fasttx.functional are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.fasttx.probe_rows_fwd(x, "auto")

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.fasttx.probe_rows_bwd(dout, x, "auto")


_COMMON: dict[str, Any] = {"check": lambda *_: None, "keys": ("x",), "cost": lambda *_: (1.0, 1.0)}
OP = Op(
    NAME,
    Direction(
        "(Tensor x, str backend) -> Tensor out",
        fake=torch.empty_like,
        torch=_torch_fwd,
        reference=lambda x: 2 * x.double(),
        **_COMMON,
    ),
    Direction(
        "(Tensor dout, Tensor x, str backend) -> Tensor dx",
        fake=lambda dout, x: torch.empty_like(x),
        torch=_torch_bwd,
        reference=lambda dout, x: 2 * dout.double(),
        **_COMMON,
    ),
    tuple(
        OnCpu(way, f"trust.rows:{way}_fwd", f"trust.rows:{way}_bwd", lambda *_: None, auto_on=("cpu",))
        for way in ("cuda", "triton")
    ),
)
OPS.pop(NAME)  # other tests read every row of the table
