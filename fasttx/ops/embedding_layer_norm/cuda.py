"""Launchers of embedding_layer_norm in CUDA C++ (csrc/embedding_layer_norm): signatures and contract are those of
kernels/embedding_layer_norm.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, dropout, flat, only_if

PROGRAMS = 528
"""Blocks of a backward with sums at most: four for each of an H100's multiprocessors (132), as the launch bounds
have it for rows of 513 to 1,024 columns. A constant, not the device's own number: the same sums on every device."""


def _table(rows: Tensor | None, ids: Tensor | None) -> dict[str, Any]:
    """The struct EmbeddingTable: row r of the result reads the table by id r modulo their number."""
    return {
        "rows": flat(rows),
        "ids": flat(ids),
        "period": 1 if ids is None else ids.shape[0],
        "n_rows": 1 if rows is None else rows.shape[0],
    }


def embedding_layer_norm_fwd(
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
) -> None:
    """Writes out, mean and rstd; arguments as of the op (fasttx/ops/embedding_layer_norm/op.py)."""
    launch(
        "embedding_layer_norm_fwd",
        out=out,
        mean=mean,
        rstd=rstd,
        word=_table(word, ids),
        position=_table(position, position_ids),
        token_type=_table(token_type, type_ids),
        weight=flat(weight),
        bias=flat(bias),
        dropout=dropout(rng_state, row_index, dropout_p),
        n_rows=ids.shape[0],
        n_cols=word.shape[1],
        eps=eps,
    )


def embedding_layer_norm_bwd(
    dz: Tensor,
    dtoken_type: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dout: Tensor,
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    row_index: Tensor | None,
    rng_state: Tensor | None,
    dropout_p: float,
    needs_dz: bool,
    needs_dtoken_type: bool,
    needs_dweight: bool,
    needs_dbias: bool,
) -> None:
    """Writes the gradients that are needed; the others are of no element."""
    dout_rows = as_rows(dout)
    types = token_type.shape[0] if needs_dtoken_type and token_type is not None else 0
    sums, programs = int(needs_dweight) + int(needs_dbias) + types, min(ids.shape[0], PROGRAMS)
    if not (sums or needs_dz):
        return
    launch(
        "embedding_layer_norm_bwd",
        dz=only_if(needs_dz, dz),
        dtoken_type=only_if(needs_dtoken_type, dtoken_type),
        dweight=only_if(needs_dweight, dweight),
        dbias=only_if(needs_dbias, dbias),
        partial=dout.new_empty((sums, programs, word.shape[1]), dtype=torch.float32) if sums else None,
        dout=dout_rows,
        word=_table(word, ids),
        position=_table(position, position_ids),
        token_type=_table(token_type, type_ids),
        weight=flat(weight),
        mean=mean,
        rstd=rstd,
        dropout=dropout(rng_state, row_index, dropout_p),
        n_rows=ids.shape[0],
        n_cols=word.shape[1],
        stride_dm=dout_rows.stride(0),
        programs=programs,
    )
