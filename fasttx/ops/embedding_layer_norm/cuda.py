"""Launchers of embedding_layer_norm in CUDA C++ (csrc/embedding_layer_norm): signatures and contract are those of
kernels/embedding_layer_norm.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cuda.launch import launch
from ..cuda.rows import as_rows, dropout_numbers, dtype_or, flat, is_long, only_if

PROGRAMS = 528
"""Blocks of a backward with sums at most: four for each of an H100's multiprocessors (132), as the launch bounds
have it for rows of 513 to 1,024 columns. A constant, not the device's own number: the same sums on every device."""


def _inputs(
    ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, weight: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None,
) -> dict[str, Tensor | None]:  # fmt: skip
    return {
        "ids": flat(ids), "word": flat(word), "position_ids": flat(position_ids), "position": flat(position),
        "type_ids": flat(type_ids), "token_type": flat(token_type), "weight": flat(weight),
        "row_index": flat(row_index), "rng_state": rng_state,
    }  # fmt: skip


def _dtypes(
    word: Tensor, position: Tensor | None, token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> dict[str, torch.dtype]:
    return {
        "word_dtype": word.dtype, "position_dtype": dtype_or(position, word), "type_dtype": dtype_or(token_type, word),
        "weight_dtype": dtype_or(weight, word), "bias_dtype": dtype_or(bias, word),
    }  # fmt: skip


def _numbers(
    ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, row_index: Tensor | None,
) -> dict[str, Any]:  # fmt: skip
    def count(t: Tensor | None) -> int:
        return 1 if t is None else t.shape[0]

    return {
        "ids_is_long": is_long(ids), "position_ids_is_long": is_long(position_ids),
        "type_ids_is_long": is_long(type_ids), "row_index_is_long": is_long(row_index), "n_rows": ids.shape[0],
        "n_cols": word.shape[1], "n_words": word.shape[0], "position_period": count(position_ids),
        "n_positions": count(position), "type_period": count(type_ids), "n_types": count(token_type),
    }  # fmt: skip


def embedding_layer_norm_fwd(
    out: Tensor, mean: Tensor, rstd: Tensor, ids: Tensor, word: Tensor, position_ids: Tensor | None,
    position: Tensor | None, type_ids: Tensor | None, token_type: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, eps: float,
    out_dtype: torch.dtype,
) -> None:  # fmt: skip
    """Writes out, mean and rstd; arguments as of the op (fasttx/ops/embedding_layer_norm/op.py)."""
    tables = (ids, word, position_ids, position, type_ids, token_type)
    launch(
        "embedding_layer_norm_fwd",
        {"out": out, "mean": mean, "rstd": rstd},
        _inputs(*tables, weight, row_index, rng_state) | {"bias": flat(bias)},
        _dtypes(word, position, token_type, weight, bias) | {"out_dtype": out_dtype},
        eps=eps, **_numbers(*tables, row_index), **dropout_numbers(rng_state, dropout_p),
    )  # fmt: skip


def embedding_layer_norm_bwd(
    dz: Tensor, dtoken_type: Tensor, dweight: Tensor, dbias: Tensor, dout: Tensor, ids: Tensor, word: Tensor,
    position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None, token_type: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, needs_dz: bool, needs_dtoken_type: bool, needs_dweight: bool,
    needs_dbias: bool,
) -> None:  # fmt: skip
    """Writes the gradients that are needed; the others are of no element."""
    tables = (ids, word, position_ids, position, type_ids, token_type)
    dout_rows = as_rows(dout)
    types = token_type.shape[0] if needs_dtoken_type and token_type is not None else 0
    sums, programs = int(needs_dweight) + int(needs_dbias) + types, min(ids.shape[0], PROGRAMS)
    if not (sums or needs_dz):
        return
    partial = dout.new_empty((sums, programs, word.shape[1]), dtype=torch.float32) if sums else None
    launch(
        "embedding_layer_norm_bwd",
        {"dz": only_if(needs_dz, dz), "dtoken_type": only_if(needs_dtoken_type, dtoken_type),
         "dweight": only_if(needs_dweight, dweight), "dbias": only_if(needs_dbias, dbias), "partial": partial},
        _inputs(*tables, weight, row_index, rng_state) | {"dout": dout_rows, "mean": mean, "rstd": rstd},
        _dtypes(word, position, token_type, weight, bias) | {"dz_dtype": dz.dtype, "dout_dtype": dout.dtype},
        stride_dm=dout_rows.stride(0), programs=programs, **_numbers(*tables, row_index),
        **dropout_numbers(rng_state, dropout_p),
    )  # fmt: skip
