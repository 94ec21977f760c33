"""What the machine code of a kernel allows at best: the unit that limits it, and the time below which it cannot come.

    python -m bench.bound [attention | attention_sm90 | int8_linear] [--arch 80 90 100] [--units]

Nothing runs, and nothing is measured. nvcc compiles the kernel, and the instructions on the shortest way through its
loop of products are counted by unit: what each unit can do in a clock gives the time that it needs. A kernel takes
longer: latencies, barriers, conflicts of banks, prologue and epilogue are left out, and the clock is the data sheet's.
It wants a checkout and nvcc; rates are in machine_units.py.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from .machine_units import CHIPS, FROM_REGISTERS, L2_BYTES, LANES, SHARED_BYTES, UNITS, Chip, clocks

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ("call", "chip", "limited by", "next, its share", "us at the least", "T/s at the most")
LAUNCHED = 128
"""Threads of a block of each of these kernels, or of a warpgroup that computes tiles of its own."""
KERNELS = ("attention", "attention_sm90", "int8_linear")


class Loop(NamedTuple):
    """A kernel's loop of products: the way of one warp through it once."""

    instructions: tuple[str, ...]
    registers: int


class Work(NamedTuple):
    """What a call asks for: rounds of the loop by all warps of a block, blocks, bytes of HBM, and operations.

    copied: bytes a round that TMA brings to shared memory, which no instruction of the loop shows.
    """

    name: str
    rounds: int
    blocks: int
    bytes: int
    operations: float
    copied: float = 0.0


class Bound(NamedTuple):
    """Microseconds that each unit needs for a call."""

    work: Work
    chip: Chip
    microseconds: dict[str, float]

    def limits(self) -> list[str]:
        """The units, the one that needs longest first."""
        return sorted(self.microseconds, key=lambda unit: -self.microseconds[unit])

    @property
    def least(self) -> float:
        return max(self.microseconds.values())


def bound(work: Work, loop: Loop, chip: Chip) -> Bound:
    """The busiest multiprocessor has its share of blocks, rounded up; what warps share of a unit adds up."""
    on_one = ceil(work.blocks / chip.multiprocessors) * work.rounds
    used = {unit: n * (LAUNCHED // LANES) for unit, n in clocks(loop.instructions, chip).items()}
    used["shared memory"] += work.copied / SHARED_BYTES
    used["L2"] += work.copied / L2_BYTES
    times = {unit: n * on_one / chip.hertz * 1e6 for unit, n in used.items()}
    times["HBM"] = work.bytes / chip.bytes_a_second * 1e6
    return Bound(work, chip, times)


ATTENTION = {32: (128, 64), 64: (128, 64), 128: (128, 32), 256: (64, 32)}
"""By head_dim: queries and keys of a tile (csrc/attention/attention_config.h)."""


def attention(batch: int, heads: int, seqlen: int, dim: int, dropout: bool = False) -> Work:
    """Forward without masks: q, k, v, out of 16 bits, and lse."""
    queries, keys = ATTENTION[dim]
    name = f"{batch} x {heads} x {seqlen}, head_dim {dim}{', dropout' if dropout else ''}"
    blocks = batch * heads * ceil(seqlen / queries)
    moved = batch * heads * seqlen * (4 * 2 * dim + 4)
    return Work(name, ceil(seqlen / keys), blocks, moved, 4.0 * batch * heads * seqlen**2 * dim)


SM90 = {64: (3, 5), 128: (2, 2)}
"""By head_dim: consumers, and blocks of 128 keys in shared memory, of the kernel by wgmma."""


def attention_sm90(batch: int, heads: int, seqlen: int, dim: int, dropout: bool = False) -> Work:
    """The same by wgmma: a warpgroup has tiles of 64 queries, and those of an item share each block of keys."""
    consumers, stages = SM90[dim]
    of_all = attention(batch, heads, seqlen, dim, dropout)
    tiles, rounds = ceil(seqlen / 64), ceil(seqlen / 128)
    sharing = tiles if rounds <= stages else consumers
    return of_all._replace(rounds=rounds, blocks=batch * heads * tiles, copied=2 * 128 * dim * 2 / sharing)


def int8_linear(rows: int, n_in: int, n_out: int) -> Work:
    """Tile of 128 x 128 outputs, 64 bytes of k a round; 16-bit out, and scales of rows and columns."""
    moved = rows * n_in + n_out * n_in + 2 * rows * n_out + 4 * (rows + n_out)
    blocks = ceil(rows / 128) * ceil(n_out / 128)
    return Work(f"{rows} x {n_in} to {n_out}", ceil(n_in / 64), blocks, moved, 2.0 * rows * n_in * n_out)


def _checkout() -> str | None:
    """Puts the folders of a checkout that read machine code on the path; what is missing, or None."""
    if not (ROOT / "csrc").is_dir():
        return f"{ROOT} is not a checkout of fasttx, which has the kernels' sources"
    sys.path[:0] = [path for folder in ("buildsystem", "tests") if (path := str(ROOT / folder)) not in sys.path]
    import cuda_build
    from cuda import machine_code

    return cuda_build.lacks() or (None if machine_code.cuobjdump() else "no cuobjdump was found (Triton brings one)")


@functools.cache
def _kernels(file: str, arch: str) -> list[Any]:
    import cuda_build
    from cuda import machine_code

    source = next(path for path in cuda_build.CSRC.glob("*/*.cu") if path.stem == file)
    return list(machine_code.kernels(source, "90a" if arch == "90" else arch))


def _kernel(file: str, part: str, arch: str) -> Any:
    """The one instantiation whose mangled name has `part`."""
    (found,) = [k for k in _kernels(file, arch) if part in k.name]
    return found


def _way(kernel: Any, product: str, copies: int, *more: Any) -> Loop:
    """Through the outermost loop with products: its copies of 16 bytes, a product, and what else is asked for."""
    from cuda.ways import named, shortest_way

    loop = [loop for loop in kernel.loops if any(i.name.startswith(product) for i in loop)][-1]
    way = shortest_way(loop, [*[named("LDGSTS")] * copies, named(product), *more])
    return Loop(tuple(i.name for i in way), kernel.registers)


def attention_loop(dim: int, dropout: bool, arch: str) -> Loop:
    """The forward in bfloat16."""
    kernel = _kernel("attention_fwd_sm80", f"bfloat16Li{dim}E", arch)
    philox = [lambda i: re.search(r"0xd2511f53|-0x2daee0ad", i.text) is not None]
    return _way(kernel, "HMMA", 2 * ATTENTION[dim][1] * dim // 8 // LAUNCHED, *(philox if dropout else []))


def attention_sm90_loop(dim: int, dropout: bool) -> Loop:
    """The forward by wgmma in bfloat16: the inner loop with both products."""
    from cuda.ways import named, shortest_way

    kernel = _kernel("attention_fwd_sm90", f"bfloat16Li{dim}ELb{int(dropout)}ELb0E", "90")
    from_registers = re.compile(r"HGMMA\S* R\d+, R\d+,")
    loop = next(loop for loop in kernel.loops if any(from_registers.search(i.text) for i in loop))
    philox = [lambda i: re.search(r"0xd2511f53|-0x2daee0ad", i.text) is not None] if dropout else []
    way = shortest_way(loop, [named("HGMMA"), *philox])
    names = (i.name + FROM_REGISTERS * bool(from_registers.search(i.text)) for i in way)
    return Loop(tuple(names), kernel.most_registers)


def int8_loop(arch: str) -> Loop:
    """The largest tile."""
    return _way(_kernel("int8_linear_sm80", "ILi0ELb1E", arch), "IMMA", 8)


ATTENTION_CALLS = ((32, 12, 128, 64), (32, 12, 512, 64), (8, 12, 2048, 128))
INT8_CALLS = ((16384, 768, 768), (16384, 768, 3072), (16384, 3072, 768), (16384, 1024, 4096))


def bounds(kernel: str, arch: str) -> Iterator[Bound]:
    """Of the calls that people make."""
    chip = CHIPS[arch]
    if kernel == "int8_linear":
        loop = int8_loop(arch)
        yield from (bound(int8_linear(*call), loop, chip) for call in INT8_CALLS)
        return
    for call in ATTENTION_CALLS:
        for dropout in (False, True):
            if kernel == "attention_sm90":
                yield bound(attention_sm90(*call, dropout), attention_sm90_loop(call[-1], dropout), chip)
                continue
            yield bound(attention(*call, dropout), attention_loop(call[-1], dropout, arch), chip)


def row(found: Bound) -> tuple[str, ...]:
    """The columns of SCHEMA."""
    first, second, *_ = found.limits()
    rate = found.work.operations / found.least / 1e6
    return (
        found.work.name,
        found.chip.name,
        first,
        f"{second} {found.microseconds[second] / found.least:.2f}",
        f"{found.least:.3g}",
        f"{rate:.0f}",
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"{', '.join(KERNELS)}; all by default")
    parser.add_argument("--arch", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--units", action="store_true", help="the microseconds of every unit")
    given = parser.parse_args(arguments)
    for name in given.kernels:
        if name not in KERNELS:
            parser.error(f"KERNEL: got {name}; allowed is {', '.join(KERNELS)}")
    if lacks := _checkout():
        print(f"bound: machine code cannot be read: {lacks}", file=sys.stderr)
        return 2
    for name in given.kernels or KERNELS:
        print(f"\n{name}: a bound by machine code, not a measurement\n")
        columns = (*SCHEMA[:2], *UNITS) if given.units else SCHEMA
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for arch in given.arch:
            if name == "attention_sm90" and not CHIPS[arch].wide:
                continue
            for found in bounds(name, arch):
                every = (*row(found)[:2], *(f"{found.microseconds[unit]:.3g}" for unit in UNITS))
                print(f"| {' | '.join(every if given.units else row(found))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
