"""Attention backward, padded and packed (varlen), in one kernel family.

Mathematics.  With P = exp(S - lse), Z = keep / (1 - p_hat) and dP = dout V^T:
dV = (Z * P)^T dout;  delta = rowsum(dout * out) = rowsum(Z * P * dP);  dS = Z * P * dP - P * delta;
dQ = softmax_scale * dS K;  dK = softmax_scale * dS^T Q.  P is computed again from q, k and softmax_lse.
(Dao, "FlashAttention-2", 2023, section 3.1.2.)
The scale 1 / (1 - p_hat) costs nothing: its logarithm is taken from lse, so that exp gives P times it, and delta is
divided by it.

Contract.  dq, dk, dv are contiguous and wholly written; the inputs are read by strides, last dims contiguous.  Fully
masked rows, keys that no query sees and packed tokens of no sequence get zeros.  Three ways:
- one block holds every key: one kernel writes all three, delta is summed inside; out is not read.
- else: delta is computed first and stored beside lse, both as the loop wants them; then a program per key block writes
  its dk and dv and adds its share of dq in fp32 by atomics (the order of those additions, and so the last bits of dq,
  vary from run to run).
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
from .attention_bwd_dbias import attention_bwd_dbias
from .attention_bwd_dq import attention_bwd_dq_kernel, lowered, probabilities, score_gradient
from .attention_config import Config, config, costs_registers, power_of_two
from .attention_tiles import (
    fill_uncovered,
    first_of,
    first_pair,
    first_row,
    first_token,
    load_tile,
    sequence,
    store_tile,
)
from .device import arch_of, precision_of
from .dropout import dropout_threshold, frag_mask, frag_mask_transposed, keep_scale

DQ_NONE = tl.constexpr(0)  # another kernel computes dq
DQ_ATOMIC = tl.constexpr(1)  # dq is fp32 zeros, added to by every key block
DQ_DIRECT = tl.constexpr(2)  # this program sees every key: it alone writes dq


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "head_blocks"))
def attention_bwd_delta_kernel(
    lse_delta, softmax_lse, out, dout, cu_seqlens_q, stride_ob, stride_om, stride_oh, num_heads, max_seqlen_q, total_q,
    head_blocks, HEAD_DIM_V: tl.constexpr, BLOCK_DV: tl.constexpr, FOLD_SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Pairs (`lowered` softmax_lse, delta / keep_scale) of BLOCK_M rows of one head; strides are those of dout.

    delta = rowsum(dout * out).  Rows after the end of the sequence get (+inf, 0), so that the loop needs no mask.
    """
    blocks = tl.cdiv(max_seqlen_q, BLOCK_M)
    head = tl.program_id(0) // blocks
    m0 = tl.program_id(0) % blocks * BLOCK_M
    b = head // num_heads
    h = head % num_heads
    first_q, n_q = sequence(b, max_seqlen_q, cu_seqlens_q, total_q)
    if m0 >= n_q:
        return
    dout = first_token(dout, b, h, first_q, stride_ob, stride_om, stride_oh, cu_seqlens_q) + m0.to(tl.int64) * stride_om
    softmax_lse += first_row(head, h, first_q, max_seqlen_q, total_q, cu_seqlens_q) + m0
    lse_delta += first_pair(head, h, b, first_q, head_blocks, cu_seqlens_q, BLOCK_M) + 2 * m0
    offs_m = tl.arange(0, BLOCK_M)
    lse = tl.load(softmax_lse + offs_m, mask=offs_m < n_q - m0, other=float("inf"))
    out += ((first_q + m0) * num_heads + h) * HEAD_DIM_V
    o_tile = load_tile(out, num_heads * HEAD_DIM_V, offs_m, n_q - m0, HEAD_DIM_V, BLOCK_DV).to(tl.float32)
    do_tile = load_tile(dout, stride_om, offs_m, n_q - m0, HEAD_DIM_V, BLOCK_DV).to(tl.float32)
    pairs = tl.join(lowered(lse, THRESHOLD, FOLD_SCALE), tl.sum(o_tile * do_tile, 1) / keep_scale(THRESHOLD))
    tl.store(lse_delta + tl.arange(0, 2 * BLOCK_M), tl.reshape(pairs, [2 * BLOCK_M]))


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "head_blocks"))
def attention_bwd_dkdv_kernel(
    dq, dk, dv, dout, q, k, v, softmax_lse, lse_delta, attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state,
    stride_ob, stride_om, stride_oh, stride_qb, stride_qm, stride_qh, stride_kb, stride_kn, stride_kh,
    stride_vb, stride_vn, stride_vh, stride_bb, stride_bh, stride_bm, stride_bn,
    num_heads, max_seqlen_q, max_seqlen_k, total_q, total_k, softmax_scale, window_left, window_right, head_blocks,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    GROUP: tl.constexpr, FOLD_SCALE: tl.constexpr, KEY_MASK: tl.constexpr, WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr, PRECISION: tl.constexpr, PAIR_ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, TRANSPOSED: tl.constexpr, DQ: tl.constexpr, LOAD: tl.constexpr,
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
    offs_load = tl.arange(0, LOAD)
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
        if DQ == DQ_DIRECT:
            lse_ptr = softmax_lse + first_row(head, h, first_q, max_seqlen_q, total_q, cu_seqlens_q)
        else:
            lse_ptr = lse_delta + first_pair(head, h, b, first_q, head_blocks, cu_seqlens_q, PAIR_ROWS) + 2 * lo
        dq_ptr = dq
        if DQ != DQ_NONE:
            dq_ptr = dq + ((first_q + lo) * num_heads + h) * HEAD_DIM
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
            if DQ == DQ_DIRECT:
                x = tl.load(lse_ptr + offs_load, mask=offs_load < tl.minimum(left, BLOCK_M), other=float("inf"))
                lse = lowered(first_of(x, BLOCK_M), THRESHOLD, FOLD_SCALE)
            else:
                pairs = first_of(tl.load(lse_ptr + offs_load), 2 * BLOCK_M)
                lse, delta = tl.split(tl.reshape(pairs, [BLOCK_M, 2]))
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
                if TRANSPOSED:
                    keep = frag_mask_transposed(seed, rng_offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N)
                else:
                    keep = frag_mask(seed, rng_offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N)
                kept = tl.where(keep, p, 0.0)
            z = kept.to(do_tile.dtype)
            dv_acc = tl.dot(z if TRANSPOSED else tl.trans(z), do_tile, dv_acc, input_precision=PRECISION)
            if DQ == DQ_DIRECT:
                delta = tl.sum(kept * dp, 0 if TRANSPOSED else 1) / keep_scale(THRESHOLD)
            delta = delta[None, :] if TRANSPOSED else delta[:, None]
            ds = score_gradient(p, kept, dp, delta, THRESHOLD).to(q_tile.dtype)
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
            lse_ptr += BLOCK_M if DQ == DQ_DIRECT else 2 * BLOCK_M
            if attn_bias is not None:
                bias_ptr += BLOCK_M * stride_bm

    dk += ((first_k + n0) * heads_k + hk) * HEAD_DIM
    dv += ((first_k + n0) * heads_k + hk) * HEAD_DIM_V
    store_tile(dk, heads_k * HEAD_DIM, offs_n, len_k - n0, dk_acc * softmax_scale, HEAD_DIM, BLOCK_D)
    store_tile(dv, heads_k * HEAD_DIM_V, offs_n, len_k - n0, dv_acc, HEAD_DIM_V, BLOCK_DV)


def row_floats(tile: Config, direct: bool) -> int:
    """How many floats of rows one iteration loads at once: those of its tile, and enough for each thread to load some.

    Triton repeats a load with fewer elements than a block has threads in each of them: 32 copies of 4 bytes of the
    same 64 rows.  What is loaded beside the tile are the rows of the next iterations.
    """
    needed = tile.block_m if direct else 2 * tile.block_m
    if tile.num_stages == 1:
        return needed  # not copied ahead of the loop
    return max(needed, (32 if direct else 64) * tile.num_warps)


def attention_bwd(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias: Tensor,
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
    needs_dbias: bool,
) -> None:
    """Gradients of attention_fwd with respect to q, k, v and an additive attn_bias.

    Args:
        dq, dk, dv: contiguous, shaped as q, k, v; written.
        dbias: as attn_bias, contiguous; written if needs_dbias.
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
        for grad in (dq, dk, dv, dbias):
            grad.zero_()
        return
    limits = window_limits(window_left, window_right)
    shape = (num_heads, max_seqlen_q, max_seqlen_k, q.shape[0], k.shape[0], softmax_scale, *limits)
    by_stride = (*strides(dout, varlen), *strides(q, varlen), *strides(k, varlen), *strides(v, varlen), *bias)
    masks = (attn_bias, seqused_k, cu_seqlens_q, cu_seqlens_k, rng_state)
    direct = blocks_k <= 1
    pair_rows = max(tile.block_m, min(64 if head_dim_v <= 64 else 32, power_of_two(max_seqlen_q)))
    head_blocks = q.shape[0] // pair_rows + batch if varlen else triton.cdiv(max_seqlen_q, pair_rows)
    load = row_floats(tile, direct)
    constants = {
        "HEAD_DIM": head_dim, "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": power_of_two(head_dim), "BLOCK_DV": power_of_two(head_dim_v), "GROUP": num_heads // heads_k,
        "FOLD_SCALE": folds_scale(attn_bias, softmax_scale), "KEY_MASK": bias[2] == 0,
        "WINDOW": window, "THRESHOLD": dropout_threshold(dropout_p),
        "PRECISION": precision_of(q), "PAIR_ROWS": pair_rows,
    }  # fmt: skip

    mode = DQ_DIRECT.value if direct else DQ_NONE.value if deterministic else DQ_ATOMIC.value
    lse_delta, dq_sum = None, dq
    if not direct or needs_dbias:
        rows = num_heads * head_blocks * (1 if varlen else batch) * pair_rows
        lse_delta = torch.empty(2 * rows + load, dtype=torch.float32, device=q.device)
        attention_bwd_delta_kernel[(batch * num_heads * triton.cdiv(max_seqlen_q, pair_rows),)](
            lse_delta, softmax_lse, out, dout, cu_seqlens_q, *strides(dout, varlen), num_heads, max_seqlen_q,
            q.shape[0], head_blocks, HEAD_DIM_V=head_dim_v, BLOCK_DV=power_of_two(head_dim_v),
            FOLD_SCALE=constants["FOLD_SCALE"], THRESHOLD=constants["THRESHOLD"], BLOCK_M=pair_rows, num_warps=4,
        )  # fmt: skip
    if mode == DQ_ATOMIC.value:
        dq_sum = dq.zero_() if dq.dtype == torch.float32 else torch.zeros_like(dq, dtype=torch.float32)
    attention_bwd_dkdv_kernel[(batch * heads_k * max(blocks_k, 1),)](
        dq_sum, dk, dv, dout, q, k, v, softmax_lse, None if direct else lse_delta, *masks, *by_stride, *shape,
        head_blocks, **constants,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, TRANSPOSED=tile.transposed, DQ=mode, LOAD=load,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )  # fmt: skip
    if dq_sum is not dq:
        dq.copy_(dq_sum)
    if mode == DQ_NONE.value:
        tile = config("dq", *size, masked=masked)
        attention_bwd_dq_kernel[(batch * num_heads * triton.cdiv(max_seqlen_q, tile.block_m),)](
            dq, dout, q, k, v, lse_delta, *masks, *by_stride, *shape, head_blocks, **constants,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, num_warps=tile.num_warps, num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
        )  # fmt: skip
    if needs_dbias:
        del constants["FOLD_SCALE"]  # an additive bias is added to scores that are scaled
        constants["KEY_MASK"] = dbias.shape[2] == 1  # not a bias whose rows are one by stride 0: each has its gradient
        arguments = (dout, q, k, v, lse_delta, *masks, *by_stride, *shape, head_blocks)
        attention_bwd_dbias(dbias, batch, num_heads, max_seqlen_q, arguments, constants, config("dbias", *size))
