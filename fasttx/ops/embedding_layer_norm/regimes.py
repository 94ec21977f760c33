"""Regimes of embedding_layer_norm: how many tokens, and how wide."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..cases import Draw
from ..dropout_add_layer_norm.regimes import COLUMNS
from ..regimes import ROWS, Example, Regimes


def numbers(ids: Tensor, word: Tensor) -> tuple[int, int]:
    return word.shape[-1], ids.numel()


def examples(draw: Draw, few: bool, n_cols: int, n_rows: int) -> Iterator[Example]:
    rows, length, words = (64, 32, 999) if few else (n_rows, 512, 30522)
    word, position, token_type = (draw.randn(n, n_cols) for n in (words, length, 2))
    ids = draw.arange(rows) * 7919 % words
    tables = (ids, word, draw.arange(length), position, ids % 2, token_type)
    tail = (draw.randn(n_cols), draw.randn(n_cols), None)
    yield "plain", (*tables, *tail, None, 0.0, 1e-12, draw.dtype)
    yield "dropout", (*tables, *tail, draw.rng_state(), 0.1, 1e-12, draw.dtype)


REGIMES = Regimes(numbers, (COLUMNS, ROWS), ("to 1024 cols", "many rows"), examples)
