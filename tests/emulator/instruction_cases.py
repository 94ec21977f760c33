"""What each wrapper of csrc/arch does, bit for bit: one function a wrapper, for the emulator and for a GPU alike.

Registers and swizzled tiles are filled and read by the layouts of NVIDIA's CuTe, as cute_layouts.cpp printed them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from instruction_library import TYPES, Library, small_integers
from torch import Tensor

LAYOUTS = json.loads(Path(__file__).with_name("cute_layouts.json").read_text())
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


def positions(name: str) -> Tensor:
    """The offset at each pair of coordinates: the exclusive or of the images of their bits."""
    first, second = LAYOUTS[name]
    table = torch.zeros(1 << len(first), 1 << len(second), dtype=torch.long)
    for bit, image in enumerate(first):
        table ^= (torch.arange(table.shape[0])[:, None] >> bit & 1) * image
    for bit, image in enumerate(second):
        table ^= (torch.arange(table.shape[1])[None, :] >> bit & 1) * image
    return table


def registers(name: str, matrix: Tensor) -> Tensor:
    """The fragment of a matrix, (lanes, 32-bit registers)."""
    return matrix.t().flatten()[positions(name)].contiguous().view(torch.int32)


def matrix_of(name: str, held: Tensor, rows: int) -> Tensor:
    """The matrix whose fragment the registers hold."""
    flat = torch.empty(held.numel(), dtype=held.dtype)
    flat[positions(name).flatten()] = held.flatten()
    return flat.view(-1, rows).t()


def sums(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.int8 else torch.float32


def check_mma(library: Library, dtype: torch.dtype) -> None:
    depth, name = (32 if dtype == torch.int8 else 16), NAMES[dtype]
    a, b, c = small_integers(16, depth), small_integers(8, depth), small_integers(16, 8)
    d = registers(f"mma {name} d", c.to(sums(dtype))).view(sums(dtype)).to(library.device)
    inputs = {
        "a": registers(f"mma {name} a", a.to(dtype)).to(library.device),
        "b": registers(f"mma {name} b", b.to(dtype)).to(library.device),
    }
    library.run("run_mma", d, inputs, TYPES[dtype])
    assert torch.equal(matrix_of(f"mma {name} d", d.cpu(), 16).long(), a @ b.t() + c)


def check_ldmatrix(library: Library, transposed: bool) -> None:
    rows = torch.arange(256, dtype=torch.int16).view(32, 8).to(library.device)
    out = torch.full((32, 8), -1, dtype=torch.int16, device=library.device)
    library.run("run_ldmatrix", out, {"a": rows}, transposed)
    assert torch.equal(out.cpu().long(), positions("ldmatrix_transposed" if transposed else "ldmatrix"))


def check_cp_async(library: Library, shift: int) -> None:
    data = torch.randint(1, 256, (2, 32, 16), dtype=torch.uint8)
    out = torch.full((32, 2, 16), 255, dtype=torch.uint8, device=library.device)
    library.run("run_cp_async", out, {"a": data.to(library.device)}, shift, 0)
    valid = (torch.arange(32) + torch.tensor([[0], [shift]])) % 17
    expected = torch.where(torch.arange(16) < valid[..., None], data, 0)
    assert torch.equal(out.cpu(), expected.transpose(0, 1))


def check_exp2(library: Library) -> None:
    """Within 2^-22 of the result, and to the bit where it is 0, 1, infinity or NaN."""
    exact = {-torch.inf: 0.0, -126.5: 0.0, -140.0: 0.0, 128.0: torch.inf, torch.inf: torch.inf, 0.0: 1.0, 1e-40: 1.0}
    x = torch.cat([torch.tensor([*exact, torch.nan]), torch.tensor([-125.9, 127.9]), torch.randn(22) * 20])
    out = torch.full((32,), -1.0, device=library.device)
    library.run("run_exp2", out, {"a": x.to(library.device)})
    assert out[: len(exact)].tolist() == list(exact.values()) and out[len(exact)].isnan()
    found, right = out.cpu()[len(exact) + 1 :].double(), torch.exp2(x[len(exact) + 1 :].double())
    assert torch.all((found - right).abs() <= right * 2**-22)


def check_permute(library: Library) -> None:
    words = torch.randint(-(2**31), 2**31, (32, 2), dtype=torch.int32)
    selectors = torch.randint(0, 2**16, (32,), dtype=torch.int32)
    out = torch.zeros(32, dtype=torch.int32, device=library.device)
    library.run("run_permute", out, {"a": words.to(library.device), "b": selectors.to(library.device)})
    chosen = selectors[:, None] >> torch.tensor([0, 4, 8, 12]) & 15
    found = words.view(torch.int8).gather(1, (chosen & 7).long())
    expected = torch.where(chosen >= 8, (found < 0) * -1, found).to(torch.int8)
    assert torch.equal(out.cpu().view(torch.int8).view(32, 4), expected)


def check_widen(library: Library) -> None:
    bits = torch.randint(-(2**15), 2**15, (32, 2), dtype=torch.int16)
    out = torch.zeros(32, 2, dtype=torch.int32, device=library.device)
    library.run("run_widen", out, {"a": bits.view(torch.int32).to(library.device)})
    assert torch.equal(out.cpu(), bits.int() << 16)


def check_uniform(library: Library) -> None:
    values = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32)
    out = torch.zeros(2, 32, dtype=torch.int32, device=library.device)
    library.run("run_uniform", out, {"a": values.to(library.device)}, 0)
    assert torch.equal(out.cpu(), values[:, None].expand(2, 32))


def check_mbarrier(library: Library, rows: int) -> None:
    data = torch.randint(-(2**31), 2**31, (rows, 32), dtype=torch.int32)
    out = torch.zeros_like(data, device=library.device)
    library.run("run_mbarrier", out, {"a": data.to(library.device)}, rows, 0)
    assert torch.equal(out.cpu(), data.flip(1))


def check_cluster(library: Library, size: int) -> None:
    data = torch.randn(8, 32)
    out = torch.full((8, 10, 32), torch.nan, device=library.device)
    library.run("run_cluster", out, {"a": data.to(library.device)}, 8, size)
    of_clusters = data.view(8 // size, 1, size, 32).expand(-1, size, -1, -1).reshape(8, size, 32)
    assert torch.equal(out.cpu()[:, :size], of_clusters)
    assert torch.equal(out.cpu()[:, 8], (torch.arange(8.0) % size)[:, None].expand(8, 32))
    assert torch.equal(out.cpu()[:, 9], torch.full((8, 32), float(size)))


def check_tma(library: Library, dtype: torch.dtype, row: int, column: int, matrix_at: tuple[int, ...] = ()) -> None:
    """A box of 64 rows of 128 bytes from (row, column) of a matrix of 70 x 90, zeros where it has none.

    Args:
        matrix_at: which one of (3 heads, 2 batches); without it there is one alone.
    """
    depth = 128 // dtype.itemsize
    out = torch.full((8192 // dtype.itemsize,), 101, dtype=dtype, device=library.device)
    around = torch.zeros(70 + 400, 90 + 400, dtype=dtype)
    if matrix_at:
        heads = torch.randint(1, 100, (2, 70, 3, 96)).to(dtype)
        given = {"a": heads.to(library.device)}
        library.run("run_tma_of_heads", out, given, dtype.itemsize, 2, 70, 3, 90, 96, row, column, *matrix_at)
        i, j = matrix_at
        if i in range(3) and j in range(2):
            around[200:270, 200:290] = heads[j, :, i, :90]
    else:
        matrix = torch.randint(1, 100, (70, 96)).to(dtype)
        library.run("run_tma", out, {"a": matrix.to(library.device)}, dtype.itemsize, 70, 90, 96, row, column)
        around[200:270, 200:290] = matrix[:, :90]
    box = around[200 + row : 264 + row, 200 + column : 200 + column + depth]
    name = "wgmma fp16 K-major" if dtype.itemsize == 2 else "wgmma int8 K-major"
    assert torch.equal(out.cpu()[positions(name) // dtype.itemsize], box)


def tile(name: str, matrix: Tensor) -> Tensor:
    """The bytes of a matrix as an operand of wgmma in shared memory."""
    flat = torch.empty(8192 // matrix.element_size(), dtype=matrix.dtype)
    flat[positions(name) // matrix.element_size()] = matrix
    return flat


def wgmma_operands(dtype: torch.dtype, transposed_b: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Matrices of 64 rows and 128 bytes of k, and their tiles."""
    bits = "int8" if dtype == torch.int8 else "fp16"
    a, b = small_integers(64, 128 // dtype.itemsize), small_integers(64, 128 // dtype.itemsize)
    name_b = f"wgmma {bits} {'MN' if transposed_b else 'K'}-major"
    return a, b, {"a": tile(f"wgmma {bits} K-major", a.to(dtype)), "b": tile(name_b, b.to(dtype))}


def check_wgmma(library: Library, dtype: torch.dtype, transposed_b: bool) -> None:
    a, b, tiles = wgmma_operands(dtype, transposed_b)
    d = torch.full((128, 32), -77, dtype=sums(dtype), device=library.device)
    tiles = {name: t.to(library.device) for name, t in tiles.items()}
    library.run("run_wgmma", d, tiles, TYPES[dtype], transposed_b, 0)
    assert torch.equal(matrix_of("wgmma d", d.cpu(), 64).long(), a @ b.t())


FORMS = ("K-major", "MN-major b", "MN-major a", "registers", "registers, MN-major b")


def wide_operands(dtype: torch.dtype, n: int, form: str) -> tuple[Tensor, dict[str, Tensor]]:
    """a times b over 128 bytes of k, and both as the kernel takes them: tiles of 64 rows or columns, or registers."""
    bits, depth = NAMES[dtype], 128 // dtype.itemsize
    a, b = small_integers(64, depth), small_integers(n, depth)
    kind = "int8" if dtype == torch.int8 else "fp16"
    rows = torch.cat([b, torch.zeros(-n % 64, depth, dtype=b.dtype)]).to(dtype)
    of_b = f"wgmma {kind} {'MN' if form.endswith('b') else 'K'}-major"
    tiles = torch.cat([tile(of_b, part) for part in rows.split(64)])
    held = tile(f"wgmma {kind} {'MN' if form.endswith('a') else 'K'}-major", a.to(dtype))
    if form.startswith("registers"):  # of each warp as for mma.sync
        steps = a.to(dtype).split(32 // dtype.itemsize, 1)
        held = torch.cat([registers(f"mma {bits} a", part) for step in steps for part in step.split(16)])
    return a @ b.t(), {"a": held, "b": tiles}


def wide_result(held: Tensor) -> Tensor:
    """The matrix whose registers are (thread, n / 2): 64 columns as CuTe has them, and then the next ones."""
    groups = [torch.nn.functional.pad(part, (0, 32 - part.shape[1])) for part in held.split(32, 1)]
    return torch.cat([matrix_of("wgmma d", part, 64) for part in groups], 1)[:, : 2 * held.shape[1]]


def check_wide(library: Library, dtype: torch.dtype, n: int, form: str) -> None:
    expected, operands = wide_operands(dtype, n, form)
    d = torch.full((128, n // 2), -77, dtype=sums(dtype), device=library.device)
    operands = {name: t.to(library.device) for name, t in operands.items()}
    library.run("run_wide", d, operands, TYPES[dtype], n, FORMS.index(form), 0)
    assert torch.equal(wide_result(d.cpu()).long(), expected)


def check_pipeline(library: Library) -> None:
    a, b = small_integers(64, 64), small_integers(64, 64)
    operands = {
        "a": torch.cat([registers("mma fp16 a", part) for part in a[:, :16].half().split(16)]).to(library.device),
        "b": tile("wgmma fp16 K-major", b.half()).to(library.device),
    }
    d = torch.full((128, 32), torch.nan, device=library.device)
    library.run("run_pipeline", d, operands, 0)
    assert torch.equal(wide_result(d.cpu()).long(), 4 * (a[:, :16] @ b[:, :16].t()))


def check_copied(library: Library, function: str, size: int) -> None:
    data = torch.randint(-(2**31), 2**31, (size,), dtype=torch.int32)
    out = torch.zeros_like(data, device=library.device)
    library.run(function, out, {"a": data.to(library.device)}, 0)
    assert torch.equal(out.cpu(), data)


def check_named_barrier(library: Library) -> None:
    data = torch.randint(-(2**31), 2**31, (2, 32), dtype=torch.int32)
    out = torch.zeros_like(data, device=library.device)
    library.run("run_named_barrier", out, {"a": data.to(library.device)}, 0)
    assert torch.equal(out.cpu(), data.flip(1))


Case = Callable[[Library], None]
FLOATS = (torch.float16, torch.bfloat16)
SM80: dict[str, Case] = {
    **{f"mma-{NAMES[dtype]}": functools.partial(check_mma, dtype=dtype) for dtype in TYPES},
    "ldmatrix": functools.partial(check_ldmatrix, transposed=False),
    "ldmatrix_transposed": functools.partial(check_ldmatrix, transposed=True),
    **{f"cp_async-{shift}": functools.partial(check_cp_async, shift=shift) for shift in (0, 9)},
    "exp2_ftz": check_exp2,
    "permute_bytes": check_permute,
    "widen_bf16": check_widen,
    "warp_uniform": check_uniform,
    "named_barrier": check_named_barrier,
}
SM90: dict[str, Case] = {
    **{f"mbarrier-{rows}": functools.partial(check_mbarrier, rows=rows) for rows in (1, 5)},
    **{
        f"tma-{dtype.itemsize}-{row}-{column}": functools.partial(check_tma, dtype=dtype, row=row, column=column)
        for dtype in (torch.int16, torch.int8)
        for row, column in ((0, 0), (5, 32), (30, 48), (-3, -32), (100, 0))
    },
    **{
        f"tma-matrix-{i}-{j}": functools.partial(check_tma, dtype=torch.int16, row=30, column=48, matrix_at=(i, j))
        for i, j in ((0, 0), (2, 1), (3, 0), (1, -1))
    },
    **{f"wgmma-{NAMES[dtype]}": functools.partial(check_wgmma, dtype=dtype, transposed_b=False) for dtype in TYPES},
    **{f"wgmma-{NAMES[d]}-MN-major": functools.partial(check_wgmma, dtype=d, transposed_b=True) for d in FLOATS},
    **{
        f"wgmma-{NAMES[dtype]}-{n}-{form}": functools.partial(check_wide, dtype=dtype, n=n, form=form)
        for dtype, form, sizes in (
            (torch.bfloat16, "K-major", (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)),
            (torch.float16, "MN-major b", (8, 64, 96, 128, 256)),
            (torch.float16, "MN-major a", (64, 128)),
            (torch.bfloat16, "registers", (64, 128)),
            (torch.float16, "registers, MN-major b", (32, 64, 96, 128)),
            (torch.int8, "K-major", (128, 256)),
            (torch.int8, "registers", (64,)),
        )
        for n in sizes
    },
    "wgmma-pipeline": check_pipeline,
    "setmaxnreg": functools.partial(check_copied, function="run_registers", size=384),
}
CLUSTER: dict[str, Case] = {f"cluster-{size}": functools.partial(check_cluster, size=size) for size in (1, 2, 4, 8)}
SOURCES: dict[str, dict[str, Case]] = {
    "instructions_sm80": SM80,
    "instructions_sm90": SM90,
    "instructions_cluster": CLUSTER,
}
"""By the wrapper."""
