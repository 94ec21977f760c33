"""Repairs to Triton's CPU interpreter (TRITON_INTERPRET=1): bf16 arithmetic, casts and run-time ranges.

Without them bf16 products multiply raw bits, casts to bf16 truncate, and `range(n)` over a kernel argument fails with
numpy >= 2.4.  Used by the tests and by ``python -m fasttx doctor``, where no GPU is at hand; no kernel needs it on one.
Import this module only where TRITON_INTERPRET=1 stands in the environment already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_done = False


def _bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Rounds to nearest even, as the hardware does; a NaN stays one."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _widened(handle: Any) -> Any:
    """A bf16 handle (held as uint16 bits) as fp32; any other as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle(_bf16_to_f32(handle.data), tl.float32)


def _narrowed(values: np.ndarray) -> Any:
    return interpreter.TensorHandle(_f32_to_bf16(values), tl.bfloat16)


def repair() -> None:
    """Patches the interpreter of this process in place; a second call does nothing."""
    global _done
    if _done:
        return
    _done = True
    builder = interpreter.InterpreterBuilder
    patch_tensor = interpreter._patch_lang_tensor
    dot, cast, fp_to_fp, binary = builder.create_dot, builder.cast_impl, builder.create_fp_to_fp, builder.binary_op

    def patched_tensor(tensor: Any, *scope: Any) -> None:
        """int(array([n])) raises from numpy 2.4 on; Triton 3.9 squeezes by itself, 3.4 has no scope to undo it by."""
        patch_tensor(tensor, *scope)
        set_attribute = scope[0].set_attr if scope else setattr
        set_attribute(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), d, *rest)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.bfloat16 and target != tl.bfloat16:
            src = _widened(src)
            return src if target == tl.float32 else cast(self, src, dst_type)
        if target == tl.bfloat16 and source != tl.bfloat16:
            return _narrowed(src.data.astype(np.float32))
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        names = {src.dtype.scalar.name, dst_type.scalar.name}
        to_nearest = rounding_mode in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if "bf16" in names and names <= {"bf16", "fp32", "fp16", "fp64"} and to_nearest:
            return self.cast_impl(src, dst_type)
        return fp_to_fp(self, src, dst_type, rounding_mode)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        bitwise = op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
        if lhs.dtype.scalar != tl.bfloat16 or bitwise:
            return binary(self, lhs, rhs, op)
        result = binary(self, _widened(lhs), _widened(rhs), op)
        return result if result.data.dtype == np.bool_ else _narrowed(result.data)

    interpreter._patch_lang_tensor = patched_tensor
    builder.create_dot = create_dot
    builder.cast_impl = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.binary_op = binary_op
