"""The second pass of the deterministic attention backward: dq by query blocks.

Mathematics.  dQ = softmax_scale * dS K, dS = P * (dP - delta), P and dP as in attention_bwd.py, computed again.

Contract.  One program computes BLOCK_M rows of dq of one head and is the only one that writes them: bitwise
reproducible.  It walks the keys as the forward does, and reads dout and lse_delta besides.  Fully masked rows
and packed tokens of no sequence get zeros.

Cost.  3 products, 1.5 x the forward's flop, two of them a second time: what reproducible bits cost.  No atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import LOG2E, UNSPECIALIZED, last_key, masked
from .attention_tiles import fill_uncovered, first_pair, first_token, load_tile, sequence, store_tile
from .dropout import frag_mask, log_keep_scale


@triton.jit
def lowered(lse, THRESHOLD: tl.constexpr, FOLD_SCALE: tl.constexpr):
    """What `probabilities` subtracts for rows of this softmax_lse: +inf for those that are fully masked."""
    lse = tl.where(lse == float("-inf"), float("inf"), lse) - log_keep_scale(THRESHOLD)
    if FOLD_SCALE:
        return lse * LOG2E
    else:
        return lse


@triton.jit
def probabilities(s, lse, softmax_scale, FOLD_SCALE: tl.constexpr):
    """keep_scale * exp(scaled s - softmax_lse), lse being `lowered`; 0 where the score is -inf or lse +inf."""
    if FOLD_SCALE:
        return tl.exp2(s * (softmax_scale * LOG2E) - lse)
    else:
        return tl.exp2((s - lse) * LOG2E)


@triton.jit
def score_gradient(p, kept, dp, delta, THRESHOLD: tl.constexpr):
    """dS.  p and kept: P and what dropout leaves of it, times keep_scale; dp: dout V^T; delta: divided by keep_scale.

    One selection for each element, that of kept: a second would hold a predicate for each of them in registers.
    """
    if THRESHOLD > 0:
        return kept * dp - p * delta
    else:
        return p * (dp - delta)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "head_blocks"))
def attention_bwd_dq_kernel(
    dq,
    dout,
    q,
    k,
    v,
    lse_delta,
    attn_bias,
    seqused_k,
    cu_seqlens_q,
    cu_seqlens_k,
    rng_state,
    stride_ob,
    stride_om,
    stride_oh,
    stride_qb,
    stride_qm,
    stride_qh,
    stride_kb,
    stride_kn,
    stride_kh,
    stride_vb,
    stride_vn,
    stride_vh,
    stride_bb,
    stride_bh,
    stride_bm,
    stride_bn,
    num_heads,
    max_seqlen_q,
    max_seqlen_k,
    total_q,
    total_k,
    softmax_scale,
    window_left,
    window_right,
    head_blocks,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    GROUP: tl.constexpr,
    FOLD_SCALE: tl.constexpr,
    KEY_MASK: tl.constexpr,
    WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIR_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dq of BLOCK_M rows of one head; walks the keys as the forward does."""
    blocks = tl.cdiv(max_seqlen_q, BLOCK_M)
    head = tl.program_id(0) // blocks
    m0 = tl.program_id(0) % blocks * BLOCK_M
    if WINDOW:
        m0 = (blocks - 1) * BLOCK_M - m0
    b = head // num_heads
    h = head % num_heads
    first_q, n_q = sequence(b, max_seqlen_q, cu_seqlens_q, total_q)
    if cu_seqlens_q is not None:
        if m0 == 0:
            batch = tl.num_programs(0) // blocks // num_heads
            fill_uncovered(
                dq + h * HEAD_DIM,
                num_heads * HEAD_DIM,
                b,
                batch,
                first_q,
                n_q,
                cu_seqlens_q,
                total_q,
                0.0,
                0.0,
                HEAD_DIM,
                BLOCK_D,
            )
    if m0 >= n_q:
        return
    first_k, n_k = sequence(b, max_seqlen_k, cu_seqlens_k, total_k)
    shift = 0
    if cu_seqlens_q is not None:
        shift = n_k - n_q
    q = first_token(q, b, h, first_q, stride_qb, stride_qm, stride_qh, cu_seqlens_q) + m0.to(tl.int64) * stride_qm
    dout = first_token(dout, b, h, first_q, stride_ob, stride_om, stride_oh, cu_seqlens_q) + m0.to(tl.int64) * stride_om
    k = first_token(k, b, h // GROUP, first_k, stride_kb, stride_kn, stride_kh, cu_seqlens_k)
    v = first_token(v, b, h // GROUP, first_k, stride_vb, stride_vn, stride_vh, cu_seqlens_k)
    lse_delta += first_pair(head, h, b, first_q, head_blocks, cu_seqlens_q, PAIR_ROWS) + 2 * m0
    if seqused_k is not None:
        n_k = tl.minimum(n_k, tl.load(seqused_k + b))
    if attn_bias is not None:
        attn_bias += b.to(tl.int64) * stride_bb + h.to(tl.int64) * stride_bh
        if KEY_MASK:
            n_k = last_key(attn_bias, stride_bn, n_k)
        else:
            attn_bias += m0.to(tl.int64) * stride_bm
    if THRESHOLD > 0:
        seed = tl.load(rng_state)
        rng_offset = tl.load(rng_state + 1)

    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    row_ok = offs_m < n_q - m0
    q_tile = load_tile(q, stride_qm, offs_m, n_q - m0, HEAD_DIM, BLOCK_D)
    do_tile = load_tile(dout, stride_om, offs_m, n_q - m0, HEAD_DIM_V, BLOCK_DV)
    lse = tl.load(lse_delta + 2 * offs_m, mask=row_ok, other=float("inf"))[:, None]
    delta = tl.load(lse_delta + 2 * offs_m + 1, mask=row_ok, other=0.0)[:, None]
    lo = 0
    if WINDOW:
        lo = tl.maximum(m0 + shift - window_left, 0) // BLOCK_N * BLOCK_N
        n_k = tl.minimum(n_k, tl.minimum(m0 + BLOCK_M, n_q) + shift + window_right)
        k += lo.to(tl.int64) * stride_kn
        v += lo.to(tl.int64) * stride_vn
        if attn_bias is not None:
            attn_bias += lo.to(tl.int64) * stride_bn
    dq_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n0 in range(lo, n_k, BLOCK_N):
        k_tile = load_tile(k, stride_kn, offs_n, n_k - n0, HEAD_DIM, BLOCK_D)
        v_tile = load_tile(v, stride_vn, offs_n, n_k - n0, HEAD_DIM_V, BLOCK_DV)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
        if not FOLD_SCALE:
            s *= softmax_scale
        s = masked(
            s,
            attn_bias,
            stride_bm,
            stride_bn,
            row_ok,
            m0 + shift,
            n0,
            n_k,
            window_left,
            window_right,
            KEY_MASK,
            WINDOW,
            BLOCK_M,
            BLOCK_N,
        )
        if attn_bias is not None:
            attn_bias += BLOCK_N * stride_bn
        p = probabilities(s, lse, softmax_scale, FOLD_SCALE)
        kept = p
        if THRESHOLD > 0:
            kept = tl.where(frag_mask(seed, rng_offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N), p, 0.0)
        ds = score_gradient(p, kept, dp, delta, THRESHOLD).to(k_tile.dtype)
        dq_acc = tl.dot(ds, k_tile, dq_acc, input_precision=PRECISION)
        k += BLOCK_N * stride_kn
        v += BLOCK_N * stride_vn
    dq += ((first_q + m0) * num_heads + h) * HEAD_DIM
    store_tile(dq, num_heads * HEAD_DIM, offs_m, n_q - m0, dq_acc * softmax_scale, HEAD_DIM, BLOCK_D)
