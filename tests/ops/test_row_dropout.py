"""Row-wise dropout: Triton, PyTorch and an independent NumPy version of the scheme draw the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fasttx.ops.dropout import rows as _row_dropout

triton = pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl  # noqa: E402

from fasttx.kernels import row_dropout  # noqa: E402

SEED, OFFSET = 0x123456789ABCDEF, (7 << 32) + 0xFEDCBA98


def numpy_keep(seed: int, offset: int, rows: np.ndarray, n_cols: int, tag: int, threshold: int) -> np.ndarray:
    """Straight from the definition: one Philox call per element, then the byte."""
    cols = np.arange(n_cols, dtype=np.uint64)[None, :]
    low = np.uint64(0xFFFFFFFF)
    c0, c1 = np.broadcast_arrays(cols // np.uint64(16), rows.astype(np.uint64)[:, None] & low)
    c2, c3 = np.full(c0.shape, tag, np.uint64), np.full(c0.shape, offset & 0xFFFFFFFF, np.uint64)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(7):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    words = np.stack([c0, c1, c2, c3], -1)
    word = np.take_along_axis(
        words, (cols % np.uint64(16) // np.uint64(4)).astype(np.int64)[..., None].repeat(rows.size, 0), -1
    )
    return ((word[..., 0] >> (np.uint64(8) * (cols % np.uint64(4)))) & np.uint64(255)) >= threshold


@triton.jit
def write_mask(
    out_ptr,
    rng_ptr,
    row_start,
    col_start,
    threshold,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
):
    rows = row_start + tl.arange(0, ROWS)
    keep = row_dropout.row_keep(rng_ptr, rows, col_start, 0, threshold, ROWS, BLOCK_N, GROUP)
    tl.store(out_ptr + tl.arange(0, ROWS)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :], keep.to(tl.int8))


@pytest.mark.parametrize("rows, col_start, block", [(4, 0, 64), (1, 32, 16), (8, 48, 128)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("group", [4, 8, 16])
def test_triton_draws_the_bits_of_the_scheme(device, rows, col_start, block, p, group):
    state = torch.tensor([SEED, OFFSET], device=device)
    out = torch.empty(rows, block, dtype=torch.int8, device=device)
    threshold = row_dropout.threshold(p)
    write_mask[(1,)](out, state, 5, col_start, threshold, ROWS=rows, BLOCK_N=block, GROUP=group)
    expected = numpy_keep(SEED, OFFSET, 5 + np.arange(rows), col_start + block, 0, threshold)[:, col_start:]
    assert np.array_equal(out.cpu().numpy().astype(bool), expected)


@pytest.mark.parametrize("n_cols", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("tag", [0, 3])
def test_torch_draws_the_bits_of_the_scheme(device, n_cols, tag):
    rows = torch.tensor([0, 1, 77, 2**31, 2**32 - 1], device=device)
    state = torch.tensor([SEED, OFFSET], device=device)
    found = _row_dropout.row_keep(state, rows, n_cols, tag, 0.25)
    expected = numpy_keep(SEED, OFFSET, rows.cpu().numpy(), n_cols, tag, _row_dropout.threshold(0.25))
    assert np.array_equal(found.cpu().numpy(), expected)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.5, 0.9, 0.9999, 1.0])
def test_host_numbers_agree_and_keep_the_mean(p):
    assert row_dropout.threshold(p) == _row_dropout.threshold(p)
    assert row_dropout.keep_scale(p) == _row_dropout.keep_scale(p)
    assert row_dropout.SOFTMAX_TAG == _row_dropout.SOFTMAX_TAG
    assert row_dropout.LAYER_NORM_TAG == _row_dropout.LAYER_NORM_TAG != row_dropout.SOFTMAX_TAG
    assert row_dropout.GELU_TAG == _row_dropout.GELU_TAG not in (0, 1, 2)
    assert row_dropout.EMBEDDING_TAG == _row_dropout.EMBEDDING_TAG not in (0, 1)
    step = _row_dropout.threshold(p) / 256
    assert (1 - step) * _row_dropout.keep_scale(p) == pytest.approx(1.0 if p < 1 else 0.0)
    assert abs(step - p) <= 1 / 256


def test_share_kept_is_right_and_rows_are_unlike(device):
    state = torch.tensor([SEED, OFFSET], device=device)
    keep = _row_dropout.row_keep(state, torch.arange(256, device=device), 512, 0, 0.25).double()
    assert abs(float(keep.mean()) - 0.75) < 5 * (0.25 * 0.75 / keep.numel()) ** 0.5
    agreement = float((keep[:-1] == keep[1:]).double().mean())
    assert abs(agreement - (0.75**2 + 0.25**2)) < 0.01
    drawn = _row_dropout.drawn_keep(state, torch.Size((256, 512)), 0, 0.25)
    assert abs(float(drawn.double().mean()) - 0.75) < 0.01
    again = _row_dropout.drawn_keep(state, torch.Size((256, 512)), 0, 0.25)
    other = _row_dropout.drawn_keep(state + 1, torch.Size((256, 512)), 0, 0.25)
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)
