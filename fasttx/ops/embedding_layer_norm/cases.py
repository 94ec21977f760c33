"""Small calls of embedding_layer_norm."""

from __future__ import annotations

import torch

from ..cases import Cases, Draw

REPEATED = ("plain", "word")
"""Cases whose kernels differ from those of the others in what these have checked."""


def cases(draw: Draw) -> Cases:
    dtype = draw.dtype
    word, position, token_type = (draw.randn(rows, 384) for rows in (1000, 64, 2))
    ids = (draw.arange(74) * 37) % 1000  # two sequences of 37
    tables = ids, word, draw.arange(37), position, ids % 2, token_type
    yield "check", (*tables, draw.randn(384), draw.randn(384), None, None, 0.0, 1e-12, dtype)
    ids, positions = draw.tensor([3, 0, 10, 3, 7, 5]), draw.arange(3)
    types = draw.tensor([0, 1, 1, 0, 0, 1], torch.int32)
    word, position, token_type = draw.randn(11, 37), draw.randn(5, 37), draw.randn(2, 37)
    weight, bias = draw.randn(37), draw.randn(37)
    tables = ids, word, positions, position, types, token_type
    yield "plain", (*tables, weight, bias, None, None, 0.0, 1e-5, dtype)
    yield "dropout", (*tables, weight, bias, None, draw.rng_state(), 0.25, 1e-12, dtype)
    wide = ids.int(), word.float(), ids % 5, position, None, None
    numbers = draw.tensor([3, 1, 70, 2, 9, 4])
    yield "numbered", (*wide, weight.float(), None, numbers, draw.rng_state(), 0.1, 1e-5, torch.float32)
    yield "word", (ids, word, None, None, types, position, None, bias, None, None, 0.0, 1e-5, dtype)
    one = ids, word.T.contiguous().T, None, None, types[:1] * 0, token_type[:1]
    yield "strided", (*one, None, None, None, None, 0.0, 0.1, dtype)
    none = ids[:0], word, positions[:0], position, types[:0], token_type
    yield "empty", (*none, weight, bias, None, None, 0.0, 0.1, dtype)
    ids = draw.tensor([1, 0])
    tables = ids, draw.randn(2, 8), ids, draw.randn(2, 8), ids, draw.randn(2, 8)
    yield "smallest", (*tables, draw.randn(8), draw.randn(8), None, None, 0.0, 1e-5, dtype)


def many_rows(draw: Draw) -> Cases:
    """More tiles than programs."""
    word, position, token_type = (draw.randn(rows, 1100) for rows in (50, 150, 2))
    ids = (draw.arange(300) * 37) % 50
    tables = ids, word, draw.arange(150), position, ids % 2, token_type
    weight, bias = draw.randn(1100), draw.randn(1100)
    yield "many-rows", (*tables, weight, bias, None, draw.rng_state(), 0.25, 1e-12, draw.dtype)
