"""int8_linear in CUDA C++: every tile, any layout and epilogue, and which tile a shape takes."""

from __future__ import annotations

import math
import re

import pytest
import torch
from cuda_build import CSRC
from torch import Tensor

from fasttx.ops.int8_linear import cuda
from fasttx.ops.int8_linear.op import INT8_LINEAR

CONFIG = (CSRC / "int8_linear" / "int8_linear_config.h").read_text()
TILES = [tuple(map(int, numbers.split(", "))) for numbers in re.findall(r"^    \{([\d, ]+)\},", CONFIG, re.M)]
"""(block_m, block_n, block_k, warps_m, warps_n, warps_k, stages, passes, blocks)"""


@pytest.fixture(autouse=True)
def runnable(device: torch.device) -> None:
    x = torch.ones(2, 2, dtype=torch.int8, device=device)
    reason = INT8_LINEAR.reasons(x, x)["cuda"]
    if reason is not None:
        pytest.skip(reason)


def integers(*shape: int, device: torch.device) -> Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, device=device)


def exact(x_q: Tensor, w_q: Tensor) -> Tensor:
    return (x_q.long().cpu() @ w_q.long().t().cpu()).float().to(x_q.device)


def sums_between_guards(x_q: Tensor, w_q: Tensor, dtype: torch.dtype = torch.float32, start: int = 256) -> Tensor:
    """The sums, written into a buffer whose other elements have to stay as they are."""
    n_rows, n_out = x_q.shape[0], w_q.shape[0]
    room = torch.full((start + n_rows * n_out + 256,), -7.5, dtype=dtype, device=x_q.device)
    room[start:-256] = math.nan
    out = room[start:-256].view(n_rows, n_out)
    ones = torch.ones(n_rows, device=x_q.device), torch.ones(n_out, device=x_q.device)
    cuda.int8_linear_fwd(out, x_q, w_q, *ones, None, None, "none", dtype)
    assert bool((room[:start] == -7.5).all()) and bool((room[-256:] == -7.5).all())
    return out


def test_the_list_of_tiles_is_what_these_tests_take() -> None:
    assert len(TILES) == 5 and sorted(TILES, key=lambda t: -t[0] * t[1]) == TILES
    for block_m, block_n, block_k, warps_m, warps_n, warps_k, stages, passes, _ in TILES:
        assert warps_m * warps_n * warps_k == 4 and stages >= 3
        assert (block_m + block_n) * block_k * stages == 48 * 1024
        assert warps_k * block_m * block_n * 4 // passes + 4 * (block_m + 2 * block_n) <= 48 * 1024


# more steps of k than stages, and fewer; ragged in each direction, and whole
@pytest.mark.parametrize("tile", range(len(TILES)), ids=lambda i: "x".join(map(str, TILES[i][:3])))
@pytest.mark.parametrize("more", [False, True])
def test_every_tile_and_nothing_outside(device, monkeypatch, tile: int, more: bool) -> None:
    monkeypatch.setattr(cuda, "TILE", tile)
    block_m, block_n, block_k, *_, stages, _, _ = TILES[tile]
    n_rows, n_out, n_in = (block_m + 3, block_n + 5, (stages + 1) * block_k + 16) if more else (block_m, block_n, 48)
    x_q, w_q = integers(n_rows, n_in, device=device), integers(n_out, n_in, device=device)
    assert torch.equal(sums_between_guards(x_q, w_q), exact(x_q, w_q))


@pytest.mark.parametrize("n_in", [1, 3, 17, 130, 396])
def test_rows_that_are_not_aligned(device, n_in: int) -> None:
    x_q, w_q = integers(67, n_in, device=device), integers(66, n_in, device=device)
    assert torch.equal(sums_between_guards(x_q, w_q), exact(x_q, w_q))


def test_a_base_that_is_not_aligned(device) -> None:
    """A multiple of 16 columns at a multiple of 16, from an odd address on, and from one that is a multiple of 4."""
    for start in (1, 4):
        x_q, w_q = integers(20, 96, device=device), integers(24, 96, device=device)
        for x, w in ((x_q[:, start : start + 48], w_q[:, :48]), (x_q[:, :48], w_q[:, start : start + 48])):
            assert torch.equal(sums_between_guards(x, w), exact(x, w))


def test_more_row_blocks_than_a_group_has(device, monkeypatch) -> None:
    """With the smallest tile: two whole groups of eight, and a part of one, by three column blocks."""
    monkeypatch.setattr(cuda, "TILE", len(TILES) - 1)
    x_q, w_q = integers(16 * 18 + 1, 16, device=device), integers(70, 16, device=device)
    assert torch.equal(sums_between_guards(x_q, w_q), exact(x_q, w_q))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_outputs_that_are_not_aligned(device, dtype) -> None:
    x_q, w_q = integers(5, 16, device=device), integers(16, 16, device=device)
    x_q[:, 4:] = 0
    x_q, w_q = x_q.clamp(-4, 4), w_q.clamp(-4, 4)  # sums that both dtypes hold
    for start in (255, 256):
        assert torch.equal(sums_between_guards(x_q, w_q, dtype, start).float(), exact(x_q, w_q))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(128, 768, 3072), (128, 3072, 768), (1, 768, 768), (33, 3072, 768)])
def test_layers_of_an_encoder(device, shape) -> None:
    n_rows, n_in, n_out = shape
    x_q, w_q = integers(n_rows, n_in, device=device), integers(n_out, n_in, device=device)
    assert torch.equal(sums_between_guards(x_q, w_q), exact(x_q, w_q))


@pytest.mark.slow
def test_the_longest_rows_at_the_extremes(device) -> None:
    x_q = torch.full((2, 131056), -128, dtype=torch.int8, device=device)
    w_q = torch.full((1, 131056), -128, dtype=torch.int8, device=device)
    x_q[1] = 127
    assert torch.equal(sums_between_guards(x_q, w_q), exact(x_q, w_q))
