"""embedding_layer_norm of PyTorch's own operators, on any device.

Layer norm is native_layer_norm in float32, as in dropout_add_layer_norm/composed.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dropout import rows as row_dropout
from ..dropout.rows import EMBEDDING_TAG, keep_scale

_embedding = torch.ops.aten.embedding.default
_native = torch.ops.aten.native_layer_norm.default
_native_backward = torch.ops.aten.native_layer_norm_backward.default


def sum_dtype(word: Tensor, position: Tensor | None, token_type: Tensor | None) -> torch.dtype:
    """The dtype of the sum of the tables' rows, which dz has."""
    dtype = word.dtype
    for table in (position, token_type):
        if table is not None and table.dtype != dtype:
            dtype = torch.promote_types(dtype, table.dtype)
    return dtype


def table_gradient(dz: Tensor, ids: Tensor, n_table: int, padding_idx: int = -1) -> Tensor:
    """The gradient of a table (n_table, n_cols) whose rows `ids` were read: what torch.nn.functional.embedding gives.

    Row padding_idx gets 0; -1 stands for none. Deterministic on a GPU too, where PyTorch sorts the ids. An id outside
    of the table, which its kernels would follow, counts as the nearest row: its dz is NaN, and shows there. Where a few
    ids repeat themselves down the rows of dz (positions of a padded batch), these rows are added up first, in float32.
    """
    n_rows, n_ids = dz.shape[0], ids.shape[0]
    if n_ids != n_rows:
        dz = dz.view(n_rows // n_ids, n_ids, -1).sum(0, dtype=torch.float32)
    if dz.device.type != "cpu":
        ids = ids.clamp(0, n_table - 1)
    return torch.ops.aten.embedding_dense_backward.default(dz, ids, n_table, padding_idx, False)


def exact_keep(ids: Tensor, n_cols: int, row_index: Tensor | None, rng_state: Tensor, dropout_p: float) -> Tensor:
    """The mask of the kernels, bool (n_rows, n_cols)."""
    rows = torch.arange(ids.shape[0], device=ids.device) if row_index is None else row_index.to(torch.int64)
    return row_dropout.row_keep(rng_state, rows, n_cols, EMBEDDING_TAG, dropout_p)


def drawn_keep(ids: Tensor, n_cols: int, row_index: Tensor | None, rng_state: Tensor, dropout_p: float) -> Tensor:
    """The mask of the `torch` backend: with numbered rows the exact one, a function of them, else the fast one."""
    if row_index is not None:
        return exact_keep(ids, n_cols, row_index, rng_state, dropout_p)
    return row_dropout.drawn_keep(rng_state, torch.Size((ids.shape[0], n_cols)), EMBEDDING_TAG, dropout_p)


def _factor(
    ids: Tensor, n_cols: int, row_index: Tensor | None, rng_state: Tensor | None, dropout_p: float
) -> Tensor | None:
    """What the norm is multiplied by, float32: keep / (1 - p_hat); None where nothing is dropped."""
    if rng_state is None:
        return None
    return drawn_keep(ids, n_cols, row_index, rng_state, dropout_p).float().mul_(keep_scale(dropout_p))


def gathered(
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
    paddings: tuple[int, int, int] = (-1, -1, -1),
) -> Tensor:
    """z (n_rows, n_cols) in float32, from operators that autograd knows.

    Args:
        paddings: the rows of word, position and token_type that get no gradient; -1 for none.
    """
    z = _embedding(word, ids, paddings[0]).float()
    for index, table, padding_idx in ((type_ids, token_type, paddings[2]), (position_ids, position, paddings[1])):
        if index is not None and table is not None:
            rows = _embedding(table, index, padding_idx).float()
            z = (z.view(-1, *rows.shape) + rows).view(z.shape) if z.numel() else z
    return z


def _float(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float()


def forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    z = gathered(ids, word, position_ids, position, type_ids, token_type)
    out, mean, rstd = _native(z, [word.shape[1]], _float(weight), _float(bias), eps)
    factor = _factor(ids, word.shape[1], row_index, rng_state, dropout_p)
    if factor is not None:
        out = out.mul_(factor)
    return out.to(out_dtype), mean.reshape(-1), rstd.reshape(-1)


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    factor = _factor(ids, word.shape[1], row_index, rng_state, dropout_p)
    z = gathered(ids, word, position_ids, position, type_ids, token_type)
    dy = dout.float() if factor is None else dout.float() * factor
    dz, dweight, dbias = _native_backward(
        dy,
        z,
        [word.shape[1]],
        mean.view(-1, 1),
        rstd.view(-1, 1),
        _float(weight),
        _float(bias),
        [needs_dz or needs_dtoken_type, needs_dweight, needs_dbias],
    )

    def none() -> Tensor:  # outputs of an operator may not share memory
        return dout.new_empty((0,), dtype=torch.float32)

    dtype = sum_dtype(word, position, token_type)
    dtoken_type = none()
    if needs_dtoken_type and token_type is not None and type_ids is not None:
        if ids.numel():
            dtoken_type = table_gradient(dz, type_ids, token_type.shape[0]).to(token_type.dtype)
        else:
            dtoken_type = torch.zeros_like(token_type)
    return (
        dz.to(dtype).contiguous() if needs_dz else none(),
        dtoken_type,
        dweight.to(weight.dtype) if needs_dweight and weight is not None else none(),
        dbias.to(bias.dtype) if needs_dbias and bias is not None else none(),
    )


def differentiable(
    ids: Tensor,
    word: Tensor,
    position_ids: Tensor | None,
    position: Tensor | None,
    type_ids: Tensor | None,
    token_type: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    keep: Tensor | None,
    dropout_p: float,
    eps: float,
    out_dtype: torch.dtype,
    paddings: tuple[int, int, int],
) -> Tensor:
    """out from operators that can be differentiated any number of times; `keep` is the mask."""
    z = gathered(ids, word, position_ids, position, type_ids, token_type, paddings)
    out = torch.layer_norm(z, [word.shape[1]], _float(weight), _float(bias), eps, False)
    if keep is not None:
        out = out * (keep.float() * keep_scale(dropout_p))
    return out.to(out_dtype)
