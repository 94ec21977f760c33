"""The row of embedding_layer_norm: out = dropout(layer_norm(word[ids] + token_type[types] + position[positions])).

Formulas: kernels/embedding_layer_norm.py.  Backward is given the ids and the tables and gathers the sum again: it was
never written, and reading two rows that lie in L2 besides the word's costs less than keeping it.  It returns dz, from
which the caller adds up the gradients of the word and position tables, and the gradient of a token-type table of at
most MAX_TYPES rows, whose sums cost nothing beside the sums for weight and bias.

position_ids and type_ids may be as many as ids, or fewer that repeat themselves: row r reads number r modulo their
count, so that positions of a padded batch need no copy for each sequence.  row_index counts the rows for the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checks import FLOATS, check_index_values, check_one_device, wrong
from ..cost import bytes_of
from ..dropout import rows as row_dropout
from ..registry import Direction, Impl, Op
from . import composed, reference

MAX_COLS = 4096
"""The longest row that the kernels hold in registers."""
MAX_TYPES = 2
"""The most token types of which backward sums the gradient itself."""
INDICES = (torch.int32, torch.int64)

# ------------------------------------------------------------------------------------------------------------- check


def _check_table(name: str, ids_name: str, ids: Tensor | None, table: Tensor | None, n_rows: int, n_cols: int) -> None:
    if (ids is None) != (table is None):
        raise ValueError(
            wrong(ids_name, None if ids is None else "a tensor", f"a tensor where {name} is one, else None")
        )
    if ids is None or table is None:
        return
    if table.dim() != 2 or table.shape[1] != n_cols or table.shape[0] == 0 or table.dtype not in FLOATS:
        raise ValueError(
            wrong(
                name,
                f"{table.dtype} {tuple(table.shape)}",
                f"float32, float16 or bfloat16 (rows, {n_cols}) of at least one row",
            )
        )
    if ids.dtype not in INDICES or ids.dim() != 1 or (n_rows and (ids.shape[0] == 0 or n_rows % ids.shape[0])):
        raise ValueError(
            wrong(
                ids_name,
                f"{ids.dtype} {tuple(ids.shape)}",
                f"int32 or int64, as many as ids ({n_rows}) or a divisor of that",
            )
        )


def _check_tensors(
    ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float,
) -> None:  # fmt: skip
    if ids.dtype not in INDICES or ids.dim() != 1:
        raise ValueError(wrong("ids", f"{ids.dtype} {tuple(ids.shape)}", "int32 or int64 (n_rows,)"))
    if word.dim() != 2 or word.numel() == 0 or word.dtype not in FLOATS:
        raise ValueError(
            wrong(
                "word",
                f"{word.dtype} {tuple(word.shape)}",
                "float32, float16 or bfloat16 (rows, n_cols) of at least one row and column",
            )
        )
    n_rows, n_cols = ids.shape[0], word.shape[1]
    _check_table("position", "position_ids", position_ids, position, n_rows, n_cols)
    _check_table("token_type", "type_ids", type_ids, token_type, n_rows, n_cols)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and (t.shape != (n_cols,) or t.dtype not in FLOATS):
            raise ValueError(wrong(name, f"{t.dtype} {tuple(t.shape)}", f"float32, float16 or bfloat16 ({n_cols},)"))
    row_dropout.check(row_index, rng_state, dropout_p, n_rows)
    check_one_device(
        "ids", ids.device, word=word, position_ids=position_ids, position=position, type_ids=type_ids,
        token_type=token_type, weight=weight, bias=bias, row_index=row_index, rng_state=rng_state,
    )  # fmt: skip


def _check(
    ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype,
) -> None:  # fmt: skip
    _check_tensors(
        ids, word, position_ids, position, type_ids, token_type, weight, bias, row_index, rng_state, dropout_p
    )
    if not 0.0 <= eps < math.inf:
        raise ValueError(wrong("eps", eps, "a finite number, not negative"))
    if out_dtype not in FLOATS:
        raise ValueError(wrong("out_dtype", out_dtype, "float32, float16 or bfloat16"))
    for name, index, table in (
        ("ids", ids, word), ("position_ids", position_ids, position), ("type_ids", type_ids, token_type),
    ):  # fmt: skip
        if index is not None and table is not None:
            check_index_values(name, index, table.shape[0])


def _check_bwd(
    dout: Tensor, ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None,
    type_ids: Tensor | None, token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, needs_dz: bool,
    needs_dtoken_type: bool, needs_dweight: bool, needs_dbias: bool,
) -> None:  # fmt: skip
    _check_tensors(
        ids, word, position_ids, position, type_ids, token_type, weight, bias, row_index, rng_state, dropout_p
    )
    shape = (ids.shape[0], word.shape[1])
    if dout.shape != shape or dout.dtype not in FLOATS or dout.device != ids.device:
        raise ValueError(
            wrong(
                "dout",
                f"{dout.dtype} {tuple(dout.shape)} on {dout.device}",
                f"float32, float16 or bfloat16 {shape} on {ids.device}",
            )
        )
    for name, t in (("mean", mean), ("rstd", rstd)):
        if t.shape != ids.shape or t.dtype != torch.float32 or t.device != ids.device:
            raise ValueError(wrong(name, f"{t.dtype} {tuple(t.shape)}", f"float32 {tuple(ids.shape)} on {ids.device}"))
    for name, needed, owner in (
        ("token_type", needs_dtoken_type, token_type), ("weight", needs_dweight, weight), ("bias", needs_dbias, bias),
    ):  # fmt: skip
        if needed and owner is None:
            raise ValueError(wrong(f"needs_d{name}", "True", f"False without {name}"))
    if needs_dtoken_type and token_type is not None and token_type.shape[0] > MAX_TYPES:
        raise ValueError(
            wrong("needs_dtoken_type", f"True for a table of {token_type.shape[0]} rows", f"at most {MAX_TYPES} rows")
        )


# -------------------------------------------------------------------------------------------------------------- fakes


def _fake(
    ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    n_rows = ids.shape[0]
    mean, rstd = (word.new_empty((n_rows,), dtype=torch.float32) for _ in range(2))
    return word.new_empty((n_rows, word.shape[1]), dtype=out_dtype), mean, rstd


def _fake_bwd(
    dout: Tensor, ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None,
    type_ids: Tensor | None, token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, needs_dz: bool,
    needs_dtoken_type: bool, needs_dweight: bool, needs_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def like(t: Tensor | None, needed: bool) -> Tensor:
        if t is None or not needed:
            return word.new_empty((0,), dtype=torch.float32)
        return t.new_empty(t.shape)

    dz = like(None, False)
    if needs_dz:
        dz = word.new_empty((ids.shape[0], word.shape[1]), dtype=composed.sum_dtype(word, position, token_type))
    return dz, like(token_type, needs_dtoken_type), like(weight, needs_dweight), like(bias, needs_dbias)


# ------------------------------------------------------------------------------------------------------ cost and row


def _read(ids: Tensor, word: Tensor, *tables: Tensor | None) -> float:
    """The rows of the word table, one a token at most; of the others, whose ids mostly repeat, the same bound."""
    rows = 0.0
    for table in (word, *tables):
        if table is not None:
            rows += min(ids.shape[0], table.shape[0]) * word.shape[1] * table.element_size()
    return rows


def _cost(
    ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None, type_ids: Tensor | None,
    token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, row_index: Tensor | None,
    rng_state: Tensor | None, dropout_p: float, eps: float, out_dtype: torch.dtype,
) -> tuple[float, float]:  # fmt: skip
    """Two sums, mean, differences, squares, variance, scale, weight, bias, dropout: 12 per element."""
    n_rows, elements = ids.shape[0], ids.shape[0] * word.shape[1]
    indices = bytes_of(ids, position_ids, type_ids, row_index)
    read = _read(ids, word, position, token_type) + bytes_of(weight, bias) + indices
    return 12.0 * elements, read + elements * out_dtype.itemsize + 8.0 * n_rows


def _cost_bwd(
    dout: Tensor, ids: Tensor, word: Tensor, position_ids: Tensor | None, position: Tensor | None,
    type_ids: Tensor | None, token_type: Tensor | None, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
    rstd: Tensor, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float, needs_dz: bool,
    needs_dtoken_type: bool, needs_dweight: bool, needs_dbias: bool,
) -> tuple[float, float]:  # fmt: skip
    """About 16 per element; the gathered rows again, dout, and what is needed."""
    elements = ids.shape[0] * word.shape[1]
    read = _read(ids, word, position, token_type) + bytes_of(dout, ids, position_ids, type_ids, weight, mean, rstd)
    written = elements * composed.sum_dtype(word, position, token_type).itemsize if needs_dz else 0.0
    written += bytes_of(
        token_type if needs_dtoken_type else None, weight if needs_dweight else None, bias if needs_dbias else None
    )
    return 16.0 * elements, read + bytes_of(row_index) + written


def _supports(ids: Tensor, word: Tensor) -> str | None:
    if word.shape[-1] > MAX_COLS:
        return f"rows of at most {MAX_COLS} columns fit the registers of a block, word has shape {tuple(word.shape)}"
    if max(ids.numel(), word.shape[0]) >= 2**31:
        return f"rows are counted in 32 bits, ids has shape {tuple(ids.shape)} and word {tuple(word.shape)}"
    return None


def _sums_types(known: Mapping[str, Any]) -> bool:
    """Whether backward sums the gradient of the table of token types."""
    return known["token_type"] is not None and known["token_type"].shape[0] <= MAX_TYPES


_TABLES = "Tensor ids, Tensor word, Tensor? position_ids, Tensor? position, Tensor? type_ids, Tensor? token_type"
_NORM = "Tensor? weight, Tensor? bias"
_MASK = "Tensor? row_index, Tensor? rng_state, float dropout_p"
_NEEDS = "bool needs_dz, bool needs_dtoken_type, bool needs_dweight, bool needs_dbias"

EMBEDDING_LAYER_NORM = Op(
    "embedding_layer_norm",
    about="word, position and token-type embeddings, their layer norm, dropout; rows of up to 4,096",
    fwd=Direction(
        f"({_TABLES}, {_NORM}, {_MASK}, float eps, ScalarType out_dtype, str backend)"
        " -> (Tensor out, Tensor mean, Tensor rstd)",
        _check,
        _fake,
        composed.forward,
        reference.forward,
        ("ids", "word"),
        _cost,
    ),
    bwd=Direction(
        f"(Tensor dout, {_TABLES}, {_NORM}, Tensor mean, Tensor rstd, {_MASK}, {_NEEDS}, str backend)"
        " -> (Tensor dz, Tensor dtoken_type, Tensor dweight, Tensor dbias)",
        _check_bwd,
        _fake_bwd,
        composed.backward,
        reference.backward,
        ("ids", "word"),
        _cost_bwd,
        derived={"needs_dtoken_type": _sums_types},
    ),
    impls=(
        Impl(
            "triton",
            "fasttx.kernels.embedding_layer_norm:embedding_layer_norm_fwd",
            "fasttx.kernels.embedding_layer_norm:embedding_layer_norm_bwd",
            _supports,
        ),
        Impl(
            "cuda",
            "fasttx.ops.embedding_layer_norm.cuda:embedding_layer_norm_fwd",
            "fasttx.ops.embedding_layer_norm.cuda:embedding_layer_norm_bwd",
            _supports,
        ),
    ),
)


def keep_of(
    ids: Tensor, word: Tensor, row_index: Tensor | None, rng_state: Tensor, dropout_p: float, backend: str
) -> Tensor:
    """The mask (n_rows, n_cols) that the op applies under `backend`."""
    if EMBEDDING_LAYER_NORM.choice(backend, ids, word) is None:
        return composed.drawn_keep(ids, word.shape[1], row_index, rng_state, dropout_p)
    return composed.exact_keep(ids, word.shape[1], row_index, rng_state, dropout_p)
