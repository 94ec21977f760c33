"""`make sass`: what nvcc and Triton make of every kernel, as a table for reading.

    python tests/scripts/sass.py [part of the name of a kernel's file ...]

CUDA C++: every instantiation of csrc/, for sm_80 and sm_90a, where nvcc is found. Triton: what tests/ahead_of_time
compile, for sm_80, sm_90 and sm_100; those tests run, and what they say of spills is in the status. Columns: registers
a thread; bytes of its stack; bytes of static (nvcc) or dynamic (Triton) shared memory of a block; instructions; among
them loads and stores of 16 bytes, copies past the registers included, and products of tensor cores.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TENSOR_CORES = re.compile("[HIQDO]?G?MMA|UTC\\w*MMA")
"""mma.sync (HMMA, IMMA), wgmma (HGMMA, IGMMA), tcgen05 (UTCHMMA)."""


class Row(NamedTuple):
    """A kernel as machine code; `heading` groups rows."""

    heading: str
    name: str
    registers: int
    stack: int
    shared: int
    code: int
    loads: int
    stores: int
    products: int

    def __str__(self) -> str:
        numbers = zip(self[2:], (9, 5, 6, 6, 7, 8, 8))
        return " ".join(f"{number:{width}}" for number, width in numbers) + f"  {self.name}"


COLUMNS = "registers stack shared   code 16B-ld. 16B-st. products  kernel"


def row(heading: str, name: str, registers: int, stack: int, shared: int, instructions: Iterable[str]) -> Row:
    """Counts instructions by their names."""
    names = list(instructions)
    wide = [i for i in names if ".128" in i]
    loads = sum(i.startswith(("LDG.", "LDGSTS.")) for i in wide)
    stores = sum(i.startswith("STG.") for i in wide)
    products = sum(TENSOR_CORES.match(i) is not None for i in names)
    return Row(heading, name, registers, stack, shared, len(names), loads, stores, products)


def is_chosen(file: str, parts: list[str]) -> bool:
    return not parts or any(part in file for part in parts)


def of_nvcc(parts: list[str]) -> Iterable[Row]:
    """The instantiations of csrc/."""
    import cuda_build
    from cuda import machine_code

    for source in sorted(p for p in cuda_build.CSRC.glob("*/*.cu") if is_chosen(p.stem, parts)):
        for arch in cuda_build.archs_of(source, ("80", "90a")):
            for k in sorted(machine_code.kernels(source, arch), key=lambda k: k.name):
                heading = f"{source.relative_to(ROOT)} sm_{arch}"
                yield row(heading, k.name, k.registers, k.stack_bytes, k.shared_bytes, k.instructions)


def of_triton(parts: list[str]) -> tuple[int, set[Row]]:
    """pytest's status, and the kernels that its tests compiled; needs FASTTX_AOT=1."""
    import pytest
    from ahead_of_time import dry_device  # the module that the tests import, which has the listeners

    rows = set()  # a kernel may be compiled twice under one name, for aligned rows and for others

    def listen(record: Any) -> None:
        file = f"kernels/{record.module.rsplit('.', 1)[-1]}.py"
        if is_chosen(Path(file).stem, parts):
            name = f"{record.name} {record.configuration}"
            numbers = (record.registers, record.spill_bytes, record.shared_bytes, record.instructions())
            rows.add(row(f"{file} sm_{record.arch}", name, *numbers))

    tests = [p for p in (ROOT / "tests" / "ahead_of_time").glob("test_*.py") if is_chosen(p.read_text(), parts)]
    tests = [p for p in tests if p.stem != "test_specialisation"]  # counts variants, by an arch of its own
    if not tests:
        return 0, rows
    dry_device.listeners.append(listen)
    status = pytest.main([*sorted(map(str, tests)), "-qq", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", ""])
    return int(status), rows


def print_table(rows: Iterable[Row]) -> int:
    heading, n = "", 0
    for found in rows:
        if found.heading != heading:
            heading = found.heading
            print(f"\n{heading}\n{COLUMNS}")
        print(found, flush=True)
        n += 1
    return n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="only files of kernels whose name contains one of these")
    parts = parser.parse_args().parts
    os.environ["FASTTX_AOT"] = "1"  # before Triton is imported: not by its interpreter
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path[:0] = [str(ROOT / folder) for folder in (".", "tests", "buildsystem")]
    os.chdir(ROOT)
    import cuda_build
    from cuda import machine_code

    lacks = cuda_build.lacks() or (None if machine_code.cuobjdump() else "cuobjdump is not here (Triton brings one)")
    if lacks:
        print(f"sass: nothing of CUDA C++: {lacks}", file=sys.stderr)
    n = 0 if lacks else print_table(of_nvcc(parts))
    status, rows = of_triton(parts)
    n += print_table(sorted(rows))
    if n == 0:
        print(f"sass: no kernel's file has {' or '.join(parts)} in its name", file=sys.stderr)
        return 2
    return int(bool(status))


if __name__ == "__main__":
    sys.exit(main())
