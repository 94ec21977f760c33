"""Attention forward, padded and packed (varlen), in one kernel.

Mathematics.  S = softmax_scale * Q K^T (+ attn_bias, additive), -inf where masked; P = softmax(S) by rows, computed
online: m the running row maximum, l = sum exp(S - m), acc = sum exp(S - m) V.  out = dropout(P) V, softmax_lse = m +
ln l. Exponentials are exp2; without an additive mask softmax_scale * log2(e) is folded into their argument, so that a
score costs one fused multiply-add.  (Dao, "FlashAttention-2", 2023, section 3.1; Milakov and Gimelshein, 2018.)

Contract.  One program computes BLOCK_M rows of out and softmax_lse of one head and is the only one that writes them:
the result is bitwise reproducible.  q, k, v by strides, last dim contiguous; out and softmax_lse contiguous.  A fully
masked row (no score above -1e30, nor an fp16 mask above its lowest number) gives out 0 and softmax_lse -inf.  Keys
past seqused_k are never read.  A key mask (one row for all queries) also bounds the loop: it ends after the last key
that is not masked.  Offsets of a tile are 32-bit, those of its first element 64-bit.  Packed tokens after the last
sequence belong to none: out 0, softmax_lse -inf.  Bounds that are wrong never lead out of the tensors: a sequence is
cut off at max_seqlen_q/k, and what that leaves out, or cu_seqlens[0], becomes NaN.

Cost.  2 * B * H * Sq * Sk * (head_dim + head_dim_v) flop; reads q once and k, v once per BLOCK_M rows (mostly from
L2), writes out and 4 bytes a row.  Shared memory: q and num_stages tiles of k and v.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_config import config, power_of_two
from .attention_tiles import fill_uncovered, first_row, first_token, load_tile, sequence, store_tile
from .device import arch_of, precision_of
from .dropout import dropout_threshold, frag_mask, keep_scale

LOG2E = tl.constexpr(1.4426950408889634)
SCAN = tl.constexpr(512)  # keys of a mask row looked at in one step
# Additive masks often hold the lowest finite number for -inf. A score no higher than this counts as masked (it vanishes
# beside any other), and a row that has no higher one as fully masked: softmax_lse in fp32 could not tell such scores
# apart. The lowest number of float16 is not that low and becomes -inf when it is read.
MASKED = tl.constexpr(-1e30)
LOWEST_FP16 = tl.constexpr(-65504.0)

# Lengths and windows vary from call to call: no new kernel for one that happens to be 1 or a multiple of 16.
UNSPECIALIZED = ("num_heads", "max_seqlen_q", "max_seqlen_k", "total_q", "total_k", "window_left", "window_right")


@triton.jit
def shows(bias):
    """Which keys a mask leaves visible. NaN does: who has it in a mask is to see it in the result."""
    if bias.dtype == tl.int1:
        return bias
    elif bias.dtype == tl.float16:
        return (bias <= LOWEST_FP16) == 0
    else:
        return (bias.to(tl.float32) <= MASKED) == 0


@triton.jit
def last_key(bias, stride_n, n_k):
    """One past the last of n_k keys that a mask row leaves visible."""
    last = n_k * 0
    for start in range(0, n_k, SCAN):
        cols = start + tl.arange(0, SCAN)
        ptr = bias + cols.to(tl.int64) * stride_n
        visible = shows(tl.load(ptr, mask=cols < n_k, other=0)) & (cols < n_k)
        last = tl.maximum(last, tl.max(tl.where(visible, cols + 1, 0), 0))
    return last


@triton.jit
def biased(s, bias):
    """Scores in the units the exponential takes: raw under a bool mask, scaled under an additive one."""
    if bias.dtype == tl.int1:
        return tl.where(bias, s, float("-inf"))
    elif bias.dtype == tl.float16:
        return tl.where(shows(bias), s + bias.to(tl.float32), float("-inf"))
    else:
        return s + bias.to(tl.float32)


@triton.jit
def visible_only(s, rows, cols, n_k, window_left, window_right, WINDOW: tl.constexpr):
    """-inf outside the window and from key n_k on. rows counts queries on the keys' scale; both broadcast against s."""
    visible = cols < n_k
    if WINDOW:
        visible = visible & (cols >= rows - window_left) & (cols <= rows + window_right)
    return tl.where(visible, s, float("-inf"))


@triton.jit
def masked(
    s, attn_bias, stride_bm, stride_bn, row_ok, row0, n0, n_k, window_left, window_right,
    KEY_MASK: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_M, BLOCK_N] with the bias and without what is not visible.

    attn_bias points at the tile; row0 is the key that stands opposite of the tile's first row, n0 its first key.
    """
    offs_n = tl.arange(0, BLOCK_N)
    if attn_bias is not None:
        in_range = n0 + offs_n < n_k
        if KEY_MASK:
            s = biased(s, tl.load(attn_bias + offs_n * stride_bn, mask=in_range, other=0)[None, :])
        else:
            ptr = attn_bias + tl.arange(0, BLOCK_M)[:, None] * stride_bm + offs_n[None, :] * stride_bn
            s = biased(s, tl.load(ptr, mask=row_ok[:, None] & in_range[None, :], other=0))
    partial = n0 + BLOCK_N > n_k
    if WINDOW:
        partial |= (n0 + BLOCK_N > row0 + window_right) | (n0 < row0 + BLOCK_M - window_left)
    if partial:
        rows = (row0 + tl.arange(0, BLOCK_M))[:, None]
        s = visible_only(s, rows, (n0 + offs_n)[None, :], n_k, window_left, window_right, WINDOW)
    return s


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attention_fwd_kernel(
    out, softmax_lse, q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state,
    stride_qb, stride_qm, stride_qh, stride_kb, stride_kn, stride_kh, stride_vb, stride_vn, stride_vh,
    stride_bb, stride_bh, stride_bm, stride_bn,
    num_heads, max_seqlen_q, max_seqlen_k, total_q, total_k, softmax_scale, window_left, window_right,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    GROUP: tl.constexpr, FOLD_SCALE: tl.constexpr, KEY_MASK: tl.constexpr, WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(max_seqlen_q, BLOCK_M)
    head = tl.program_id(0) // blocks  # b * num_heads + h
    m0 = tl.program_id(0) % blocks * BLOCK_M
    if WINDOW:
        m0 = (blocks - 1) * BLOCK_M - m0  # under a causal mask the last rows have most keys: they start first
    b = head // num_heads
    h = head % num_heads
    first_q, n_q = sequence(b, max_seqlen_q, cu_seqlens_q, total_q)
    if cu_seqlens_q is not None:
        if m0 == 0:
            batch = tl.num_programs(0) // blocks // num_heads
            fill_uncovered(
                out + h * HEAD_DIM_V, num_heads * HEAD_DIM_V, b, batch, first_q, n_q, cu_seqlens_q, total_q,
                float("nan"), 0.0, HEAD_DIM_V, BLOCK_DV,
            )  # fmt: skip
            fill_uncovered(
                softmax_lse + h.to(tl.int64) * total_q, 1, b, batch, first_q, n_q, cu_seqlens_q, total_q,
                float("nan"), float("-inf"), 1, 1,
            )  # fmt: skip
    if m0 >= n_q:
        return
    first_k, n_k = sequence(b, max_seqlen_k, cu_seqlens_k, total_k)
    shift = 0
    if cu_seqlens_q is not None:
        shift = n_k - n_q
    q = first_token(q, b, h, first_q, stride_qb, stride_qm, stride_qh, cu_seqlens_q)
    k = first_token(k, b, h // GROUP, first_k, stride_kb, stride_kn, stride_kh, cu_seqlens_k)
    v = first_token(v, b, h // GROUP, first_k, stride_vb, stride_vn, stride_vh, cu_seqlens_k)
    softmax_lse += first_row(head, h, first_q, max_seqlen_q, total_q, cu_seqlens_q)
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
    q_tile = load_tile(q + m0.to(tl.int64) * stride_qm, stride_qm, offs_m, n_q - m0, HEAD_DIM, BLOCK_D)
    lo = 0
    if WINDOW:
        lo = tl.maximum(m0 + shift - window_left, 0) // BLOCK_N * BLOCK_N
        n_k = tl.minimum(n_k, tl.minimum(m0 + BLOCK_M, n_q) + shift + window_right)
        k += lo.to(tl.int64) * stride_kn
        v += lo.to(tl.int64) * stride_vn
        if attn_bias is not None:
            attn_bias += lo.to(tl.int64) * stride_bn
    factor = softmax_scale * LOG2E if FOLD_SCALE else LOG2E

    m_i = tl.full([BLOCK_M], float("-inf"), tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for n0 in range(lo, n_k, BLOCK_N):
        k_tile = load_tile(k, stride_kn, offs_n, n_k - n0, HEAD_DIM, BLOCK_D)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        if not FOLD_SCALE:
            s *= softmax_scale
        s = masked(
            s, attn_bias, stride_bm, stride_bn, row_ok, m0 + shift, n0, n_k, window_left, window_right,
            KEY_MASK, WINDOW, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        if attn_bias is not None:
            attn_bias += BLOCK_N * stride_bn
        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_ref = tl.where(m_new <= MASKED, 0.0, m_new)  # -inf - -inf would be NaN
        alpha = tl.exp2((m_i - m_ref) * factor)
        if FOLD_SCALE:
            p = tl.exp2(s * factor - (m_ref * factor)[:, None])
        else:  # subtract first: the lowest finite number times log2(e) is -inf
            p = tl.exp2((s - m_ref[:, None]) * factor)
        l_i = l_i * alpha + tl.sum(p, 1)
        m_i = m_new
        if THRESHOLD > 0:
            p = tl.where(frag_mask(seed, rng_offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N), p, 0.0)
        v_tile = load_tile(v, stride_vn, offs_n, n_k - n0, HEAD_DIM_V, BLOCK_DV)
        acc = tl.dot(p.to(v.dtype.element_ty), v_tile, acc * alpha[:, None], input_precision=PRECISION)
        k += BLOCK_N * stride_kn
        v += BLOCK_N * stride_vn

    empty = l_i == 0.0
    lse = m_i + tl.log(tl.where(empty, 1.0, l_i))
    if FOLD_SCALE:
        lse = m_i * softmax_scale + tl.log(tl.where(empty, 1.0, l_i))
    tl.store(softmax_lse + m0 + offs_m, tl.where(empty, float("-inf"), lse), mask=row_ok)
    acc *= (keep_scale(THRESHOLD) / tl.where(empty, 1.0, l_i))[:, None]
    out += ((first_q + m0) * num_heads + h) * HEAD_DIM_V
    store_tile(out, num_heads * HEAD_DIM_V, offs_m, n_q - m0, acc, HEAD_DIM_V, BLOCK_DV)


def strides(x: Tensor, varlen: bool) -> tuple[int, int, int]:
    """(batch, token, head) strides; a packed tensor has no batch."""
    return (0, x.stride(0), x.stride(1)) if varlen else (x.stride(0), x.stride(1), x.stride(2))


def bias_strides(attn_bias: Tensor | None) -> tuple[int, int, int, int]:
    """Strides of a mask; a dim of size 1 is read with stride 0."""
    if attn_bias is None:
        return (0, 0, 0, 0)
    b, h, m, n = (0 if size == 1 else stride for size, stride in zip(attn_bias.shape, attn_bias.stride(), strict=True))
    return b, h, m, n


def window_limits(window_left: int, window_right: int) -> tuple[int, int]:
    """-1 (unlimited) as a number larger than any distance that still adds up within 32 bits."""
    far = 1 << 29
    return min(window_left, far) if window_left >= 0 else far, min(window_right, far) if window_right >= 0 else far


def folds_scale(attn_bias: Tensor | None, softmax_scale: float) -> bool:
    """Whether the maximum of a row may be taken before scaling."""
    return softmax_scale > 0 and (attn_bias is None or attn_bias.dtype == torch.bool)


def attention_fwd(
    out: Tensor,
    softmax_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
) -> None:
    """out = dropout(softmax(softmax_scale * q k^T + attn_bias)) v, softmax_lse by rows.

    Args:
        out: contiguous (batch, seqlen_q, num_heads, head_dim_v), varlen (total_q, num_heads, head_dim_v); written.
        softmax_lse: contiguous fp32 (batch, num_heads, seqlen_q), varlen (num_heads, total_q); written.
        q, k, v, attn_bias, ...: as in docs/design.md, checked by the caller; last dims contiguous.
    """
    varlen = cu_seqlens_q is not None
    num_heads, head_dim, head_dim_v = q.shape[-2], q.shape[-1], v.shape[-1]
    batch = cu_seqlens_q.shape[0] - 1 if cu_seqlens_q is not None else q.shape[0]
    window = window_left >= 0 or window_right >= 0
    widest, arch = max(head_dim, head_dim_v), arch_of(q.device)
    # tiles of 128 keys fill every register without dropout
    cramped = dropout_p > 0.0 and widest <= 64 and 100 <= arch < 120
    masked_tile = window or attn_bias is not None or cramped
    tile = config("fwd", widest, q.element_size(), arch, max_seqlen_q, max_seqlen_k, masked=masked_tile)
    programs = batch * num_heads * triton.cdiv(max_seqlen_q, tile.block_m)
    if programs == 0:
        out.zero_()
        softmax_lse.fill_(float("-inf"))
        return
    bias = bias_strides(attn_bias)
    attention_fwd_kernel[(programs,)](
        out, softmax_lse, q, k, v, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state,
        *strides(q, varlen), *strides(k, varlen), *strides(v, varlen), *bias,
        num_heads, max_seqlen_q, max_seqlen_k, q.shape[0], k.shape[0], softmax_scale,
        *window_limits(window_left, window_right),
        HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v, BLOCK_D=power_of_two(head_dim), BLOCK_DV=power_of_two(head_dim_v),
        GROUP=num_heads // k.shape[-2], FOLD_SCALE=folds_scale(attn_bias, softmax_scale), KEY_MASK=bias[2] == 0,
        WINDOW=window, THRESHOLD=dropout_threshold(dropout_p), PRECISION=precision_of(q),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )  # fmt: skip
