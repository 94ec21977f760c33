"""Faults in the Triton kernels."""

from __future__ import annotations

from mutation import Mutation
from selections import (
    ATTENTION,
    BINARY,
    CROSS_ENTROPY,
    EMBEDDING,
    GELU,
    GELU_QUANTIZE,
    INT8,
    KL_DIV,
    LAYER_NORM,
    LINEAR,
    NORM_QUANTIZE,
    QUANTIZE,
    SOFTMAX,
)

TRITON = [
    Mutation(
        "kernels/softmax.py",
        "l_i = l_i * tl.exp(m_i - m_safe) + tl.sum(tl.exp(s - m_safe[:, None]), 1)",
        "l_i = l_i + tl.sum(tl.exp(s - m_safe[:, None]), 1)",
        SOFTMAX,
    ),
    Mutation("kernels/softmax.py", 'return tl.where(ok, s, float("-inf"))', "return s", SOFTMAX),
    Mutation(
        "kernels/softmax.py",
        "                keep = row_keep(rng_ptr, rows, start, TAG",
        "                keep = row_keep(rng_ptr, rows, 0, TAG",
        SOFTMAX,
    ),
    Mutation("kernels/softmax.py", "ds = out * (dout - total)", "ds = out * dout", SOFTMAX),
    Mutation(
        "kernels/cross_entropy.py",
        "edge_cols = tl.where(e < lead, e, e + middle)",
        "edge_cols = e",
        CROSS_ENTROPY,
    ),
    Mutation("kernels/cross_entropy.py", "read = read & (y != ignore_index)", "read = read", CROSS_ENTROPY),
    Mutation(
        "kernels/cross_entropy.py", "valid = first + offs < middle", "valid = first + offs <= middle", CROSS_ENTROPY
    ),
    Mutation(
        "kernels/cross_entropy_bwd.py",
        "d -= tl.where(edge_cols == y, at_label, 0.0)",
        "d -= 0.0",
        CROSS_ENTROPY,
    ),
    Mutation(
        "kernels/cross_entropy_bwd.py",
        "                a += per_class * tl.load(w_sum_ptr) if WEIGHTED else smoothing",
        "                a += smoothing",
        CROSS_ENTROPY,
    ),
    Mutation(
        "kernels/cross_entropy_bwd.py",
        "mask=written[:, None] & (cols < n_cols)",
        "mask=valid",
        CROSS_ENTROPY,
    ),
    Mutation(
        "kernels/binary_cross_entropy.py",
        "tl.sum(tl.where(offs < n, loss, 0.0), 0)",
        "tl.sum(loss, 0)",
        BINARY,
    ),
    Mutation(
        "kernels/binary_cross_entropy.py",
        "first = (tl.program_id(0) % period) * (offs.shape[0] % period) % period",
        "first = 0",
        BINARY,
    ),
    Mutation("kernels/kl_div.py", "return -t * (g * scale)", "return -t * g", KL_DIV),
    Mutation("kernels/kl_div.py", "    if LOG:\n        t = tl.exp(t)\n", "", KL_DIV),
    Mutation(
        "kernels/linear_cross_entropy.py",
        "w_acc += tl.where(y == ignore_index, 0.0, w_y)",
        "w_acc += w_y",
        LINEAR,
    ),
    Mutation(
        "kernels/linear_cross_entropy.py",
        "_add_product(dweight_sum, d.t(), x_rows, first == 0)",
        "_add_product(dweight_sum, d.t(), x_rows, True)",
        LINEAR,
    ),
    Mutation("kernels/attention.py", "acc * alpha[:, None]", "acc", ATTENTION),
    Mutation("kernels/attention.py", "tl.load(seqused_k + b)", "tl.load(seqused_k)", ATTENTION),
    Mutation("kernels/attention.py", "partial = n0 + BLOCK_N > n_k", "partial = n0 > n_k", ATTENTION),
    Mutation(
        "kernels/attention.py",
        "frag_mask(seed, rng_offset, head, m0, n0",
        "frag_mask(seed, rng_offset, h, m0, n0",
        ATTENTION,
    ),
    Mutation(
        "kernels/attention_bwd.py",
        "ds = (p * (dp - row_delta)).to(q_tile.dtype)",
        "ds = (p * dp).to(q_tile.dtype)",
        ATTENTION,
    ),
    Mutation(
        "kernels/attention_bwd.py",
        "hi = tl.minimum(hi, n0 + BLOCK_N - shift + window_left)",
        "hi = tl.minimum(hi, n0 + BLOCK_N - shift)",
        ATTENTION,
    ),
    Mutation("kernels/attention_bwd.py", "dv_acc * keep_scale(THRESHOLD)", "dv_acc", ATTENTION),
    Mutation("kernels/attention_bwd_dq.py", "dq_acc * softmax_scale", "dq_acc", ATTENTION),
    Mutation(
        "kernels/attention_bwd_dq.py",
        "dp = tl.where(keep, dp * keep_scale(THRESHOLD), 0.0)",
        "dp = dp * keep_scale(THRESHOLD)",
        ATTENTION,
    ),
    Mutation(
        "kernels/dropout.py", "(0, 5, 1, 2, 4, 7, 3, 6)", "(0, 5, 1, 2, 4, 7, 6, 3)", ("tests/ops/test_dropout.py",)
    ),
    Mutation(
        "kernels/dropout.py",
        "min(max(round(256.0 * dropout_p), 1), 255)",
        "min(round(256.0 * dropout_p), 255)",
        ("tests/ops/test_dropout.py",),
    ),
    Mutation(
        "kernels/row_dropout.py",
        "tl.join(tl.join(w0, w2), tl.join(w1, w3))",
        "tl.join(tl.join(w0, w1), tl.join(w2, w3))",
        ("tests/ops/test_row_dropout.py",),
    ),
    Mutation(
        "kernels/row_dropout.py",
        "numbers = tl.load(index_ptr + rows, mask=row_ok, other=0)",
        "numbers = rows",
        LAYER_NORM,
    ),
    Mutation(
        "kernels/dropout_add_layer_norm.py",
        "d = tl.where(col_ok[None, :], z - mean[:, None], 0.0)",
        "d = z - mean[:, None]",
        LAYER_NORM,
    ),
    Mutation(
        "kernels/dropout_add_layer_norm.py",
        "return (g - c2[:, None] - xhat * c1[:, None]) * rstd[:, None]",
        "return (g - xhat * c1[:, None]) * rstd[:, None]",
        LAYER_NORM,
    ),
    Mutation("kernels/dropout_add_layer_norm.py", "            pid += programs", "            pid += 1", LAYER_NORM),
    Mutation(
        "kernels/bias_gelu.py",
        "out = tl.where(keep, out * keep_scale, 0.0)",
        "out = tl.where(keep, out, 0.0)",
        GELU,
    ),
    Mutation("kernels/bias_gelu.py", "z * (2.0 * slope) * du", "z * slope * du", GELU),
    Mutation(
        "kernels/embedding_layer_norm.py",
        "ids = tl.load(ids_ptr + rows % period",
        "ids = tl.load(ids_ptr + rows // period",
        EMBEDDING,
    ),
    Mutation("kernels/embedding_layer_norm.py", "dtype1 += tl.where(types == 1, dz, 0.0)", "dtype1 += dz", EMBEDDING),
    Mutation(
        "kernels/int8_linear.py",
        "y = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]",
        "y = acc.to(tl.float32) * x_scale[:, None]",
        INT8,
    ),
    Mutation(
        "kernels/int8_linear.py",
        "first_m = pid // (GROUP * blocks_n) * GROUP",
        "first_m = pid // (GROUP * blocks_n)",
        INT8,
    ),
    Mutation("kernels/row_scale.py", 'size < float("inf"), size, float("inf")', "size == size, size, 0.0", QUANTIZE),
    Mutation("kernels/row_scale.py", "q = ((v + MAGIC) - MAGIC).to(tl.int8)", "q = v.to(tl.int8)", QUANTIZE),
    Mutation("kernels/quantize_per_token.py", "long_rows * stride_xm", "long_rows * n_cols", QUANTIZE),
    Mutation("kernels/quantize_per_token.py", "mask=ok, other=0.0", "mask=ok, other=1e9", QUANTIZE),
    Mutation(
        "kernels/add_layer_norm_quantize.py",
        "tl.where(col_ok[None, :], out.to(tl.float32), 0.0)",
        "out.to(tl.float32)",
        NORM_QUANTIZE,
    ),
    Mutation("kernels/add_layer_norm_quantize.py", ".to(out_ptr.dtype.element_ty)\n", "\n", NORM_QUANTIZE),
    Mutation("kernels/add_layer_norm_quantize.py", "long_rows * stride_rm", "long_rows * stride_xm", NORM_QUANTIZE),
    Mutation("kernels/bias_gelu_quantize.py", ".to(x_ptr.dtype.element_ty)", "", GELU_QUANTIZE),
    Mutation("kernels/bias_gelu_quantize.py", "long_rows * stride_xm", "long_rows * n_cols", GELU_QUANTIZE),
]
