"""What embedding_layer_norm may be given."""

from __future__ import annotations

from torch import Tensor

from ..ops.checks import described, is_index, wrong
from ..ops.embedding_layer_norm.op import INDICES
from ._checks import check_mask

NO_PADDING = -1
"""Stands for a table in which every row has a gradient."""


def _check_index(name: str, index: Tensor, input: Tensor) -> None:
    if index.dtype not in INDICES:
        raise ValueError(wrong(name, described(index), "int32 or int64"))
    shape, full = index.shape, input.shape
    if len(shape) > len(full) or any(n not in (1, m) for n, m in zip(reversed(shape), reversed(full))):
        raise ValueError(wrong(name, tuple(shape), f"what broadcasts to the shape of input, {tuple(full)}"))


def check_tensors(input: Tensor, given: dict[str, Tensor | None]) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(wrong("input", described(input), "a Tensor"))
    if input.dtype not in INDICES:
        raise ValueError(wrong("input", described(input), "int32 or int64"))
    for name, t in given.items():
        if t is None and name != "word_embeddings":
            continue
        if not isinstance(t, Tensor):
            raise TypeError(wrong(name, described(t), "a Tensor"))
        if t.device != input.device:
            raise ValueError(wrong(name, f"a tensor on {t.device}", f"{input.device}, where input is"))
        if name.endswith("_embeddings") and (t.dim() != 2 or 0 in t.shape or not t.is_floating_point()):
            raise ValueError(wrong(name, described(t), "a floating table (rows, n)"))
    word, weight, bias, position, position_ids, token_type, type_ids, row_index, rng_state = given.values()
    n_cols = word.shape[1]  # type: ignore[union-attr]
    for name, table in (("position_embeddings", position), ("token_type_embeddings", token_type)):
        if table is not None and table.shape[1] != n_cols:
            raise ValueError(wrong(name, tuple(table.shape), f"(rows, {n_cols}), as word_embeddings has"))
    for name, row in (("weight", weight), ("bias", bias)):
        if row is not None and (row.shape != (n_cols,) or not row.is_floating_point()):
            raise ValueError(wrong(name, described(row), f"floating ({n_cols},)"))
    for name, index, table in (("position", position_ids, position), ("token_type", type_ids, token_type)):
        if index is not None:
            if table is None:
                raise ValueError(wrong(f"{name}_ids", "a Tensor", f"None without {name}_embeddings"))
            _check_index(f"{name}_ids", index, input)
    if position is not None and position_ids is None and input.dim() and input.shape[-1] > position.shape[0]:
        allowed = f"at most {position.shape[0]} columns, one for each row of position_embeddings"
        raise ValueError(wrong("input", f"{input.shape[-1]} columns", allowed))
    check_mask(row_index, rng_state, input.shape)


def padding_of(name: str, padding_idx: int | None, table: Tensor | None) -> int:
    """The row that gets no gradient, NO_PADDING for none; negative numbers count from the end, as torch's do."""
    if padding_idx is None:
        return NO_PADDING
    n_table = 0 if table is None else table.shape[0]
    if isinstance(padding_idx, Tensor) or not is_index(padding_idx):
        raise TypeError(wrong(name, repr(padding_idx), "an int or None"))
    if not -n_table <= padding_idx < n_table:
        allowed = f"{-n_table} to {n_table - 1}, the rows of its table" if n_table else "None without its table"
        raise ValueError(wrong(name, padding_idx, allowed))
    return padding_idx % n_table
