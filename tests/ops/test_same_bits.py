"""A sequence's attention has the same bits alone and in any packed batch, by every kernel of forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="one of the kernels is a Triton kernel")

from ops.test_attention_op import cu

import fasttx
from fasttx.functional import attention_varlen
from fasttx.kernels.attention_config import config
from fasttx.ops.attention.op import ATTENTION
from fasttx.ops.cuda import launch as cuda

LENGTHS = (1, 9, 16, 31, 33, 64, 65, 130)
COMPANY = (300, 2, 40)


def _backend(name: str, device: torch.device) -> str:
    if name == "triton" and device.type == "cpu":
        pytest.skip("the interpreter's products are NumPy's, whose last bits depend on the rows of a tile")
    reason = cuda.why_not(device, None if device.type == "cpu" else 80) if name == "cuda" else None
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_keys_of_a_tile_do_not_depend_on_the_batch(arch: int, itemsize: int) -> None:
    for head_dim in (32, 64, 128, 256):
        tiles = [config("fwd", head_dim, itemsize, arch, n, n) for n in (1, 16, 33, 64, 512, 4096)]
        assert len({tile.block_n for tile in tiles}) == 1
        assert tiles[0].block_m <= tiles[-1].block_m  # rows of queries stand for themselves


@pytest.mark.parametrize("window", [None, (7, 5)], ids=["all", "window"])
@pytest.mark.parametrize(
    "backend, dim", [("triton", 64), ("cuda", 64), ("cuda", 36), ("torch", 32)]
)  # 9.0, as the emulator has it, takes another kernel for 64 than for 36
def test_alone_and_in_company(device: torch.device, backend: str, dim: int, window: tuple[int, int] | None) -> None:
    assert {impl.backend for impl in ATTENTION.impls} <= {"triton", "cuda"}, "a new kernel belongs into this test"
    q, k, v = (torch.randn(sum(LENGTHS), 2, dim, dtype=torch.bfloat16, device=device) for _ in range(3))
    others = [torch.randn(sum(COMPANY), 2, dim, dtype=torch.bfloat16, device=device) for _ in range(3)]

    def run(lengths: tuple[int, ...], *rows: Tensor) -> tuple[Tensor, Tensor]:
        starts = cu(lengths).to(device)
        return attention_varlen(*rows, starts, starts, max(lengths), max(lengths), window_size=window, return_lse=True)

    with fasttx.backend(_backend(backend, device)):
        pieces = [[*x.split(LENGTHS)] for x in (q, k, v)]
        alone = [run((n,), *of_one) for n, *of_one in zip(LENGTHS, *pieces, strict=True)]
        for places in (range(len(LENGTHS)), reversed(range(len(LENGTHS))), (1, 0)):
            order = list(places)
            lengths = tuple(LENGTHS[i] for i in order)
            company = COMPANY if len(order) > 2 else ()
            rows = [
                torch.cat([of[i] for i in order] + ([other] if company else []))
                for of, other in zip(pieces, others, strict=True)
            ]
            out, lse = run(lengths + company, *rows)
            found = zip(order, out.split(lengths + company), lse.split(lengths + company, -1), strict=False)
            for i, of_out, of_lse in found:
                assert torch.equal(of_out, alone[i][0]), f"{LENGTHS[i]} tokens"
                assert torch.equal(of_lse, alone[i][1]), f"{LENGTHS[i]} tokens"
