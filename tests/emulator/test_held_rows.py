"""Softmax of rows longer than a block's registers: held by a cluster, or streamed, by the device and the shape.

tests/ops/test_softmax.py runs them too, in the form that few rows of an H100 get.
"""

from __future__ import annotations

import host_build
import host_module
import pytest
import torch

from fasttx.ops.softmax import op as softmax
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
FP32, BF16 = torch.float32, torch.bfloat16
TILE = 8192  # columns of a block of 512 threads
STATE = torch.tensor([3, 4])
MANY_ROWS = 1  # multiprocessors, so that even one row is as many
INF = float("inf")


def fwd(x, mask, p, log):
    return torch.ops.fasttx.softmax_fwd(x, mask, STATE if p else None, 0.5, p, log, "cuda")


def bwd(dout, saved, mask, p, log):
    return torch.ops.fasttx.softmax_bwd(dout, saved, mask, STATE if p else None, 0.5, p, log, "cuda")


def hold(x, mask=None, p=0.0, log=False, dout=None):
    """Both directions against the float64 reference; the results."""
    dout = torch.randn_like(x) if dout is None else dout
    out = fwd(x, mask, p, log)
    expected = softmax.SOFTMAX.fwd.reference(x, mask, STATE if p else None, 0.5, p, log)
    assert_as_accurate(out, expected.to(x.dtype), expected)
    saved = x if p else out
    dx = bwd(dout, saved, mask, p, log)
    expected = softmax.SOFTMAX.bwd.reference(dout, saved, mask, STATE if p else None, 0.5, p, log)
    assert_as_accurate(dx, expected.to(x.dtype), expected)
    return out, dx


# rows, columns, dtype, arch, multiprocessors: blocks that hold a row, and tiles in each; (1, 0): resident or streamed
FORWARD = [
    ((1, 8192, BF16, 90, MANY_ROWS), (1, 0)),  # resident
    ((1, 8193, BF16, 90, MANY_ROWS), (1, 2)),
    ((1, 6 * TILE, BF16, 90, MANY_ROWS), (1, 6)),  # two blocks of 96 KiB a multiprocessor
    ((1, 6 * TILE + 1, BF16, 90, MANY_ROWS), (2, 4)),
    ((1, 12 * TILE + 1, BF16, 90, MANY_ROWS), (4, 4)),
    ((1, 24 * TILE + 1, BF16, 90, MANY_ROWS), (8, 4)),
    ((1, 3 * TILE, FP32, 90, MANY_ROWS), (1, 3)),
    ((1, 3 * TILE + 1, FP32, 90, MANY_ROWS), (2, 2)),
    ((1, 32 * TILE, FP32, 90, MANY_ROWS), (8, 4)),  # one block of 128 KiB a multiprocessor
    ((1, 2 * TILE, BF16, 90, 132), (2, 1)),  # few rows: a tile for each block
    ((1, 8193, BF16, 90, 132), (2, 1)),
    ((1, 3 * TILE, BF16, 90, 132), (2, 2)),
    ((1, 8 * TILE, BF16, 120, 132), (8, 1)),
    ((2, 4 * TILE, BF16, 90, 8), (4, 1)),  # as long as there are multiprocessors
    ((3, 4 * TILE, BF16, 90, 8), (2, 2)),
    ((5, 4 * TILE, BF16, 90, 8), (1, 4)),
    ((1, 4 * TILE, BF16, 80, 108), (1, 4)),  # no clusters
    ((1, 10 * TILE, BF16, 80, 108), (1, 10)),  # of 163 KiB
    ((1, 10 * TILE + 1, BF16, 80, 108), (1, 0)),
    ((1, 6 * TILE, BF16, 89, 128), (1, 6)),  # of 99 KiB
    ((1, 6 * TILE + 1, BF16, 86, 84), (1, 0)),
]


@pytest.mark.parametrize("case, expected", FORWARD, ids=str)
def test_the_form_is_a_function_of_shape_and_device(plain, case, expected):
    n_rows, n_cols, dtype, arch, multiprocessors = case
    plain.set_device(arch, multiprocessors)
    x = torch.randn(n_rows, n_cols).to(dtype)
    out = fwd(x, None, 0.0, False)
    cluster, shared_bytes = plain.last_launch()
    assert (cluster, shared_bytes / (TILE * dtype.itemsize)) == expected
    reference = softmax.SOFTMAX.fwd.reference(x, None, None, 0.5, 0.0, False)
    assert_as_accurate(out, reference.to(dtype), reference)


@pytest.mark.parametrize(
    "n_cols, dtype, expected",
    [(3 * TILE, BF16, (1, 6)), (3 * TILE + 1, BF16, (2, 4)), (TILE + 1, FP32, (2, 2)), (24 * TILE + 1, FP32, (1, 0))],
    ids=str,
)
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_backward_holds_two_tensors(plain, n_cols, dtype, expected, p):
    plain.set_device(90, MANY_ROWS)
    x = torch.randn(1, n_cols).to(dtype)
    hold(x, p=p)
    cluster, shared_bytes = plain.last_launch()
    assert (cluster, shared_bytes / (TILE * dtype.itemsize)) == expected


def test_code_for_less_than_the_device_has_no_clusters(race):
    """PTX for 8.0 runs on every later device."""
    race.set_device(90, 132, code=80)
    hold(torch.randn(1, 2 * TILE).bfloat16())
    assert race.last_launch()[0] == 1


def test_more_blocks_than_a_grid_has_are_refused(plain):
    from test_kernels import arguments

    module, _ = host_module.load("plain")
    with pytest.raises(ValueError, match="softmax_fwd: n_rows times the blocks of a row must lie below"):
        module.softmax_fwd(0, **arguments("softmax_fwd", n_rows=2**31 - 1, n_cols=2**17))


# blocks of a cluster, and lengths about the bounds of their sections: the last block has one column, its last whole
# vector, all of a section; some have none
LENGTHS = {
    1: [TILE + 1, 2 * TILE - 1],
    2: [TILE + 1, 2 * TILE - 8, 2 * TILE, 2 * TILE + 1],
    4: [3 * TILE + 1, 4 * TILE, 4 * TILE + 9],
    8: [7 * TILE + 3, 8 * TILE, 8 * TILE + 8],
}
OPTIONS = {
    "plain": {},
    "log": {"log": True},
    "mask": {"mask": True},
    "masked log": {"mask": True, "log": True},
    "dropout": {"mask": True, "p": 0.25},
}


@pytest.mark.parametrize("cluster, n_cols", [(c, n) for c, lengths in LENGTHS.items() for n in lengths])
@pytest.mark.parametrize("options", OPTIONS)
def test_sections_of_a_row(plain, cluster, n_cols, options):
    plain.set_device(90, MANY_ROWS if cluster == 1 else 132)
    given = dict(OPTIONS[options])
    if given.get("mask"):
        given["mask"] = torch.rand(1, n_cols) < 0.8
        given["mask"][:, : TILE + 5] = False  # at times a whole section without a score
        given["mask"][:, -1] = True
    x = torch.randn(2, n_cols)
    x[0, -1] = 40.0  # the maximum lies in the last section
    hold(x.bfloat16(), **given)
    assert plain.last_launch()[0] == cluster
    assert plain.last_launch()[1] > 0


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [FP32, torch.float16], ids=str)
def test_rows_that_begin_anywhere(plain, arch, dtype):
    plain.set_device(arch)
    n_cols = 2 * TILE + 77
    x, dout = (torch.randn(3, n_cols + 3).to(dtype)[:, k : n_cols + k] for k in (1, 2))
    hold(x, dout=dout)
    hold(x, torch.randn(3, 1), p=0.25, dout=dout)


@pytest.mark.parametrize("log", [False, True])
def test_a_section_without_a_score_has_no_maximum(plain, log):
    """It is -inf there, not 0, beside which the sums of very low scores would vanish."""
    n_cols = 4 * TILE
    x = torch.full((1, n_cols), -3000.0) + torch.randn(1, n_cols)
    mask = torch.ones(1, n_cols, dtype=torch.bool)
    mask[:, TILE : 2 * TILE] = False
    out, _ = hold(x, mask, log=log)
    assert plain.last_launch()[0] == 4 and bool((out[mask].isfinite()).all())


@pytest.mark.parametrize("log", [False, True])
def test_infinities_and_nan_as_torch(plain, log):
    n_cols = 4 * TILE
    x = torch.randn(5, n_cols)
    x[0], x[1, 3], x[2, n_cols - 1], x[3, 5:], x[4, :TILE] = -INF, INF, float("nan"), -INF, -INF
    out = torch.ops.fasttx.softmax_fwd(x, None, None, 1.0, 0.0, log, "cuda")
    expected = torch.log_softmax(x, -1) if log else torch.softmax(x, -1)
    torch.testing.assert_close(out, expected, equal_nan=True, atol=2e-6, rtol=2e-6)
    assert plain.last_launch()[0] == 4


def test_dropout_does_not_depend_on_the_form(plain):
    x, kept = torch.randn(1, 8 * TILE), []
    for arch, multiprocessors in ((80, 108), (90, 132), (90, MANY_ROWS)):
        plain.set_device(arch, multiprocessors)
        kept.append(fwd(x, None, 0.25, False) != 0)
        assert (plain.last_launch()[1] > 0) == (arch == 90)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_the_longest_rows(plain, dtype):
    x = torch.randn(2, 262144).to(dtype)
    for given in ({}, {"log": True}, {"p": 0.25}):
        hold(x, **given)
        assert plain.last_launch() == ((8, 8 * TILE * 2) if dtype == BF16 else (1, 0))


@pytest.mark.parametrize("cluster, n_cols", [(1, TILE + 9), (2, TILE + 9), (4, 3 * TILE + 9)])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_held_rows_have_no_race(race, cluster, n_cols, p):
    race.set_device(90, MANY_ROWS if cluster == 1 else 132)
    x, dout = torch.randn(2, 1, n_cols).bfloat16()
    mask = torch.rand(1, n_cols) < 0.8
    first = None
    for seed in (1, 2):
        race.configure(seed)
        found = hold(x, mask, p=p, dout=dout)
        assert race.last_launch()[0] == cluster
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found)), "the order of threads is in the result"


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_eight_blocks_have_no_race(race, p):
    hold(torch.randn(1, 8 * TILE + 9).bfloat16(), torch.rand(1, 8 * TILE + 9) < 0.8, p=p)
    assert race.last_launch()[0] == 8
