"""Attention backward, padded and packed (varlen), in one kernel family.

Mathematics.  With P = exp(S - lse), Z = keep / (1 - p_hat) and dP = Z * (dout V^T):
dV = (Z * P)^T dout;  delta = rowsum(dout * out) = rowsum(P * dP);  dS = P * (dP - delta);
dQ = softmax_scale * dS K;  dK = softmax_scale * dS^T Q.  P is computed again from q, k and softmax_lse.
(Dao, "FlashAttention-2", 2023, section 3.1.2.)

Contract.  dq, dk, dv are contiguous and wholly written; the inputs are read by strides, last dims contiguous.  Fully
masked rows, keys that no query sees and packed tokens of no sequence get zeros.  Three ways:
- one block holds every key: one kernel writes all three, delta is summed inside; out is not read.
- else: delta is computed first, then a program per key block writes its dk and dv and adds its share of dq in fp32 by
  atomics (the order of those additions, and so the last bits of dq, vary from run to run).
- deterministic: the same without dq, which a third kernel computes by query blocks.  Every result is bitwise
  reproducible.
Where heads are grouped, the program of a key head walks through its query heads itself: dk and dv need no atomics.

Cost.  2.5 x the forward's flop (deterministic: 3.5 x); reads q, dout (and out) once and again per key block from L2,
k and v once; writes dk, dv, dq (with atomics: 4 bytes an element and key block, mostly in L2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import (
    UNSPECIALIZED,
    bias_strides,
    biased,
    folds_scale,
    last_key,
    shows,
    strides,
    visible_only,
    window_limits,
)
from .attention_bwd_dq import attention_bwd_dq_kernel, load_lse, probabilities
from .attention_config import config, costs_registers, power_of_two
from .attention_tiles import fill_uncovered, first_row, first_token, load_tile, sequence, store_tile
from .device import arch_of, precision_of
from .dropout import dropout_threshold, frag_mask, keep_scale

DQ_NONE = tl.constexpr(0)  # another kernel computes dq
DQ_ATOMIC = tl.constexpr(1)  # dq is fp32 zeros, added to by every key block
DQ_DIRECT = tl.constexpr(2)  # this program sees every key: it alone writes dq


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attention_bwd_delta_kernel(
    delta, out, dout, cu_seqlens_q, stride_ob, stride_om, stride_oh, num_heads, max_seqlen_q, total_q,
    HEAD_DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dout * out) of BLOCK_M rows of one head; strides are those of dout."""
    blocks = tl.cdiv(max_seqlen_q, BLOCK_M)
    head = tl.program_id(0) // blocks
    m0 = tl.program_id(0) % blocks * BLOCK_M
    b = head // num_heads
    h = head % num_heads
    first_q, n_q = sequence(b, max_seqlen_q, cu_seqlens_q, total_q)
    if m0 >= n_q:
        return
    dout = first_token(dout, b, h, first_q, stride_ob, stride_om, stride_oh, cu_seqlens_q) + m0.to(tl.int64) * stride_om
    delta += first_row(head, h, first_q, max_seqlen_q, total_q, cu_seqlens_q)
    offs_m = tl.arange(0, BLOCK_M)
    out += ((first_q + m0) * num_heads + h) * HEAD_DIM_V
    o_tile = load_tile(out, num_heads * HEAD_DIM_V, offs_m, n_q - m0, HEAD_DIM_V, BLOCK_DV).to(tl.float32)
    do_tile = load_tile(dout, stride_om, offs_m, n_q - m0, HEAD_DIM_V, BLOCK_DV).to(tl.float32)
    tl.store(delta + m0 + offs_m, tl.sum(o_tile * do_tile, 1), mask=offs_m < n_q - m0)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attention_bwd_dkdv_kernel(
    dq, dk, dv, dout, q, k, v, delta, softmax_lse, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state,
    stride_ob, stride_om, stride_oh, stride_qb, stride_qm, stride_qh, stride_kb, stride_kn, stride_kh,
    stride_vb, stride_vn, stride_vh, stride_bb, stride_bh, stride_bm, stride_bn,
    num_heads, max_seqlen_q, max_seqlen_k, total_q, total_k, softmax_scale, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    GROUP: tl.constexpr, FOLD_SCALE: tl.constexpr, KEY_MASK: tl.constexpr, WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr, DQ: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N keys of one key head, and what those keys contribute to dq."""
    blocks = tl.cdiv(max_seqlen_k, BLOCK_N)
    if DQ == DQ_DIRECT:
        blocks = 1  # also where there is no key at all
    n0 = tl.program_id(0) % blocks * BLOCK_N
    b = tl.program_id(0) // blocks // (num_heads // GROUP)
    hk = tl.program_id(0) // blocks % (num_heads // GROUP)
    first_k, len_k = sequence(b, max_seqlen_k, cu_seqlens_k, total_k)
    heads_k = num_heads // GROUP
    if cu_seqlens_k is not None:
        if n0 == 0:
            batch = tl.num_programs(0) // blocks // heads_k
            fill_uncovered(
                dk + hk * HEAD_DIM, heads_k * HEAD_DIM, b, batch, first_k, len_k, cu_seqlens_k, total_k, 0.0, 0.0,
                HEAD_DIM, BLOCK_D,
            )  # fmt: skip
            fill_uncovered(
                dv + hk * HEAD_DIM_V, heads_k * HEAD_DIM_V, b, batch, first_k, len_k, cu_seqlens_k, total_k, 0.0, 0.0,
                HEAD_DIM_V, BLOCK_DV,
            )  # fmt: skip
    if DQ != DQ_DIRECT:  # the only key block of a sequence without keys still writes the zeros of dq
        if n0 >= len_k:
            return
    first_q, n_q = sequence(b, max_seqlen_q, cu_seqlens_q, total_q)
    if DQ == DQ_DIRECT:
        if cu_seqlens_q is not None:
            for g in range(GROUP):
                fill_uncovered(
                    dq + (hk * GROUP + g) * HEAD_DIM, num_heads * HEAD_DIM, b, tl.num_programs(0) // heads_k, first_q,
                    n_q, cu_seqlens_q, total_q, 0.0, 0.0, HEAD_DIM, BLOCK_D,
                )  # fmt: skip
    shift = 0
    if cu_seqlens_q is not None:
        shift = len_k - n_q
    k = first_token(k, b, hk, first_k, stride_kb, stride_kn, stride_kh, cu_seqlens_k)
    v = first_token(v, b, hk, first_k, stride_vb, stride_vn, stride_vh, cu_seqlens_k)
    n_k = len_k
    if seqused_k is not None:
        n_k = tl.minimum(n_k, tl.load(seqused_k + b))
    if attn_bias is not None:
        if KEY_MASK:  # what the padding holds is not read: 0 * NaN would reach dq and dk
            used = 0
            for g in range(GROUP):
                row = attn_bias + b.to(tl.int64) * stride_bb + (hk * GROUP + g).to(tl.int64) * stride_bh
                used = tl.maximum(used, last_key(row, stride_bn, n_k))
            n_k = used
    if THRESHOLD > 0:
        seed = tl.load(rng_state)
        rng_offset = tl.load(rng_state + 1)

    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    cols = n0 + offs_n
    cols = cols[:, None] if TRANSPOSED else cols[None, :]
    k_tile = load_tile(k + n0.to(tl.int64) * stride_kn, stride_kn, offs_n, n_k - n0, HEAD_DIM, BLOCK_D)
    v_tile = load_tile(v + n0.to(tl.int64) * stride_vn, stride_vn, offs_n, n_k - n0, HEAD_DIM_V, BLOCK_DV)
    dk_acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_acc = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for g in range(GROUP):
        h = hk * GROUP + g
        head = b * num_heads + h
        lo = 0
        hi = n_q
        if DQ != DQ_DIRECT:  # query blocks that see none of these keys
            if WINDOW:
                lo = tl.maximum(n0 - shift - window_right, 0) // BLOCK_M * BLOCK_M
                hi = tl.minimum(hi, n0 + BLOCK_N - shift + window_left)
            hi = tl.where(n0 < n_k, hi, 0)
        lo64 = (n0 * 0 + lo).to(tl.int64)
        q_ptr = first_token(q, b, h, first_q, stride_qb, stride_qm, stride_qh, cu_seqlens_q) + lo64 * stride_qm
        do_ptr = first_token(dout, b, h, first_q, stride_ob, stride_om, stride_oh, cu_seqlens_q) + lo64 * stride_om
        row0 = first_row(head, h, first_q, max_seqlen_q, total_q, cu_seqlens_q) + lo
        lse_ptr = softmax_lse + row0
        dq_ptr = dq
        delta_ptr = delta
        if DQ != DQ_NONE:
            dq_ptr = dq + ((first_q + lo) * num_heads + h) * HEAD_DIM
        if DQ != DQ_DIRECT:
            delta_ptr = delta + row0
        bias_ptr = attn_bias
        if attn_bias is not None:
            bias_ptr = attn_bias + b.to(tl.int64) * stride_bb + h.to(tl.int64) * stride_bh
            bias_ptr += n0.to(tl.int64) * stride_bn + lo64 * stride_bm
            if KEY_MASK:
                key_bias = tl.load(bias_ptr + offs_n * stride_bn, mask=offs_n < n_k - n0, other=0)
                if DQ != DQ_DIRECT:
                    seen = (shows(key_bias) & (offs_n < n_k - n0)).to(tl.int32)
                    hi = tl.where(tl.max(seen, 0) > 0, hi, 0)
                key_bias = key_bias[:, None] if TRANSPOSED else key_bias[None, :]

        for m0 in range(lo, hi, BLOCK_M):
            left = n_q - m0
            row_ok = offs_m < left
            q_tile = load_tile(q_ptr, stride_qm, offs_m, left, HEAD_DIM, BLOCK_D)
            do_tile = load_tile(do_ptr, stride_om, offs_m, left, HEAD_DIM_V, BLOCK_DV)
            lse = load_lse(lse_ptr + offs_m, row_ok)
            if TRANSPOSED:  # [BLOCK_N, BLOCK_M]
                s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
                dp = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION)
                lse = lse[None, :]
                rows = (m0 + shift + offs_m)[None, :]
            else:  # [BLOCK_M, BLOCK_N]
                s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
                dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
                lse = lse[:, None]
                rows = (m0 + shift + offs_m)[:, None]
            if not FOLD_SCALE:
                s *= softmax_scale
            if attn_bias is not None:
                if KEY_MASK:
                    s = biased(s, key_bias)
                elif TRANSPOSED:
                    ptr = bias_ptr + offs_n[:, None] * stride_bn + offs_m[None, :] * stride_bm
                    s = biased(s, tl.load(ptr, mask=(cols < n_k) & row_ok[None, :], other=0))
                else:
                    ptr = bias_ptr + offs_m[:, None] * stride_bm + offs_n[None, :] * stride_bn
                    s = biased(s, tl.load(ptr, mask=(cols < n_k) & row_ok[:, None], other=0))
            partial = n0 + BLOCK_N > n_k
            if WINDOW:
                partial |= (n0 + BLOCK_N > m0 + shift + window_right) | (n0 < m0 + BLOCK_M + shift - window_left)
            if partial:
                s = visible_only(s, rows, cols, n_k, window_left, window_right, WINDOW)
            p = probabilities(s, lse, softmax_scale, FOLD_SCALE)
            kept = p
            if THRESHOLD > 0:
                keep = frag_mask(seed, rng_offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N)
                if TRANSPOSED:
                    keep = tl.trans(keep)
                kept = tl.where(keep, p, 0.0)
                dp = tl.where(keep, dp * keep_scale(THRESHOLD), 0.0)
            kept = kept.to(do_tile.dtype)
            dv_acc = tl.dot(kept if TRANSPOSED else tl.trans(kept), do_tile, dv_acc, input_precision=PRECISION)
            if DQ == DQ_DIRECT:
                row_delta = tl.sum(p * dp, 0 if TRANSPOSED else 1)
            else:
                row_delta = tl.load(delta_ptr + offs_m, mask=row_ok, other=0.0)
            row_delta = row_delta[None, :] if TRANSPOSED else row_delta[:, None]
            ds = (p * (dp - row_delta)).to(q_tile.dtype)
            dk_acc = tl.dot(ds if TRANSPOSED else tl.trans(ds), q_tile, dk_acc, input_precision=PRECISION)
            if DQ != DQ_NONE:
                dq_tile = tl.dot(tl.trans(ds) if TRANSPOSED else ds, k_tile, input_precision=PRECISION) * softmax_scale
                if DQ == DQ_DIRECT:
                    store_tile(dq_ptr, num_heads * HEAD_DIM, offs_m, left, dq_tile, HEAD_DIM, BLOCK_D)
                else:
                    offs_d = tl.arange(0, BLOCK_D)
                    ptr = dq_ptr + offs_m[:, None] * (num_heads * HEAD_DIM) + offs_d[None, :]
                    tl.atomic_add(ptr, dq_tile, mask=row_ok[:, None] & (offs_d[None, :] < HEAD_DIM), sem="relaxed")
                dq_ptr += BLOCK_M * num_heads * HEAD_DIM
            q_ptr += BLOCK_M * stride_qm
            do_ptr += BLOCK_M * stride_om
            lse_ptr += BLOCK_M
            if DQ != DQ_DIRECT:
                delta_ptr += BLOCK_M
            if attn_bias is not None:
                bias_ptr += BLOCK_M * stride_bm

    dk += ((first_k + n0) * heads_k + hk) * HEAD_DIM
    dv += ((first_k + n0) * heads_k + hk) * HEAD_DIM_V
    store_tile(dk, heads_k * HEAD_DIM, offs_n, len_k - n0, dk_acc * softmax_scale, HEAD_DIM, BLOCK_D)
    store_tile(dv, heads_k * HEAD_DIM_V, offs_n, len_k - n0, dv_acc * keep_scale(THRESHOLD), HEAD_DIM_V, BLOCK_DV)


def attention_bwd(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    attn_bias: Tensor | None,
    seqused_k: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    rng_state: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    dropout_p: float,
    window_left: int,
    window_right: int,
    deterministic: bool,
) -> None:
    """Gradients of attention_fwd with respect to q, k and v.

    Args:
        dq, dk, dv: contiguous, shaped as q, k, v; written.
        dout: gradient of out, any strides.
        out, softmax_lse: what attention_fwd wrote.
        deterministic: bitwise the same on every run, at the price of computing the scores twice.
    """
    varlen = cu_seqlens_q is not None
    num_heads, head_dim, head_dim_v = q.shape[-2], q.shape[-1], v.shape[-1]
    heads_k = k.shape[-2]
    batch = cu_seqlens_q.shape[0] - 1 if cu_seqlens_q is not None else q.shape[0]
    if dout.stride(-1) != 1:
        dout = dout.contiguous()
    bias = bias_strides(attn_bias)
    window = window_left >= 0 or window_right >= 0
    size = (max(head_dim, head_dim_v), q.element_size(), arch_of(q.device), max_seqlen_q, max_seqlen_k)
    wide_mask = window or bias[2] != 0
    masked = costs_registers(size[0], size[2], wide_mask, attn_bias is not None, dropout_p > 0)
    tile = config("dkdv", *size, masked=masked)
    blocks_k = triton.cdiv(max_seqlen_k, tile.block_n)
    if batch == 0 or max_seqlen_q == 0:
        for grad in (dq, dk, dv):
            grad.zero_()
        return
    limits = window_limits(window_left, window_right)
    shape = (num_heads, max_seqlen_q, max_seqlen_k, q.shape[0], k.shape[0], softmax_scale, *limits)
    by_stride = (*strides(dout, varlen), *strides(q, varlen), *strides(k, varlen), *strides(v, varlen), *bias)
    masks = (attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state)
    constants = {
        "HEAD_DIM": head_dim, "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": power_of_two(head_dim), "BLOCK_DV": power_of_two(head_dim_v), "GROUP": num_heads // heads_k,
        "FOLD_SCALE": folds_scale(attn_bias, softmax_scale), "KEY_MASK": bias[2] == 0,
        "WINDOW": window, "THRESHOLD": dropout_threshold(dropout_p),
        "PRECISION": precision_of(q),
    }  # fmt: skip

    if blocks_k <= 1:
        mode, delta, dq_sum = DQ_DIRECT.value, None, dq
    else:
        mode = DQ_NONE.value if deterministic else DQ_ATOMIC.value
        delta = torch.empty_like(softmax_lse)
        rows = min(64 if head_dim_v <= 64 else 32, power_of_two(max_seqlen_q))
        attention_bwd_delta_kernel[(batch * num_heads * triton.cdiv(max_seqlen_q, rows),)](
            delta, out, dout, cu_seqlens_q, *strides(dout, varlen), num_heads, max_seqlen_q, q.shape[0],
            HEAD_DIM_V=head_dim_v, BLOCK_DV=power_of_two(head_dim_v), BLOCK_M=rows, num_warps=4,
        )  # fmt: skip
        dq_sum = dq
        if mode == DQ_ATOMIC.value:
            dq_sum = dq.zero_() if dq.dtype == torch.float32 else torch.zeros_like(dq, dtype=torch.float32)
    attention_bwd_dkdv_kernel[(batch * heads_k * max(blocks_k, 1),)](
        dq_sum, dk, dv, dout, q, k, v, delta, softmax_lse, *masks, *by_stride, *shape, **constants,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, TRANSPOSED=tile.transposed, DQ=mode,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )  # fmt: skip
    if dq_sum is not dq:
        dq.copy_(dq_sum)
    if mode == DQ_NONE.value:
        tile = config("dq", *size, masked=masked)
        attention_bwd_dq_kernel[(batch * num_heads * triton.cdiv(max_seqlen_q, tile.block_m),)](
            dq, dout, q, k, v, delta, softmax_lse, *masks, *by_stride, *shape, **constants,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
        )  # fmt: skip
