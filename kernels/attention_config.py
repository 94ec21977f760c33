"""Tile sizes of the attention kernels: a pure function over a literal table.

How the numbers were chosen, with the registers and the shared memory each one takes: docs/kernels/attention.md.
"""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """What a launch needs to know.

    Attributes:
        block_m, block_n: query rows and keys of one tile.
        num_warps, num_stages: as in triton.
        transposed: (backward) scores are computed as K Q^T, so that P^T and dS^T are register operands of dV and dK.
        max_registers: a bound for ptxas, where it lets one more block share a multiprocessor without spilling.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    transposed: bool = False
    max_registers: int | None = None


# (kernel, arch, widest head dim up to) -> tile, for 2-byte types. kernel: fwd; dkdv: one key block at a time, with dq
# by atomics or written directly; dq: the second pass of the deterministic backward; dbias: the gradient of the bias.
TABLE: dict[tuple[str, int, int], Config] = {
    ("fwd", 80, 32): Config(128, 64, 8, 3),
    ("fwd", 80, 64): Config(128, 64, 8, 3),
    ("fwd", 80, 128): Config(128, 64, 8, 2),
    ("fwd", 80, 256): Config(64, 32, 8, 1),
    ("fwd", 90, 32): Config(128, 64, 8, 3, max_registers=128),
    ("fwd", 90, 64): Config(128, 64, 8, 3, max_registers=128),
    ("fwd", 90, 128): Config(128, 64, 8, 3),
    ("fwd", 90, 256): Config(128, 64, 8, 2),
    ("fwd", 100, 32): Config(128, 128, 8, 3),
    ("fwd", 100, 64): Config(128, 128, 8, 3),
    ("fwd", 100, 128): Config(128, 64, 8, 2),
    ("fwd", 100, 256): Config(128, 64, 8, 1),
    ("dkdv", 80, 32): Config(32, 128, 8, 2, True),
    ("dkdv", 80, 64): Config(32, 128, 8, 2, True),
    ("dkdv", 80, 128): Config(32, 64, 8, 1),
    ("dkdv", 80, 256): Config(16, 32, 8, 1),
    ("dkdv", 90, 32): Config(64, 128, 8, 2, True),
    ("dkdv", 90, 64): Config(64, 128, 8, 2, True),
    ("dkdv", 90, 128): Config(32, 128, 8, 1, True),
    ("dkdv", 90, 256): Config(32, 64, 8, 1),
    ("dkdv", 100, 32): Config(64, 128, 8, 2, True),
    ("dkdv", 100, 64): Config(64, 128, 8, 1, True),
    ("dkdv", 100, 128): Config(64, 64, 8, 1, True),
    ("dkdv", 100, 256): Config(32, 32, 8, 1),
    ("dq", 80, 32): Config(64, 64, 8, 2),
    ("dq", 80, 64): Config(64, 64, 8, 2),
    ("dq", 80, 128): Config(64, 32, 8, 1),
    ("dq", 80, 256): Config(32, 32, 8, 1),
    ("dq", 90, 32): Config(128, 64, 8, 2),
    ("dq", 90, 64): Config(128, 64, 8, 2),
    ("dq", 90, 128): Config(128, 64, 8, 1),
    ("dq", 90, 256): Config(64, 32, 8, 1),
    ("dq", 100, 32): Config(128, 64, 8, 2),
    ("dq", 100, 64): Config(128, 64, 8, 2),
    ("dq", 100, 128): Config(128, 64, 8, 1),
    ("dq", 100, 256): Config(64, 32, 8, 1),
    ("dbias", 80, 32): Config(64, 32, 4, 1),
    ("dbias", 80, 64): Config(64, 32, 4, 1),
    ("dbias", 80, 128): Config(32, 64, 8, 1),
    ("dbias", 80, 256): Config(32, 32, 4, 1),
    ("dbias", 90, 32): Config(64, 64, 8, 1),
    ("dbias", 90, 64): Config(64, 64, 8, 1),
    ("dbias", 90, 128): Config(64, 64, 8, 1),
    ("dbias", 90, 256): Config(64, 64, 8, 1),
    ("dbias", 100, 32): Config(64, 64, 8, 1),
    ("dbias", 100, 64): Config(64, 64, 8, 1),
    ("dbias", 100, 128): Config(64, 64, 8, 1),
    ("dbias", 100, 256): Config(64, 64, 8, 1),
}

# Where a score costs more registers (forward: any mask or window;
# backward: costs_registers); a row that is missing here is TABLE's.
TABLE_MASKED: dict[tuple[str, int, int], Config] = {
    ("fwd", 80, 128): Config(128, 32, 8, 2),
    ("fwd", 90, 32): Config(128, 64, 8, 3),
    ("fwd", 90, 64): Config(128, 64, 8, 3),
    ("fwd", 90, 128): Config(128, 64, 8, 2),
    ("fwd", 100, 32): Config(128, 64, 8, 3),
    ("fwd", 100, 64): Config(128, 64, 8, 3),
    ("fwd", 100, 128): Config(128, 32, 8, 2),
    ("dkdv", 80, 64): Config(32, 64, 8, 1, True),
    ("dkdv", 80, 128): Config(32, 32, 8, 1),
    ("dkdv", 90, 32): Config(64, 64, 8, 2),
    ("dkdv", 90, 64): Config(64, 64, 8, 2, True),
    ("dkdv", 90, 128): Config(32, 64, 8, 1, True),
    ("dkdv", 100, 32): Config(64, 64, 8, 2),
    ("dkdv", 100, 64): Config(64, 64, 8, 1),
    ("dq", 80, 32): Config(64, 32, 8, 2),
    ("dq", 80, 64): Config(64, 32, 8, 2),
}

# Tiles that no call takes by itself: for a measurement that puts one in the place of TABLE's. Blocks of 4 warps share a
# multiprocessor where TABLE's has it alone, but add twice as often to dq, once for each 64 keys.
OTHER_TILES: dict[tuple[str, int, int], tuple[Config, ...]] = {
    ("dkdv", 90, 64): (Config(64, 64, 4, 2, True), Config(64, 64, 4, 2), Config(32, 64, 4, 2, True)),
}

# float32 multiplies on the vector units (or as tf32): small tiles, the operands are twice as wide.
TABLE_FP32: dict[tuple[str, int], Config] = {
    ("fwd", 64): Config(64, 32, 4, 2),
    ("fwd", 128): Config(32, 32, 4, 2),
    ("fwd", 256): Config(16, 32, 4, 1),
    ("dkdv", 64): Config(32, 32, 4, 1),
    ("dkdv", 128): Config(16, 32, 4, 1),
    ("dkdv", 256): Config(16, 32, 8, 1),
    ("dq", 64): Config(32, 32, 4, 1),
    ("dq", 128): Config(16, 32, 4, 1),
    ("dq", 256): Config(16, 32, 4, 1),
    ("dbias", 64): Config(32, 32, 4, 1),
    ("dbias", 128): Config(32, 32, 4, 1),
    ("dbias", 256): Config(16, 32, 4, 1),
}


def power_of_two(n: int) -> int:
    """The least power of two that is at least n and at least 16, the smallest side of a matrix instruction."""
    return max(16, 1 << max(n - 1, 0).bit_length())


def costs_registers(head_dim: int, arch: int, wide_mask: bool, key_mask: bool, dropout: bool) -> bool:
    """Whether the backward takes its tile from TABLE_MASKED; wide_mask: a window, or a mask with a row for each query.

    One vector of a key mask, or dropout, fits the tiles of TABLE but for those that fill every register without them.
    """
    if arch < 90:
        return wide_mask or key_mask
    return wide_mask or (head_dim > 64 and (key_mask or dropout))


def config(
    kernel: str, head_dim: int, itemsize: int, arch: int, max_seqlen_q: int, max_seqlen_k: int, masked: bool = False
) -> Config:
    """Tile of a kernel.

    Args:
        kernel: "fwd", "dkdv", "dq" or "dbias".
        head_dim: the larger of head_dim and head_dim_v, at most 256.
        itemsize: bytes of an element of q.
        arch: compute capability, times ten.
        max_seqlen_q, max_seqlen_k: blocks are no larger than these need (at least 16 rows; 32 keys, as dropout does);
            but for the keys of "fwd": how many are summed at once decides about last bits, and a sequence's result
            must not depend on the longest one beside it.
        masked: there is a window, or a mask; forward, dropout beside tiles that fill every register without it
            (backward: what costs_registers says).
    """
    if itemsize == 4:
        found = TABLE_FP32[kernel, 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256]
    else:
        # the consumer chips (8.6, 8.9, 12.x) have 100 KiB of shared memory and neither wgmma nor tcgen05
        row = 100 if 100 <= arch < 120 else 90 if 90 <= arch < 100 else 80
        key = kernel, row, 32 if head_dim <= 32 else 64 if head_dim <= 64 else 128 if head_dim <= 128 else 256
        found = (TABLE_MASKED.get(key) if masked else None) or TABLE[key]
    block_m = min(found.block_m, power_of_two(max_seqlen_q))
    block_n = found.block_n if kernel == "fwd" else min(found.block_n, max(32, power_of_two(max_seqlen_k)))
    # accumulators (block_m rows, or block_n keys in dkdv) keep the share of each warp; wgmma and tcgen05 want 4 warps
    shrunk = found.block_n // block_n if kernel == "dkdv" else found.block_m // block_m
    return found._replace(block_m=block_m, block_n=block_n, num_warps=max(4, found.num_warps // shrunk))
