"""How fasttx decides that a result is right. Tests, ``doctor``, ``verify`` and the benchmarks use this one rule.

A result is compared with float64 row by row. A row is what lies along the last dimension; a tensor of one dimension or
none is one row. In every row r

    max|out_r - ref_r| <= 2 max(E_r, E size_r / size) + floor size_r + floor32 size + step

where E_r is the largest error of PyTorch's own operators in that row, in the same dtype, and E the largest of all rows;
size = max|ref| and size_r = max(max|ref_r|, size / 16). Nothing in it is absolute: a result of small numbers is held to
their size, and a row of small numbers beside large ones to its own.

- floor is :data:`FLOOR`, about one rounding of the dtype.
- floor32 is that of float32, in which kernels compute (of float64, in that dtype). It covers what may be left in a
  small row where numbers as large as those of the largest row cancelled.
- step is :data:`STEP`, the distance of the smallest numbers of a dtype, below which it cannot tell numbers apart.

An operator that computes each element in float32 and rounds it once is held to the rule element by element (`by` =
"element"): size_r is then |ref| of the element, however small. In the gradient of a cross-entropy of 30,000 classes,
one element of a row is 30,000 times as large as the others. The result of a whole model is one row ("tensor"), because
every row of it has the errors of all layers.

Within :func:`poisoned_outputs` every number that a kernel does not write is NaN, which no bound allows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .ops import dispatch

__all__ = [
    "assert_as_accurate",
    "compare",
    "error",
    "nearest",
    "poisoned_outputs",
    "row_bounds",
    "row_errors",
    "share_of_bound",
]

FLOOR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12, torch.int8: 0.0}
"""Added to the bound, per unit of a row's size: one rounding of that dtype (fp32: sixteen). Integers are exact."""

STEP = {torch.float32: 1.2e-38, torch.float16: 6e-8, torch.bfloat16: 1.2e-38, torch.float64: 2.3e-308, torch.int8: 0.0}
"""Added to the bound: fp16's smallest number; the smallest normal one of the others, as devices may flush the rest."""

LEAST_ROW = 2.0**-4
"""A row counts as at least so large beside the largest row of its tensor."""


class Compared(NamedTuple):
    """How near a tensor is to float64, in the row that is nearest to its bound.

    Attributes:
        error: largest error of the tested result.
        same_error: largest error of PyTorch's own operators in the same dtype.
        allowed: the bound on `error`.
    """

    error: float
    same_error: float
    allowed: float

    @property
    def share(self) -> float:
        """How much of the allowed error was made: at most 1 where it is accurate."""
        return share_of_bound(self.error, self.allowed)


By = Literal["row", "element", "tensor"]
"""What counts as a row."""


def _rows(x: Tensor, by: By) -> Tensor:
    """In float64 on the CPU, two-dimensional."""
    x = x.detach().double().cpu()
    if by == "element":
        return x.reshape(-1, 1)
    return x.reshape(-1, x.shape[-1]) if by == "row" and x.dim() > 1 and x.numel() else x.reshape(1, -1)


def _largest(rows: Tensor) -> Tensor:
    return rows.amax(-1) if rows.numel() else rows.new_zeros(1)


def row_errors(out: Tensor, ref64: Tensor, by: By = "row") -> Tensor:
    """max|out - ref64| of each row in float64; infinite where the two differ in what is NaN or infinite."""
    x, ref = _rows(out, by), _rows(ref64, by)
    finite = ref.isfinite()
    apart = (x - ref).abs().where(finite, (x != ref) & ~(x.isnan() & ref.isnan()))
    return _largest(apart.where(~finite | x.isfinite(), torch.inf).where(finite | (apart == 0), torch.inf))


def row_bounds(
    same_dtype: Tensor, ref64: Tensor, dtype: torch.dtype, *, least: float | Tensor = 0.0, by: By = "row"
) -> Tensor:
    """The bound of each row, 2 max(E_r, E size_r / size) + floor size_r + floor32 size + step, as the module explains.

    Args:
        same_dtype: PyTorch's own result.
        ref64: the reference, in float64.
        dtype: of the tested result.
        least: the least size of a row, one number or one a row. Give the size of the terms for gradients in which terms
            cancel, so that their rounding is left.
        by: what counts as a row.
    """
    ref = _rows(ref64, by)
    own = _largest(ref.where(ref.isfinite(), 0.0).abs())
    terms = torch.as_tensor(least).double().cpu().reshape(-1)
    sizes = own.maximum(terms) if terms.numel() else own  # there is no row
    size = float(sizes.max())
    if by != "element":
        sizes = sizes.clamp(min=LEAST_ROW * size)
    errors = row_errors(same_dtype, ref64, by)
    finite = errors.where(errors.isfinite(), 0.0)
    typical = float(finite.max()) / size if size > 0.0 else 0.0
    own_error = 2.0 * errors.maximum(typical * sizes)
    return own_error + FLOOR[dtype] * sizes + min(FLOOR[dtype], FLOOR[torch.float32]) * size + STEP[dtype]


def error(out: Tensor, ref64: Tensor) -> float:
    """max|out - ref64| in float64; infinite if the two differ in where they are NaN or infinite."""
    return float(row_errors(out, ref64).max())


def share_of_bound(found: float, allowed: float) -> float:
    """How much of the allowed error was made: at most 1 where it is accurate."""
    if found == allowed:  # both infinite, or both 0
        return 1.0 if found > 0.0 else 0.0
    return found / allowed if allowed > 0.0 else float("inf")


def compare(
    out: Tensor,
    same_dtype: Tensor,
    ref64: Tensor,
    *,
    dtype: torch.dtype | None = None,
    least: float | Tensor = 0.0,
    by: By = "row",
) -> Compared:
    """The row of `out` that is nearest to its bound; arguments as those of :func:`row_bounds`."""
    bounds = row_bounds(same_dtype, ref64, dtype or out.dtype, least=least, by=by)
    return nearest(row_errors(out, ref64, by), row_errors(same_dtype, ref64, by), bounds)


def nearest(errors: Tensor, same_errors: Tensor, bounds: Tensor) -> Compared:
    """The row that is nearest to its bound, of three numbers a row."""
    shares = (errors / bounds).where(bounds > 0.0, torch.inf).where(errors != bounds, (errors > 0.0).double())
    row = int(shares.argmax())
    return Compared(float(errors[row]), float(same_errors[row]), float(bounds[row]))


def assert_as_accurate(
    out: Tensor, same_dtype: Tensor, ref64: Tensor, name: str = "out", *, least: float | Tensor = 0.0, by: By = "row"
) -> None:
    """Asserts that a result keeps to the rule of this module.

    Args:
        out: the tested result; its dtype sets the floor.
        same_dtype: PyTorch's own result, computed in the dtype of `out`.
        ref64: the reference, computed in float64.
        name: what the message calls the result.
        least: the least size of a row, one number or one a row. Give the size of the terms for gradients in which terms
            cancel, so that their rounding is left.
        by: what counts as a row.

    Raises:
        AssertionError: shape or dtype differ, a NaN or infinity stands where none belongs, or the error is larger than
            the bound.
    """
    assert out.shape == ref64.shape, f"{name}: got shape {tuple(out.shape)}; allowed is {tuple(ref64.shape)}"
    assert out.dtype == same_dtype.dtype, f"{name}: got {out.dtype}; allowed is {same_dtype.dtype}"
    found, _, allowed = compare(out, same_dtype, ref64, least=least, by=by)
    assert found <= allowed, f"{name} ({out.dtype}): max error {found:.3e} against float64, allowed {allowed:.3e}"


# ------------------------------------------------------------------------------------------------------------- poison

_EMPTY = (
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
)


class _FillsEmpty(TorchDispatchMode):
    """Memory that nobody has written holds NaN, and the lowest integer."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in _EMPTY:
            if found.is_floating_point():
                found.fill_(torch.nan)
            elif found.dtype != torch.bool:
                found.fill_(torch.iinfo(found.dtype).min)
        return found


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Fills the results and buffers of every operator of the table with NaN before it runs, on every backend.

    So a tile that a kernel leaves out shows, and does not hold what the same call left in that memory before. Holds for
    the whole process, all its threads, until the block ends. Blocks may be nested, and end in any order.
    """
    around: Callable[[], contextlib.AbstractContextManager[Any]] = _FillsEmpty
    dispatch.around.append(around)
    try:
        yield
    finally:
        dispatch.around.remove(around)
