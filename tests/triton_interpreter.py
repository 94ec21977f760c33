"""Repairs to Triton's CPU interpreter (TRITON_INTERPRET=1), for tests only: bf16 arithmetic, casts and run-time ranges.

Without them bf16 products multiply raw bits, casts truncate, and `range(n)` over a kernel argument fails with numpy >= 2.4.
"""
import numpy as np
import triton.language as tl
from triton.runtime import interpreter as it


def _bf16_to_f32(u16):
    return (u16.astype(np.uint32) << 16).view(np.float32)


def _f32_to_bf16(f32):
    """round to nearest even, NaN kept a NaN"""
    f32 = np.ascontiguousarray(f32, dtype=np.float32)
    u = f32.view(np.uint32)
    r = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(f32), np.uint16(0x7FC0), r)


def repair() -> None:
    """Patches the interpreter in place; call it once, before any kernel runs."""
    # 1. triton 3.6.0 + numpy >= 2.4: int(array([n])) raises; 3.9.0 already squeezes.
    orig = it._patch_lang_tensor

    def patched(tensor, scope, *a, **k):
        orig(tensor, scope, *a, **k)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))
    it._patch_lang_tensor = patched

    B = it.InterpreterBuilder  # noqa: N806
    TH = it.TensorHandle  # noqa: N806

    # 2. bf16 lives in uint16 arrays and create_dot multiplies the raw bits.
    dot = B.create_dot

    def up(h):
        return TH(_bf16_to_f32(h.data), tl.float32) if h.dtype.scalar == tl.bfloat16 else h

    def create_dot(self, a, b, d, *rest):
        return dot(self, up(a), up(b), d, *rest)
    B.create_dot = create_dot

    # 3. casts to bf16 truncate (hardware rounds to nearest even); int <-> bf16 copies bits.
    cast = B.cast_impl

    def cast_impl(self, src, dst_type):
        s, d = src.dtype.scalar, dst_type.scalar
        if s == tl.bfloat16 and d != tl.bfloat16:
            src = up(src)
            return src if d == tl.float32 else cast(self, src, dst_type)
        if d == tl.bfloat16 and s != tl.bfloat16:
            return TH(_f32_to_bf16(src.data.astype(np.float32)), tl.bfloat16)
        return cast(self, src, dst_type)
    B.cast_impl = cast_impl
    fp2fp = B.create_fp_to_fp

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        names = {src.dtype.scalar.name, dst_type.scalar.name}
        if "bf16" in names and names <= {"bf16", "fp32", "fp16", "fp64"} and rounding_mode in (None, it._ir.ROUNDING_MODE.RTNE):
            return self.cast_impl(src, dst_type)
        return fp2fp(self, src, dst_type, rounding_mode)
    B.create_fp_to_fp = create_fp_to_fp

    # 4. arithmetic and comparison on bf16 without .to(tl.float32) works on raw bits.
    binop = B.binary_op

    def binary_op(self, lhs, rhs, op):
        if lhs.dtype.scalar == tl.bfloat16 and op not in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            r = binop(self, up(lhs), up(rhs), op)
            return r if r.data.dtype == np.bool_ else TH(_f32_to_bf16(r.data), tl.bfloat16)
        return binop(self, lhs, rhs, op)
    B.binary_op = binary_op
