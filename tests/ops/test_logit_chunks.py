"""Chunks of the rows of linear cross-entropy: how many rows, and where their logits lie."""

from __future__ import annotations

import pytest
import torch

from fasttx.cli.check import DTYPES
from fasttx.kernels import logit_chunks
from fasttx.ops.linear_cross_entropy import composed


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_rows_of_logits_start_at_16_bytes(dtype: torch.dtype, device: torch.device) -> None:
    """In the last chunk too, which is part of the same memory."""
    x, weight, bias = (torch.randn(*shape, device=device).to(dtype) for shape in ((3, 5), (297, 5), (297,)))
    workspace = logit_chunks.workspace_of(4, 297, x)
    logits = logit_chunks.logits_of(workspace, x, weight, bias)
    assert workspace.shape == (4, 297) and workspace.stride(0) * workspace.element_size() % 16 == 0
    assert logits.shape == (3, 297) and logits.stride() == workspace.stride()
    assert logits.data_ptr() == workspace.data_ptr()


def test_chunks_are_bounded_and_even() -> None:
    rows_at_a_time, least = logit_chunks.rows_at_a_time, logit_chunks.LEAST_ROWS
    assert rows_at_a_time(4096, 30522, 768, 2, True) == 2048  # two halves, not 2,176 and 1,920
    assert rows_at_a_time(2100, 30522, 768, 2, True) == 2100  # no second chunk below the bound
    assert rows_at_a_time(5000, 30522, 768, 2, True) == 1792  # thirds of 1,667 rows, up to a multiple of 128
    assert rows_at_a_time(4096, 250002, 768, 2, True) == rows_at_a_time(4096, 250002, 768, 2, False) == least
    assert composed.rows_at_a_time(600, 30522, 4) == 300
    assert composed.rows_at_a_time(1000, 250002, 4) == 125
    for n_rows in (1, 2, 1023, 1024, 1025, 4390, 5000):  # 4,390 are two chunks, but for the multiples of 128
        for n_cols in (1, 30522, 250002):
            most = max(least, logit_chunks.CHUNK_BYTES // (2 * n_cols))
            for width, backward in ((64, False), (768, True)):
                assert 1 <= rows_at_a_time(n_rows, n_cols, width, 2, backward) <= min(n_rows, most)
            most = max(composed.LEAST_ROWS, composed.CHUNK_BYTES // (2 * n_cols))
            assert 1 <= composed.rows_at_a_time(n_rows, n_cols, 2) <= min(n_rows, most)


def test_logits_stay_in_the_l2_where_that_moves_fewer_bytes() -> None:
    """BERT's vocabulary: in forward always, in backward unless a float32 gradient of the weight moves for few rows."""
    rows_at_a_time = logit_chunks.rows_at_a_time
    assert 512 * 30522 * 2 <= logit_chunks.L2_BYTES < 640 * 30522 * 2
    assert [rows_at_a_time(4096, 30522, width, 2, False) for width in (384, 768, 1024)] == [512, 512, 512]
    assert [rows_at_a_time(4096, 30522, width, 2, True) for width in (256, 384, 768)] == [512, 512, 2048]
    assert rows_at_a_time(600, 30522, 768, 2, False) == 384  # not 512 and 88
    # a little more than one small chunk has: a second one reads all of the weight again
    assert [rows_at_a_time(600, 30522, width, 2, False) for width in (768, 2000)] == [384, 600]
    # one chunk writes the gradient of the weight once, of half precision, where several add to float32
    assert [rows_at_a_time(n_rows, 30522, 768, 2, True) for n_rows in (1024, 2048)] == [1024, 2048]
    # in forward, of half precision: 4 bytes a logit that leaves the L2, and the weight once a chunk
    assert logit_chunks.bytes_moved(4096, 512, 30522, 768, 2, False) == 2 * 768 / 512
    assert logit_chunks.bytes_moved(4096, 2176, 30522, 768, 2, False) == 4 + 2 * 768 / 2048
    # in backward 12 bytes; the weight twice, and its gradient read and written, or written
    assert logit_chunks.bytes_moved(4096, 2176, 30522, 768, 2, True) == 12 + (4 + 8) * 768 / 2048
    assert logit_chunks.bytes_moved(1024, 2176, 30522, 768, 2, True) == 12 + (4 + 2) * 768 / 1024
