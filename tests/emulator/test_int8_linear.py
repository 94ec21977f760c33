"""int8_linear with a hook at each access: no race, nothing outside, one result in every order; which tile it takes."""

from __future__ import annotations

import ctypes
import functools
import re

import host_build
import host_module
import pytest
import torch

from fasttx.ops.int8_linear import cuda
from fasttx.ops.int8_linear.op import INT8_LINEAR
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
BF16 = torch.bfloat16
LARGEST, SMALLEST = 0, 4
CONFIG = (host_build.ROOT / "csrc" / "int8_linear" / "int8_linear_config.h").read_text()
TILES = [tuple(map(int, numbers.split(", "))) for numbers in re.findall(r"^    \{([\d, ]+)\},", CONFIG, re.M)]
SEEDS = (1, 2, 3)  # odd ones run a warp as far as it gets, even ones switch at random


def integers(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def call(n_rows, n_out, n_in):
    scales = torch.rand(n_rows) / 150, torch.rand(n_out) / 150
    residual, bias = torch.randn(n_rows, n_out).to(BF16), torch.randn(n_out)
    return integers(n_rows, n_in), integers(n_out, n_in), *scales, bias, residual, "gelu", BF16


# two steps more than the ring has stages: each is filled again; ragged rows, columns and k; bytes that are gathered
@pytest.mark.parametrize(
    "tile, shape",
    [(0, (67, 72, 272)), (1, (40, 72, 336)), (2, (40, 40, 528)), (3, (20, 40, 656)), (4, (17, 33, 1296))]
    + [(cuda.BY_SHAPE, (20, 40, 410))],
    ids=str,
)
def test_no_race(race, monkeypatch, tile, shape):
    monkeypatch.setattr(cuda, "TILE", tile)
    arguments, outputs = call(*shape), []
    for seed in SEEDS:
        race.configure(seed)
        outputs.append(torch.ops.fasttx.int8_linear_fwd(*arguments, "cuda"))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:]), "the order of threads is in the result"
    assert_as_accurate(outputs[0], INT8_LINEAR.fwd.torch(*arguments), INT8_LINEAR.fwd.reference(*arguments))


# ------------------------------------------------------------------------------------------------------- boundary


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"n_rows": 0}, "n_rows must lie in"),
        ({"n_out": 2**31 - 1}, "n_out must lie in"),
        ({"n_in": 131072}, "n_in must lie in 1 .. 131071"),
        ({"out": None}, "out, x_q and w_q must be given"),
        ({"x_q": None}, "out, x_q and w_q must be given"),
        ({"w_scale": None}, "x_scale and w_scale must be given"),
        ({"out": (16, 3)}, "tensors must be float32, float16 or bfloat16"),
        ({"bias": (16, 7)}, "bias must be float32, float16 or bfloat16"),
        ({"residual": (16, 5)}, "residual must be float32, float16 or bfloat16"),
        ({"activation": 3}, "activation must be one of 0 .. 2"),
        ({"tile": 5}, "tile must be -1 or the number of one"),
        ({"n_rows": 2**31 - 2000, "n_out": 2**31 - 2000}, "more tiles than a grid has blocks"),
    ],
    ids=str,
)
def test_what_would_corrupt_memory_is_refused_again(changed, message):
    module, _ = host_module.load("plain")
    given = host_module.altered(host_module.harmless(module, module.SIGNATURES["int8_linear_fwd"]), changed)
    with pytest.raises(ValueError, match=f"int8_linear_fwd: .*{message}"):
        module.int8_linear_fwd(0, **given)


# ---------------------------------------------------------------------------------------------------------- tiles


@functools.cache
def config():
    sources = [host_build.HERE / "int8_config.cu"]
    library = ctypes.CDLL(str(host_build.build_library("plain", sources, bindings=False)))
    library.run_int8_config.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_int]
    library.run_int8_clocks.argtypes = [ctypes.c_int] + [ctypes.c_int64] * 3 + [ctypes.c_int]
    library.run_int8_clocks.restype = ctypes.c_int64
    return library


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_the_tile_grows_with_the_rows(arch):
    """From the smallest, for one token, to the largest, in training's sizes."""
    for n_out, n_in in ((768, 768), (3072, 768), (768, 3072), (4096, 1024)):
        tiles = [config().run_int8_config(n_rows, n_out, n_in, arch) for n_rows in (1, 64, 1 << 20)]
        assert tiles[0] == SMALLEST and tiles[-1] == LARGEST and tiles == sorted(tiles, reverse=True), (n_out, n_in)


def test_the_tile_has_the_fewest_clocks_of_all():
    for shape in ((1, 768, 768), (512, 768, 3072), (16384, 3072, 768), (7, 30522, 768), (2**31 - 2000, 2, 131071)):
        clocks = [config().run_int8_clocks(tile, *shape, 90) for tile in range(5)]
        assert clocks.index(min(clocks)) == config().run_int8_config(*shape, 90) and min(clocks) > 2000


def test_the_table_of_the_page():
    """docs/kernels/int8_linear.md shows what the function says for sm_90."""
    page = (host_build.ROOT / "docs" / "kernels" / "int8_linear.md").read_text()
    header = re.search(r"^\| rows \| (.*) \|\n", page, re.M)
    layers = [tuple(int(n.replace(",", "")) for n in cell.split(" to ")) for cell in header[1].split(" | ")]
    rows = page[header.end() :].split("\n\n")[0].splitlines()[1:]
    assert len(rows) == 5 and len(layers) == 3
    for row in rows:
        n_rows, *tiles = row.strip("| ").split(" | ")
        for number in n_rows.replace(",", "").split(" to "):
            for (n_in, n_out), tile in zip(layers, tiles, strict=True):
                block_m, block_n, *_ = TILES[config().run_int8_config(int(number), n_out, n_in, 90)]
                assert f"{block_m} x {block_n}" == tile, (number, n_in, n_out)


def test_clocks_of_a_layer_of_bert():
    """16,384 x 768 -> 3,072 on an H100: 3,072 blocks of 128 x 128, 24 rounds of 768 x 8 clocks of products and 2,048 of
    outputs; two blocks wait at a time."""
    assert config().run_int8_clocks(LARGEST, 16384, 3072, 768, 90) == 24 * (768 * 8 + 2048) + 12 * 2000


# ---------------------------------------------------------------------------------------------------------- banks


def conflict_free(places, width):
    """Whether accesses of `width` bytes that are served together meet each of the 32 banks once."""
    assert len(places) * width == 128 and all(place % width == 0 for place in places)
    return len({place % 128 for place in places}) == len(places)


@pytest.mark.parametrize("tile", range(len(TILES)))
def test_copies_and_ldmatrix_meet_each_bank_once(tile):
    block_m, block_n, block_k, *_ = TILES[tile]
    chunks = block_k // 16
    for row in range(0, block_m + block_n, 8):
        for chunk in range(chunks):  # eight rows of one chunk are a matrix
            assert conflict_free([config().run_int8_ring(tile, row + i, chunk) for i in range(8)], 16)
    for thread in range(0, 128, 8):  # eight threads copy neighbouring chunks
        at = [divmod(thread + i, chunks) for i in range(8)]
        assert conflict_free([config().run_int8_ring(tile, row, chunk) for row, chunk in at], 16)


@pytest.mark.parametrize("tile", range(len(TILES)))
def test_sums_on_their_way_to_the_outputs_meet_each_bank_once(tile):
    block_n = TILES[tile][1]
    for first in (0, 4, 8, 12):  # half a warp stores two columns of four rows
        for fragment in range(block_n // 8):
            lanes = [(first + g, 2 * fragment + t // 2, t % 2 * 8) for g in range(4) for t in range(4)]
            assert conflict_free([config().run_int8_staging(tile, row, c) + half for row, c, half in lanes], 8)
    runs = block_n // 8
    for thread in range(0, 128, 8):  # eight threads load the same half of neighbouring runs of eight columns
        for half in range(2):
            at = [divmod(thread + i, runs) for i in range(8)]
            assert conflict_free([config().run_int8_staging(tile, row, 2 * run + half) for row, run in at], 16)
