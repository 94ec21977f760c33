"""Cross-entropy of few long rows: the blocks of a cluster read one together, as many as shape and device say.

tests/ops/test_cross_entropy.py runs them too, in the form that few rows of an H100 get.
"""

from __future__ import annotations

import host_build
import pytest
import torch

from fasttx.ops.checks import MEAN, NONE, SUM
from fasttx.ops.cross_entropy import cuda as cross_entropy_cuda
from fasttx.ops.cross_entropy.op import CROSS_ENTROPY
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
FP32, BF16 = torch.float32, torch.bfloat16
TILE = 4096  # columns of a block of 256 threads
INF = float("inf")


def fwd(logits, target, weight=None, smoothing=0.0, reduction=MEAN):
    return torch.ops.fasttx.cross_entropy_fwd(logits, target, weight, -100, smoothing, reduction, "cuda")


def hold(logits, target, weight=None, smoothing=0.0, reduction=MEAN):
    found = fwd(logits, target, weight, smoothing, reduction)
    references = CROSS_ENTROPY.fwd.reference(logits, target, weight, -100, smoothing, reduction)
    for x, reference in zip(found, references, strict=True):
        assert_as_accurate(x, reference.to(x.dtype), reference)
    return found


# rows, columns, arch, multiprocessors: blocks of a row
FORMS = [
    ((1, TILE, 90, 132), 1),
    ((1, TILE + 1, 90, 132), 2),
    ((1, 3 * TILE, 90, 132), 2),
    ((1, 3 * TILE + 1, 90, 132), 4),
    ((1, 7 * TILE + 1, 100, 148), 8),
    ((1, 8 * TILE, 89, 128), 1),
    ((1, 8 * TILE, 90, 1), 1),
    ((2, 8 * TILE, 90, 16), 8),
    ((3, 8 * TILE, 90, 16), 4),
    ((5, 8 * TILE, 90, 16), 2),
    ((9, 8 * TILE, 90, 16), 1),
]


@pytest.mark.parametrize("case, cluster", FORMS, ids=str)
def test_the_form_is_a_function_of_shape_and_device(plain, case, cluster):
    n_rows, n_cols, arch, multiprocessors = case
    plain.set_device(arch, multiprocessors)
    logits, target = torch.randn(n_rows, n_cols).bfloat16(), torch.randint(n_cols, (n_rows,))
    hold(logits, target, reduction=NONE)
    assert plain.last_launch()[0] == cluster
    hold(logits, target, reduction=MEAN)  # whose last launch is that of the sum


TARGET_OPTIONS = {
    "index": {},
    "weight": {"weight": True},
    "smoothing": {"smoothing": 0.1},
    "weight and smoothing": {"weight": True, "smoothing": 0.1},
    "probabilities": {"probabilities": True},
    "all": {"probabilities": True, "weight": True, "smoothing": 0.1},
}


@pytest.mark.parametrize("n_cols", [TILE + 1, 2 * TILE, 4 * TILE - 7, 8 * TILE + 13])
@pytest.mark.parametrize("options", TARGET_OPTIONS)
@pytest.mark.parametrize("reduction", [NONE, SUM])
def test_every_block_adds_its_tiles(plain, n_cols, options, reduction):
    given = dict(TARGET_OPTIONS[options])
    logits = torch.randn(3, n_cols + 1)[:, 1:]  # rows begin at any address
    logits[0, -1], logits[1, 2] = 40.0, 30.0  # the maximum lies in the last block, and in the first
    target = torch.tensor([n_cols - 1, -100, n_cols // 2])
    if given.pop("probabilities", False):
        target = torch.randn(3, n_cols).softmax(1)
    if given.pop("weight", False):
        given["weight"] = torch.rand(n_cols) + 0.5
    hold(logits, target, reduction=reduction, **given)
    if reduction == NONE:
        assert plain.last_launch()[0] > 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_block_without_a_score_has_no_maximum(plain, smoothing):
    """It is -inf there, not 0, beside which the sums of very low scores would vanish."""
    logits = torch.full((1, 4 * TILE), -3000.0) + torch.randn(1, 4 * TILE)
    logits[:, TILE : 2 * TILE] = -INF
    loss, lse, _ = fwd(logits, torch.tensor([5]), None, smoothing, NONE)
    assert plain.last_launch()[0] == 4
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([5]), reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(lse, logits.logsumexp(1), atol=1e-4, rtol=1e-6)


def test_infinities_and_nan_as_torch(plain):
    logits, target = torch.randn(5, 4 * TILE), torch.tensor([0, 3, 2, 9, TILE])
    logits[0], logits[1, 3], logits[2, -1], logits[3, 10:], logits[4, :TILE] = -INF, INF, float("nan"), -INF, -INF
    loss, _, _ = fwd(logits, target, reduction=NONE)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss, expected, equal_nan=True, atol=1e-5, rtol=1e-6)
    assert plain.last_launch()[0] == 4


def test_a_label_outside_and_an_ignored_one(plain):
    """In each block of the cluster alike, or they would wait for each other."""
    logits = torch.randn(3, 2 * TILE)
    logits[1] = float("nan")
    loss, lse, total = torch.empty(3), torch.empty(3), torch.empty(())
    target = torch.tensor([2 * TILE, -100, 7])
    cross_entropy_cuda.cross_entropy_fwd(loss, lse, total, logits, target, None, -100, 0.0, NONE)  # no check of values
    assert plain.last_launch()[0] == 2
    assert loss[0].isnan() and loss[1] == lse[1] == 0.0 and bool(loss[2].isfinite())


@pytest.mark.parametrize("n_cols", [TILE + 9, 3 * TILE + 9])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clusters_have_no_race(race, n_cols, smoothing):
    logits, target, first = torch.randn(2, n_cols).bfloat16(), torch.tensor([n_cols - 1, -100]), None
    for seed in (1, 2, 3):
        race.configure(seed)
        found = hold(logits, target, smoothing=smoothing, reduction=NONE)
        assert race.last_launch()[0] == (2 if n_cols < 2 * TILE else 4)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found)), "the order of threads is in the result"
        hold(logits, target, smoothing=smoothing, reduction=MEAN)  # by partial sums, of the first block of a row alone


def test_code_for_less_than_the_device_has_no_clusters(race):
    """PTX for 8.0 runs on every later device."""
    race.set_device(90, 132, code=80)
    logits, target = torch.randn(1, 2 * TILE).bfloat16(), torch.tensor([7])
    hold(logits, target, smoothing=0.1)
    hold(logits, target, reduction=NONE)
    assert race.last_launch()[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_the_longest_rows(plain, arch, dtype):
    plain.set_device(arch)
    logits = torch.randn(2, 262144).to(dtype)
    hold(logits, torch.tensor([262143, 0]), smoothing=0.1)
