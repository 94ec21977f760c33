"""The dropout mask of kernels/dropout.py against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.numpy_dropout import attention_keep, philox

triton = pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl  # noqa: E402

from fasttx.kernels.dropout import dropout_threshold, frag_mask, frag_mask_transposed, kept_bytes  # noqa: E402


@triton.jit
def write_mask(
    out,
    rng_state,
    head,
    m0,
    n0,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TRANSPOSED: tl.constexpr = False,
):
    seed, offset = tl.load(rng_state), tl.load(rng_state + 1)
    if TRANSPOSED:
        keep = tl.trans(frag_mask_transposed(seed, offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N))
    else:
        keep = frag_mask(seed, offset, head, m0, n0, THRESHOLD, BLOCK_M, BLOCK_N)
    tl.store(out + tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :], keep.to(tl.int8))


@triton.jit
def compare_bytes(out, words, THRESHOLD: tl.constexpr, N: tl.constexpr):
    w = tl.load(words + tl.arange(0, N)).to(tl.uint32)
    tl.store(out + tl.arange(0, N), kept_bytes(w, THRESHOLD).to(tl.int64))


def test_philox_is_the_published_one() -> None:
    # Random123's known answers for philox4x32 with 10 rounds: all zeros; and the digits of pi
    zero = tuple(np.zeros(1) for _ in range(4))
    assert [int(w[0]) for w in philox(zero, (0, 0), 10)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    pi = tuple(np.array([c]) for c in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344))
    words = [int(w[0]) for w in philox(pi, (0xA4093822, 0x299F31D0), 10)]
    assert words == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("seed", "offset", "head", "m0", "n0", "block_m", "block_n", "threshold"),
    [
        (0, 0, 0, 0, 0, 16, 32, 1),
        (0x123456789ABCDEF, 7, 5, 64, 32, 64, 64, 26),
        (77, 1, 2, 128, 64, 64, 128, 129),  # thresholds are compared in another way from 129 on
        (-1, -3, 1, 16, 96, 32, 128, 128),  # both halves of the key all ones; an offset wider than a counter word
        (1 << 40, (5 << 32) + 9, 123456, 4096, 8192, 16, 64, 255),
    ],
)
def test_mask_equals_numpy(
    device: torch.device,
    seed: int,
    offset: int,
    head: int,
    m0: int,
    n0: int,
    block_m: int,
    block_n: int,
    threshold: int,
    transposed: bool,
) -> None:
    out = torch.full((block_m, block_n), 9, dtype=torch.int8, device=device)
    rng_state = torch.tensor([seed, offset], dtype=torch.int64, device=device)
    shape = {"BLOCK_M": block_m, "BLOCK_N": block_n, "TRANSPOSED": transposed}
    write_mask[(1,)](out, rng_state, head, m0, n0, THRESHOLD=threshold, **shape)
    expected = attention_keep(seed, offset, head, m0 + np.arange(block_m), n0 + np.arange(block_n), threshold)
    assert np.array_equal(out.cpu().numpy(), expected.astype(np.int8))


def test_mask_does_not_depend_on_the_tile(device: torch.device) -> None:
    rng_state = torch.tensor([99, 4], dtype=torch.int64, device=device)
    whole = torch.empty(64, 128, dtype=torch.int8, device=device)
    write_mask[(1,)](whole, rng_state, 3, 32, 64, THRESHOLD=77, BLOCK_M=64, BLOCK_N=128)
    part = torch.empty(16, 32, dtype=torch.int8, device=device)
    write_mask[(1,)](part, rng_state, 3, 32 + 48, 64 + 96, THRESHOLD=77, BLOCK_M=16, BLOCK_N=32)
    assert torch.equal(part, whole[48:, 96:])


@pytest.mark.parametrize("threshold", [1, 26, 127, 128, 129, 254, 255])
def test_every_byte_is_compared(device: torch.device, threshold: int) -> None:
    """Words of four bytes are compared at once: each byte at each place, beside neighbours that could carry into it."""
    low = torch.arange(256, device=device)
    words = torch.cat([low << shift | fill for shift in (0, 8, 16, 24) for fill in (0, 0xFFFFFFFF & ~(255 << shift))])
    out = torch.empty_like(words)
    compare_bytes[(1,)](out, words, THRESHOLD=threshold, N=words.numel())
    for shift in (0, 8, 16, 24):
        assert torch.equal(out >> (shift + 7) & 1, ((words >> shift & 255) >= threshold).long())
    assert not bool((out & 0x7F7F7F7F).any())


def test_rate_and_independence() -> None:
    # 2^18 draws: the rate has a standard deviation of 0.0006; neighbours agree as often as chance has it
    rows, cols = np.arange(512), np.arange(512)
    a = attention_keep(1, 0, 0, rows, cols, 26)
    assert abs(a.mean() - (1 - 26 / 256)) < 0.004
    chance = a.mean() ** 2 + (1 - a.mean()) ** 2
    for other in (attention_keep(1, 0, 1, rows, cols, 26), attention_keep(1, 1, 0, rows, cols, 26)):
        assert abs((a == other).mean() - chance) < 0.006
    for x, y in ((a[:, 1:], a[:, :-1]), (a[1:], a[:-1]), (a[:, 16:], a[:, :-16]), (a[8:], a[:-8])):
        assert abs((x == y).mean() - chance) < 0.006


@pytest.mark.parametrize(("p", "threshold"), [(0.0, 0), (1e-6, 1), (0.1, 26), (0.5, 128), (0.9999, 255)])
def test_threshold(p: float, threshold: int) -> None:
    assert dropout_threshold(p) == threshold
