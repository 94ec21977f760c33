"""The gradient of attention's additive bias: dS, summed over the dims in which the bias has one element.

Mathematics.  dbias[i, j] = sum of dS[i, j] over the sequences, heads and queries that read that element; dS = P * (dP -
delta) as in attention_bwd.py, computed again. Adding one number to all scores of a row changes no probability: the
gradient of a bias with one column is 0.

Contract.  One program owns a tile of dbias and adds up, in a fixed order and in fp32, the tiles of dS of all that read
it: no atomics, bitwise reproducible, and nothing of size batch * seqlen_q * seqlen_k is written. dbias is contiguous
and wholly written, with zeros where no query saw a key. Where the bias has too few tiles to fill a GPU, several
programs share what reads a tile, each writes its sum, and PyTorch adds these.

Cost.  2 products of the backward's 5 a second time; reads q, k, v and dout of every sequence once for each tile of the
bias (mostly from L2), the bias and its gradient once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import UNSPECIALIZED, biased, visible_only
from .attention_bwd_dq import probabilities, score_gradient
from .attention_config import Config
from .attention_tiles import first_pair, first_token, load_tile, sequence
from .dropout import frag_mask

PROGRAMS = 512
"""As many as fill a GPU: four for each multiprocessor of the largest."""


@triton.jit
def _tile_of_ds(
    q,
    k,
    v,
    dout,
    lse_delta,
    bias,
    stride_qm,
    stride_kn,
    stride_vn,
    stride_om,
    seed,
    rng_offset,
    head,
    m0,
    n0,
    n_q,
    n_k,
    shift,
    softmax_scale,
    window_left,
    window_right,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dS [BLOCK_M, BLOCK_N] of one head of one sequence; pointers are those of its first token."""
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    m64 = m0.to(tl.int64)
    n64 = n0.to(tl.int64)
    q_tile = load_tile(q + m64 * stride_qm, stride_qm, offs_m, n_q - m0, HEAD_DIM, BLOCK_D)
    k_tile = load_tile(k + n64 * stride_kn, stride_kn, offs_n, n_k - n0, HEAD_DIM, BLOCK_D)
    s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * softmax_scale
    do_tile = load_tile(dout + m64 * stride_om, stride_om, offs_m, n_q - m0, HEAD_DIM_V, BLOCK_DV)
    v_tile = load_tile(v + n64 * stride_vn, stride_vn, offs_n, n_k - n0, HEAD_DIM_V, BLOCK_DV)
    dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
    pairs = lse_delta + 2 * (m64 + offs_m)
    row_ok = offs_m < n_q - m0
    lse = tl.load(pairs, mask=row_ok, other=float("inf"))[:, None]
    delta = tl.load(pairs + 1, mask=row_ok, other=0.0)[:, None]
    s = biased(s, bias)
    rows = (m0 + shift + offs_m)[:, None]
    s = visible_only(s, rows, (n0 + offs_n)[None, :], n_k, window_left, window_right, WINDOW)
    p = probabilities(s, lse, softmax_scale, False)
    kept = p
    if THRESHOLD > 0:
        kept = tl.where(frag_mask(seed, rng_offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N), p, 0.0)
    return score_gradient(p, kept, dp, delta, THRESHOLD)


@triton.jit(do_not_specialize=(*UNSPECIALIZED, "head_blocks", "share", "readers", "reading_heads", "reading_blocks"))
def attention_bwd_dbias_kernel(
    dbias,
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
    bias_rows,
    bias_heads,
    bias_batch,
    share,
    readers,
    reading_heads,
    reading_blocks,
    HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_MASK: tl.constexpr,
    WINDOW: tl.constexpr,
    THRESHOLD: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIR_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A tile of dbias, or of one of several sums of it: the sum of dS over `share` of the `readers` of that tile.

    A reader is a block of queries of one head of one sequence.  reading_heads, reading_blocks: how many heads and
    blocks of queries read one element; 1 where the bias has that dim.
    """
    blocks_n = tl.cdiv(max_seqlen_k, BLOCK_N)
    blocks_m = tl.cdiv(bias_rows, BLOCK_M)
    tile = tl.program_id(0) // blocks_n
    n0 = tl.program_id(0) % blocks_n * BLOCK_N
    row0 = tile % blocks_m * BLOCK_M
    owner = tile // blocks_m  # ((share of the readers) * bias_batch + b) * bias_heads + h
    own_h = owner % bias_heads
    own_b = owner // bias_heads % bias_batch
    first = owner // bias_heads // bias_batch * share

    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    col_ok = n0 + offs_n < max_seqlen_k
    attn_bias += own_b.to(tl.int64) * stride_bb + own_h.to(tl.int64) * stride_bh
    attn_bias += row0.to(tl.int64) * stride_bm + n0.to(tl.int64) * stride_bn
    dbias += (owner.to(tl.int64) * bias_rows + row0) * max_seqlen_k + n0
    if KEY_MASK:
        bias = tl.load(attn_bias + offs_n * stride_bn, mask=col_ok, other=0.0)[None, :]
        acc = tl.zeros([BLOCK_N], tl.float32)
    else:
        inside = (row0 + offs_m < bias_rows)[:, None] & col_ok[None, :]
        bias = tl.load(attn_bias + offs_m[:, None] * stride_bm + offs_n[None, :] * stride_bn, mask=inside, other=0.0)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    seed = 0
    rng_offset = 0
    if THRESHOLD > 0:
        seed = tl.load(rng_state)
        rng_offset = tl.load(rng_state + 1)

    for reader in range(first, tl.minimum(first + share, readers)):
        m0 = row0 + reader % reading_blocks * BLOCK_M
        h = own_h + reader // reading_blocks % reading_heads
        b = own_b + reader // reading_blocks // reading_heads
        first_q, n_q = sequence(b, max_seqlen_q, cu_seqlens_q, total_q)
        first_k, n_k = sequence(b, max_seqlen_k, cu_seqlens_k, total_k)
        shift = 0
        if cu_seqlens_q is not None:
            shift = n_k - n_q
        if seqused_k is not None:
            n_k = tl.minimum(n_k, tl.load(seqused_k + b))
        seen = (m0 < n_q) & (n0 < n_k)
        if WINDOW:
            seen &= (n0 + BLOCK_N > m0 + shift - window_left) & (n0 < m0 + BLOCK_M + shift + window_right)
        if seen:
            head = b * num_heads + h
            ds = _tile_of_ds(
                first_token(q, b, h, first_q, stride_qb, stride_qm, stride_qh, cu_seqlens_q),
                first_token(k, b, h // GROUP, first_k, stride_kb, stride_kn, stride_kh, cu_seqlens_k),
                first_token(v, b, h // GROUP, first_k, stride_vb, stride_vn, stride_vh, cu_seqlens_k),
                first_token(dout, b, h, first_q, stride_ob, stride_om, stride_oh, cu_seqlens_q),
                lse_delta + first_pair(head, h, b, first_q, head_blocks, cu_seqlens_q, PAIR_ROWS),
                bias,
                stride_qm,
                stride_kn,
                stride_vn,
                stride_om,
                seed,
                rng_offset,
                head,
                m0,
                n0,
                n_q,
                n_k,
                shift,
                softmax_scale,
                window_left,
                window_right,
                HEAD_DIM,
                HEAD_DIM_V,
                BLOCK_D,
                BLOCK_DV,
                WINDOW,
                THRESHOLD,
                PRECISION,
                BLOCK_M,
                BLOCK_N,
            )
            if KEY_MASK:
                acc += tl.sum(ds, 0)
            else:
                acc += ds

    if KEY_MASK:
        tl.store(dbias + offs_n, acc.to(dbias.dtype.element_ty), mask=col_ok)
    else:
        ptr = dbias + offs_m[:, None] * max_seqlen_k + offs_n[None, :]
        tl.store(ptr, acc.to(dbias.dtype.element_ty), mask=inside)


def attention_bwd_dbias(
    dbias: Tensor, batch: int, heads: int, rows: int, arguments: Any, constants: dict[str, Any], tile: Config
) -> None:
    """Launches the kernel.

    Args:
        dbias: contiguous, of the shape of the bias; written.
        batch, heads, rows: how many sequences there are, heads, and queries in the longest sequence.
        arguments, constants: those of the kernel from dout to head_blocks, and those that are not the tile's.
    """
    bias_batch, bias_heads, bias_rows, bias_cols = dbias.shape
    if bias_cols == 1:  # also where there is one key: its probability is 1 whatever the bias
        dbias.zero_()
        return
    reading_heads = heads if bias_heads == 1 else 1
    reading_blocks = triton.cdiv(rows, tile.block_m) if bias_rows == 1 else 1
    readers = (batch if bias_batch == 1 else 1) * reading_heads * reading_blocks
    tiles = bias_batch * bias_heads * triton.cdiv(bias_rows, tile.block_m) * triton.cdiv(bias_cols, tile.block_n)
    share = triton.cdiv(readers, min(readers, triton.cdiv(PROGRAMS, tiles)))
    sums = triton.cdiv(readers, share)
    into = dbias if sums == 1 else torch.empty((sums, *dbias.shape), dtype=torch.float32, device=dbias.device)
    attention_bwd_dbias_kernel[(sums * tiles,)](
        into,
        *arguments,
        bias_rows,
        bias_heads,
        bias_batch,
        share,
        readers,
        reading_heads,
        reading_blocks,
        **constants,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        maxnreg=tile.max_registers,
    )
    if into is not dbias:
        dbias.copy_(into.sum(0))
