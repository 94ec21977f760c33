"""How fasttx decides that a result is right; used by the tests, by ``doctor``, ``verify`` and the benchmarks.

One rule: the largest error against float64 is at most twice the error that PyTorch's own operators make in the same
dtype, plus a small floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float64: 1e-12, torch.int8: 0.0}
"""Added to the bound, per unit of the largest reference value: about one rounding of that dtype (fp32: sixteen).
Integers must be equal."""


def error(out: Tensor, ref64: Tensor) -> float:
    """max|out - ref64| in float64; infinite if the two differ in where they are NaN or infinite."""
    out, ref64 = out.detach().double().cpu(), ref64.detach().double().cpu()
    finite = ref64.isfinite()
    if not torch.equal(out.isfinite(), finite):
        return float("inf")
    if not torch.equal(out[~finite].nan_to_num(nan=0.5), ref64[~finite].nan_to_num(nan=0.5)):
        return float("inf")
    return float((out[finite] - ref64[finite]).abs().max()) if bool(finite.any()) else 0.0


def bound(same_dtype: Tensor, ref64: Tensor, dtype: torch.dtype) -> float:
    """2 x max|same_dtype - ref64| + floor x max(1, max|ref64|), over finite entries (infinite ones must agree)."""
    finite = ref64.detach().double().cpu()
    finite = finite[finite.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return 2.0 * error(same_dtype, ref64) + FLOOR[dtype] * max(1.0, size)


def share_of_bound(found: float, allowed: float) -> float:
    """How much of the allowed error was made: at most 1 where it is accurate."""
    if found == allowed:  # both infinite, or both 0
        return 1.0 if found > 0.0 else 0.0
    return found / allowed if allowed > 0.0 else float("inf")


def assert_as_accurate(out: Tensor, same_dtype: Tensor, ref64: Tensor, name: str = "out") -> None:
    """The accuracy rule.

    Args:
        out: what is tested; its dtype sets the floor.
        same_dtype: PyTorch's own result, computed in the dtype of `out`.
        ref64: the reference, computed in float64.
        name: named in the message.

    Raises:
        AssertionError: shape or dtype differ, a NaN or infinity stands where none belongs, or the error is larger than
            the bound.
    """
    assert out.shape == ref64.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(ref64.shape)}"
    assert out.dtype == same_dtype.dtype, f"{name}: dtype {out.dtype}, expected {same_dtype.dtype}"
    found, allowed = error(out, ref64), bound(same_dtype, ref64, out.dtype)
    assert found <= allowed, f"{name} ({out.dtype}): max error {found:.3e} against float64, allowed {allowed:.3e}"
