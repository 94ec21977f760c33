"""Layer norm of a sum of embeddings, with dropout after it, token by token: forward and backward.

Mathematics
    z = word[id] + token_type[type] + position[pos],   xhat = (z - mean) rstd   as in dropout_add_layer_norm.py,
    out = keep * (xhat weight + bias) / (1 - p_hat)
    backward, with dy = keep * dout / (1 - p_hat) and g = dy weight:
        dz = rstd (g - sum_j g_j / n - xhat sum_j g_j xhat_j / n),   dweight = sum over tokens of dy xhat,
        dbias = sum over tokens of dy,   dtoken_type[t] = sum over tokens of type t of dz
    The gradients of the word and position tables are sums of rows of dz, left to the caller.

Contract
    A program holds ROWS whole rows in registers and is the only writer of them; tiles, partial sums and their order are
    those of dropout_add_layer_norm.py: no atomics, bitwise deterministic. Tables, dout and outputs are contiguous. Of
    the position ids and types there are `period`, and row r reads number r % period. A row with an id outside of its
    table reads nothing there and becomes NaN. Sums by type are kept for tables of at most MAX_TYPES rows. z is never
    written: backward gathers it again. Rows of at most MAX_COLS columns.

Cost
    About 12 flop an element forward, 16 backward; bytes: a row of each table and of out, or of dout, each table and dz,
    and the ids; position and token-type rows come from L2. A Philox call for 16 elements forward, for 8 (4 of float32)
    backward. Shared memory: reductions, and forward the exchange of the dropout mask, 1 byte per element of the tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layer_norm import PROGRAMS, config, gradient_of_z, means_of_both, normalised
from .reduce import SUM_COLS, SUM_ROWS, layer_norm_sum_kernel
from .row_dropout import EMBEDDING_TAG, keep_scale, numbered_keep, threshold
from .rows import as_rows, flat, row_vector

TAG = tl.constexpr(EMBEDDING_TAG)
MAX_COLS = 4096
"""Beyond it the sums of two token types, besides dweight and dbias, outgrow the registers of one block."""
MAX_TYPES = 2
"""Each is one more float32 sum of a tile in registers: BERT's tables have 2 rows, RoBERTa's 1."""
# Their number of tokens varies from call to call: no new kernel for one that happens to be 1 or a multiple of 16.
UNSPECIALIZED = ("n_rows", "position_period", "type_period")


@triton.jit
def _add_rows(z, table_ptr, ids_ptr, rows, row_ok, cols, col_ok, period, n_table, n_cols):
    """z + table[ids[rows % period]], NaN where the id is not in the table."""
    ids = tl.load(ids_ptr + rows % period, mask=row_ok, other=0)
    inside = (ids >= 0) & (ids < n_table)
    at = table_ptr + ids.to(tl.int64)[:, None] * n_cols + cols[None, :]
    values = tl.load(at, mask=(row_ok & inside)[:, None] & col_ok[None, :], other=0.0).to(tl.float32)
    return z + tl.where(inside[:, None], values, float("nan"))


@triton.jit
def _gather(
    ids_ptr, word_ptr, position_ids_ptr, position_ptr, type_ids_ptr, type_ptr, rows, row_ok, cols, col_ok,
    n_rows, n_cols, n_words, position_period, n_positions, type_period, n_types,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, POSITION: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """z of a tile, float32 (ROWS, BLOCK_N), 0 beyond n_cols in rows whose ids are in the tables."""
    z = tl.zeros([ROWS, BLOCK_N], tl.float32)
    z = _add_rows(z, word_ptr, ids_ptr, rows, row_ok, cols, col_ok, n_rows, n_words, n_cols)
    if TYPE:
        z = _add_rows(z, type_ptr, type_ids_ptr, rows, row_ok, cols, col_ok, type_period, n_types, n_cols)
    if POSITION:
        z = _add_rows(
            z, position_ptr, position_ids_ptr, rows, row_ok, cols, col_ok, position_period, n_positions, n_cols
        )
    return z


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_layer_norm_fwd_kernel(
    out_ptr, mean_ptr, rstd_ptr, ids_ptr, word_ptr, position_ids_ptr, position_ptr, type_ids_ptr, type_ptr,
    weight_ptr, bias_ptr, index_ptr, rng_ptr, n_rows, n_cols, n_words, position_period, n_positions, type_period,
    n_types, threshold, keep_scale, eps,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, POSITION: tl.constexpr, TYPE: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, DROPOUT: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < n_rows, cols < n_cols
    z = _gather(
        ids_ptr, word_ptr, position_ids_ptr, position_ptr, type_ids_ptr, type_ptr, rows, row_ok, cols, col_ok,
        n_rows, n_cols, n_words, position_period, n_positions, type_period, n_types, ROWS, BLOCK_N, POSITION, TYPE,
    )  # fmt: skip
    xhat, mean, rstd = normalised(z, col_ok, n_cols, eps)
    weight = row_vector(weight_ptr, cols, col_ok, WEIGHT, 1.0)
    out = xhat * weight + row_vector(bias_ptr, cols, col_ok, BIAS, 0.0)
    if DROPOUT:
        keep = numbered_keep(rng_ptr, index_ptr, rows, row_ok, 0, TAG, threshold, INDEXED, ROWS, BLOCK_N)
        out = tl.where(keep, out * keep_scale, 0.0)
    at = out_ptr + rows.to(tl.int64)[:, None] * n_cols + cols[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])
    tl.store(mean_ptr + rows, mean, mask=row_ok)
    tl.store(rstd_ptr + rows, rstd, mask=row_ok)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def embedding_layer_norm_bwd_kernel(
    dz_ptr, partial_ptr, dout_ptr, ids_ptr, word_ptr, position_ids_ptr, position_ptr, type_ids_ptr, type_ptr,
    weight_ptr, mean_ptr, rstd_ptr, index_ptr, rng_ptr, n_rows, n_cols, stride_dm, n_words, position_period,
    n_positions, type_period, n_types, threshold, keep_scale,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, VECTOR: tl.constexpr, POSITION: tl.constexpr, TYPE: tl.constexpr,
    WEIGHT: tl.constexpr,
    DROPOUT: tl.constexpr, INDEXED: tl.constexpr, DZ: tl.constexpr, DTYPES: tl.constexpr, DWEIGHT: tl.constexpr,
    DBIAS: tl.constexpr,
):  # fmt: skip
    """partial_ptr: float32 (DWEIGHT + DBIAS + DTYPES, programs, n_cols); DTYPES: 0, or the rows of the type table."""
    pid, programs = tl.program_id(0), tl.num_programs(0)
    cols = tl.arange(0, BLOCK_N)
    col_ok = cols < n_cols
    dweight = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dbias = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dtype0 = tl.zeros([ROWS, BLOCK_N], tl.float32)
    dtype1 = tl.zeros([ROWS, BLOCK_N], tl.float32)
    for tile in range(pid, tl.cdiv(n_rows, ROWS), programs):
        rows = tile * ROWS + tl.arange(0, ROWS)
        row_ok = rows < n_rows
        ok = row_ok[:, None] & col_ok[None, :]
        long_rows = rows.to(tl.int64)[:, None]
        dy = tl.load(dout_ptr + long_rows * stride_dm + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        if DROPOUT:
            keep = numbered_keep(rng_ptr, index_ptr, rows, row_ok, 0, TAG, threshold, INDEXED, ROWS, BLOCK_N, VECTOR)
            dy = tl.where(keep, dy * keep_scale, 0.0)
        if DBIAS:
            dbias += dy
        if DZ or DTYPES > 0 or DWEIGHT:
            z = _gather(
                ids_ptr, word_ptr, position_ids_ptr, position_ptr, type_ids_ptr, type_ptr, rows, row_ok, cols,
                col_ok, n_rows, n_cols, n_words, position_period, n_positions, type_period, n_types,
                ROWS, BLOCK_N, POSITION, TYPE,
            )  # fmt: skip
            mean = tl.load(mean_ptr + rows, mask=row_ok, other=0.0)
            rstd = tl.load(rstd_ptr + rows, mask=row_ok, other=0.0)
            xhat = tl.where(col_ok[None, :], (z - mean[:, None]) * rstd[:, None], 0.0)
            if DWEIGHT:
                dweight += dy * xhat
            if DZ or DTYPES > 0:
                g = dy * row_vector(weight_ptr, cols, col_ok, WEIGHT, 1.0)
                c1, c2 = means_of_both(g * xhat, g, n_cols)  # 0 beyond n_cols
                dz = gradient_of_z(g, xhat, rstd, c1, c2)
                if DZ:
                    at = dz_ptr + long_rows * n_cols + cols[None, :]
                    tl.store(at, dz.to(dz_ptr.dtype.element_ty), mask=ok)
                if DTYPES > 0:
                    types = tl.load(type_ids_ptr + rows % type_period, mask=row_ok, other=0)[:, None]
                    dtype0 += tl.where(types == 0, dz, 0.0)
                    if DTYPES > 1:
                        dtype1 += tl.where(types == 1, dz, 0.0)
    # PROGRAMS x MAX_COLS x 4 sums are counted in 32 bits
    if DWEIGHT:
        tl.store(partial_ptr + pid * n_cols + cols, tl.sum(dweight, 0), mask=col_ok)
        pid += programs
    if DBIAS:
        tl.store(partial_ptr + pid * n_cols + cols, tl.sum(dbias, 0), mask=col_ok)
        pid += programs
    if DTYPES > 0:
        tl.store(partial_ptr + pid * n_cols + cols, tl.sum(dtype0, 0), mask=col_ok)
    if DTYPES > 1:
        tl.store(partial_ptr + (pid + programs) * n_cols + cols, tl.sum(dtype1, 0), mask=col_ok)


# ----------------------------------------------------------------------------------------------------------- launchers


def _table(ids: Tensor | None, table: Tensor | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    """ids and table contiguous, the number of ids and of rows; 1 each where there is no table."""
    if ids is None or table is None:
        return None, None, 1, 1
    return flat(ids), flat(table), ids.shape[0], table.shape[0]


def embedding_layer_norm_fwd(
    out: Tensor, mean: Tensor, rstd: Tensor, ids: Tensor, word: Tensor, position_ids: Tensor | None,
    position: Tensor | None, type_ids: Tensor | None, token_type: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, eps: float,
    out_dtype: torch.dtype,
) -> None:  # fmt: skip
    """Writes out, mean and rstd; arguments as of the op (fasttx/ops/embedding_layer_norm/op.py)."""
    n_rows, n_cols = out.shape
    block = config("fwd", n_cols)
    position_ids, position, position_period, n_positions = _table(position_ids, position)
    type_ids, token_type, type_period, n_types = _table(type_ids, token_type)
    dropout = rng_state is not None
    embedding_layer_norm_fwd_kernel[(triton.cdiv(n_rows, block.rows),)](
        out, mean, rstd, flat(ids), flat(word), position_ids, position, type_ids, token_type, flat(weight), flat(bias),
        flat(row_index), rng_state, n_rows, n_cols, word.shape[0], position_period, n_positions, type_period, n_types,
        threshold(dropout_p), keep_scale(dropout_p), eps,
        ROWS=block.rows, BLOCK_N=block.block_n, POSITION=position is not None, TYPE=token_type is not None,
        WEIGHT=weight is not None, BIAS=bias is not None, DROPOUT=dropout,
        INDEXED=dropout and row_index is not None, num_warps=block.num_warps,
    )  # fmt: skip


def embedding_layer_norm_bwd(
    dz: Tensor, dtoken_type: Tensor, dweight: Tensor, dbias: Tensor, dout: Tensor, ids: Tensor, word: Tensor,
    position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None, token_type: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, needs_dz: bool, needs_dtoken_type: bool, needs_dweight: bool,
    needs_dbias: bool,
) -> None:  # fmt: skip
    """Writes the gradients that are needed; the others are of no element."""
    n_rows, n_cols = dout.shape
    block = config("bwd", n_cols)
    dout_rows, stride_dm = as_rows(dout)
    position_ids, position, position_period, n_positions = _table(position_ids, position)
    type_ids, token_type, type_period, n_types = _table(type_ids, token_type)
    dropout = rng_state is not None
    dtypes = n_types if needs_dtoken_type else 0
    norms = int(needs_dweight) + int(needs_dbias)
    sums = norms + dtypes
    tiles = triton.cdiv(n_rows, block.rows)
    programs = min(tiles, PROGRAMS) if sums else tiles
    partial = torch.empty((sums, programs, n_cols), dtype=torch.float32, device=dout.device) if sums else None
    embedding_layer_norm_bwd_kernel[(programs,)](
        dz, partial, dout_rows, flat(ids), flat(word), position_ids, position, type_ids, token_type, flat(weight),
        mean, rstd, flat(row_index), rng_state, n_rows, n_cols, stride_dm, word.shape[0], position_period, n_positions,
        type_period, n_types, threshold(dropout_p), keep_scale(dropout_p),
        ROWS=block.rows, BLOCK_N=block.block_n, VECTOR=16 // dout.element_size(), POSITION=position is not None,
        TYPE=token_type is not None,
        WEIGHT=weight is not None, DROPOUT=dropout, INDEXED=dropout and row_index is not None, DZ=needs_dz,
        DTYPES=dtypes, DWEIGHT=needs_dweight, DBIAS=needs_dbias, num_warps=block.num_warps,
    )  # fmt: skip
    if partial is None:
        return
    grid = (triton.cdiv(n_cols, SUM_COLS),)
    if norms:
        layer_norm_sum_kernel[grid](
            dweight, dbias, partial, programs, n_cols,
            DWEIGHT=needs_dweight, DBIAS=needs_dbias, R=SUM_ROWS, C=SUM_COLS, num_warps=4,
        )  # fmt: skip
    if dtypes:
        layer_norm_sum_kernel[grid](
            dtoken_type[0], dtoken_type[-1], partial[norms:], programs, n_cols,
            DWEIGHT=True, DBIAS=dtypes > 1, R=SUM_ROWS, C=SUM_COLS, num_warps=4,
        )  # fmt: skip
