"""The losses of csrc/ with a hook at each access: no race, no access outside, one result in every order of threads; and
what their launchers refuse.

tests/ops/ holds their results, built plainly.
"""

from __future__ import annotations

from types import SimpleNamespace

import host_build
import host_module
import pytest
import torch

from fasttx.kernels import logit_chunks
from fasttx.ops.binary_cross_entropy import cuda as binary_cross_entropy_cuda
from fasttx.ops.binary_cross_entropy.op import BINARY_CROSS_ENTROPY
from fasttx.ops.checks import MEAN, NONE, SUM
from fasttx.ops.cross_entropy import cuda as cross_entropy_cuda
from fasttx.ops.cross_entropy.op import CROSS_ENTROPY
from fasttx.ops.cuda import launch as cuda
from fasttx.ops.kl_div import cuda as kl_div_cuda
from fasttx.ops.kl_div.op import KL_DIV
from fasttx.ops.linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))
SEEDS = (1, 2, 3)  # odd ones run a warp as far as it gets, even ones switch at random


def run(race, op, direction, *arguments):
    """The outputs of an operator in the race build: the same bits at every seed, as accurate as its dtype allows."""
    half, first = op.directions[direction], None
    for seed in SEEDS:
        race.configure(seed)
        found = getattr(torch.ops.fasttx, f"{op.name}_{direction}")(*arguments, "cuda")
        found = found if isinstance(found, tuple) else (found,)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), (
            "the order of threads is in the result"
        )
    references = half.reference(*arguments)
    for x, reference in zip(first, references if isinstance(references, tuple) else (references,), strict=True):
        assert_as_accurate(x, reference.to(x.dtype), reference, by=half.compared_by)
    return first


# More rows than the last kernel has threads; chunks of 200 rows, each overwritten by its gradient, and a part of one.
@pytest.mark.parametrize("reduction", [NONE, MEAN])
def test_linear_cross_entropy_has_no_race(race, monkeypatch, reduction):
    monkeypatch.setattr(logit_chunks, "rows_at_a_time", lambda *_: 200)
    x, weight, bias = torch.randn(530, 4), torch.randn(9, 4), torch.randn(9)
    target, class_weight = torch.randint(9, (530,)), torch.rand(9) + 0.5
    target[1::3] = -100
    given, options = (x, weight, bias, target, class_weight), (-100, 0.1, reduction)
    loss, lse, total = run(race, LINEAR_CROSS_ENTROPY, "fwd", *given, *options)
    run(race, LINEAR_CROSS_ENTROPY, "bwd", torch.rand(loss.shape), *given, lse, total, *(True,) * 3, *options)


# a thread a row and a warp, the last block partly beyond the rows; a block of 256; a row of several tiles and parts.
# The rows of odd lengths begin at every address.
@pytest.mark.parametrize("n_rows, n_cols", [(131, 3), (5, 37), (3, 1031), (2, 17011)])
@pytest.mark.parametrize("reduction", [NONE, MEAN])
@pytest.mark.parametrize("probs", [False, True], ids=["index", "probs"])
def test_cross_entropy_has_no_race(race, n_rows, n_cols, reduction, probs):
    logits, weight = torch.randn(n_rows, n_cols).bfloat16(), torch.rand(n_cols) + 0.5
    target = torch.randint(n_cols, (n_rows,))
    target[-1] = -100
    if probs:
        target = torch.randn(n_rows, n_cols).softmax(1)
    options = (logits, target, weight)
    loss, lse, total = run(race, CROSS_ENTROPY, "fwd", *options, -100, 0.1, reduction)
    dloss = torch.rand(loss.shape)
    run(race, CROSS_ENTROPY, "bwd", dloss, *options, lse, total, -100, 0.1, reduction)
    if not probs:  # the other forward kernel
        run(race, CROSS_ENTROPY, "fwd", *options, -100, 0.0, reduction)


@pytest.mark.parametrize("n_cols", [3, 37, 1031])
@pytest.mark.parametrize("bad", [-1, None, 5_000_000_000, -(2**63)], ids=["-1", "n_cols", "5e9", "-2^63"])
def test_a_label_outside_gives_nan_and_reads_nothing(race, bad, n_cols):
    bad = n_cols if bad is None else bad
    logits, weight = torch.randn(3, n_cols), torch.rand(n_cols)
    target, lse, one = torch.tensor([0, bad, n_cols - 1]), torch.ones(3), torch.ones(())
    for smoothing in (0.0, 0.1):
        options = (logits, target, weight, -100, smoothing, NONE)
        loss, own, total = CROSS_ENTROPY.fwd.fake(*options)
        cross_entropy_cuda.cross_entropy_fwd(loss, own, total, *options)
        dlogits = torch.empty_like(logits)
        options = (logits, target, weight, lse, one, -100, smoothing, NONE)
        cross_entropy_cuda.cross_entropy_bwd(dlogits, torch.ones(3), *options)
        for rows in (loss[:, None], dlogits):
            assert bool(rows[1].isnan().all()) and bool(rows[::2].isfinite().all())


@pytest.mark.parametrize("n_cols", [3, 37, 1031])
def test_an_ignored_row_is_not_read(race, n_cols):
    """The buffer of logits ends behind the first row, the second is ignored: a read of it would be outside."""
    module, logits, dlogits = cross_entropy_cuda, torch.randn(2, n_cols), torch.empty(2, n_cols)
    loss, lse, one, dloss = torch.empty(2), torch.empty(2), torch.ones(()), torch.ones(2)
    target, options = torch.tensor([0, -100]), (-100, 0.1, NONE)
    tensors = {"logits": logits[:1], "labels": target, "loss": loss, "lse": lse, "total_weight": one}
    tensors |= {"dloss": dloss, "dlogits": dlogits}

    def forward():
        module.cross_entropy_fwd(loss, lse, one, logits, target, None, *options)

    def backward():
        module.cross_entropy_bwd(dlogits, dloss, logits, target, None, lse, one, *options)

    for name, call in (("cross_entropy_fwd", forward), ("cross_entropy_bwd", backward)):
        launcher, given = recorded(name, call, "race")
        race.watch(tensors, frozenset(tensors) - {"logits", "labels", "dloss"})
        launcher(0, **given)
    assert float(loss[1]) == 0.0 and bool((dlogits[1] == 0.0).all())


# elements: less than a run; some tiles, more than there are blocks to add them up. Weights: one, a whole number of runs
# that repeats, one that does not fit runs, as many as there are elements
@pytest.mark.parametrize("shape", [(5,), (45, 104), (45, 107)], ids=str)
@pytest.mark.parametrize("reduction", [NONE, SUM])
def test_binary_cross_entropy_has_no_race(race, monkeypatch, shape, reduction):
    monkeypatch.setattr(binary_cross_entropy_cuda, "PARTIALS", 2)
    x, y = torch.randn(shape).bfloat16(), torch.rand(shape)
    weights = (torch.rand(()), torch.rand(shape[-1]).bfloat16(), torch.rand(shape).half(), None)
    for weight, pos_weight in zip(weights, weights[1:], strict=False):
        (loss,) = run(race, BINARY_CROSS_ENTROPY, "fwd", x, y, weight, pos_weight, reduction)
        run(race, BINARY_CROSS_ENTROPY, "bwd", torch.rand(loss.shape), x, y, weight, pos_weight, reduction)


# as above, and every pair of dtypes that differ
@pytest.mark.parametrize("shape", [(5,), (45, 104), (45, 107)], ids=str)
@pytest.mark.parametrize("reduction", [NONE, SUM])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div_has_no_race(race, monkeypatch, shape, reduction, log_target):
    monkeypatch.setattr(kl_div_cuda, "PARTIALS", 2)
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    for x_dtype, target_dtype in zip(dtypes, dtypes[1:], strict=False):
        x, target = (torch.randn(shape).log_softmax(-1) for _ in range(2))
        x, target = x.to(x_dtype), (target if log_target else target.exp()).to(target_dtype)
        (loss,) = run(race, KL_DIV, "fwd", x, target, reduction, log_target)
        run(race, KL_DIV, "bwd", torch.rand(loss.shape), target, reduction, log_target, x_dtype)


# ------------------------------------------------------------------------------------------------------- boundary


def recorded(name, call, variant="plain"):
    """The launcher `name`, and what `call` would hand to it."""
    given = {}
    before, module = cuda._stand_in, host_module.load(variant)[0]
    only = {name: lambda stream, **members: given.update(members)}
    cuda.set_stand_in(SimpleNamespace(DTYPES=module.DTYPES, SIGNATURES=module.SIGNATURES, **only))
    call()
    cuda.set_stand_in(*before)
    return getattr(module, name), given


def cross_entropy_calls():
    x, y, w, lse, one = torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.ones(5), torch.ones(3), torch.ones(())
    options = (-100, 0.1, MEAN)
    return {
        "cross_entropy_fwd": lambda: cross_entropy_cuda.cross_entropy_fwd(one, lse, one, x, y, w, *options),
        "cross_entropy_bwd": lambda: cross_entropy_cuda.cross_entropy_bwd(x, one, x, y, w, lse, one, *options),
    }


def binary_cross_entropy_calls():
    x, w, one = torch.rand(3, 5), torch.rand(5), torch.ones(())
    module = binary_cross_entropy_cuda
    return {
        "binary_cross_entropy_fwd": lambda: module.binary_cross_entropy_fwd(one, x, x, w, None, MEAN),
        "binary_cross_entropy_bwd": lambda: module.binary_cross_entropy_bwd(x, one, x, x, w, None, MEAN),
    }


def kl_div_calls():
    x, one = torch.rand(3, 5), torch.ones(())
    return {
        "kl_div_fwd": lambda: kl_div_cuda.kl_div_fwd(one, x, x, MEAN, False),
        "kl_div_bwd": lambda: kl_div_cuda.kl_div_bwd(x, one, x, MEAN, False, x.dtype),
    }


REFUSED = [
    ("cross_entropy", {"n_rows": 0}, "n_rows must lie in"),
    ("cross_entropy", {"n_cols": 2**31}, "n_cols must lie in"),
    ("cross_entropy", {"logits": None}, "logits, lse and total_weight must be given"),
    ("cross_entropy", {"labels": None}, "give labels or probabilities"),
    ("cross_entropy", {"probabilities": (16, 0)}, "give labels or probabilities"),
    ("cross_entropy", {"dtype": 3}, "tensors must be float32, float16 or bfloat16"),
    ("cross_entropy", {"weight": (16, 4)}, "weight must be float32, float16 or bfloat16"),
    ("cross_entropy", {"labels": None, "probabilities": (16, 3)}, "probabilities must be float32"),
    ("cross_entropy_fwd", {"n_partials": 5}, "partials must have two floats a row"),
    ("cross_entropy_fwd", {"loss": None}, "loss must be given"),
    ("cross_entropy_bwd", {"weight_sum": None}, "weight_sum must be given"),
    ("cross_entropy_bwd", {"dlogits": None}, "dlogits and dloss must be given"),
    ("binary_cross_entropy", {"n": 0}, "n must lie in"),
    ("binary_cross_entropy", {"n": 2**42}, "n must lie in"),
    ("binary_cross_entropy", {"target": None}, "x and target must be given"),
    ("binary_cross_entropy", {"dtype": 4}, "tensors must be float32"),
    ("binary_cross_entropy", {"target": (16, 3)}, "target must be float32"),
    ("binary_cross_entropy", {"weight.values": (16, 3)}, "weights must be float32"),
    ("binary_cross_entropy", {"weight.period": 0}, "the period of a weight must be below"),
    ("binary_cross_entropy", {"weight.period": 2**20}, "the period of a weight must be below"),
    ("binary_cross_entropy_fwd", {"n_partials": 0}, "partials must have an element"),
    ("binary_cross_entropy_fwd", {"loss": None}, "loss must be given"),
    ("binary_cross_entropy_bwd", {"dx": None}, "dx and dloss must be given"),
    ("kl_div", {"n": 0}, "n must lie in"),
    ("kl_div", {"n": 2**42}, "n must lie in"),
    ("kl_div", {"target": None}, "target must be given"),
    ("kl_div", {"target": (16, 3)}, "target must be float32"),
    ("kl_div", {"dtype": 4}, "tensors must be float32"),
    ("kl_div_fwd", {"n_partials": 0}, "partials must have an element"),
    ("kl_div_fwd", {"x": None}, "x and loss must be given"),
    ("kl_div_fwd", {"loss": None}, "x and loss must be given"),
    ("kl_div_bwd", {"dx": None}, "dx and dloss must be given"),
    ("kl_div_bwd", {"dloss": None}, "dx and dloss must be given"),
]


@pytest.mark.parametrize("op, changed, message", REFUSED, ids=str)
def test_what_would_corrupt_memory_is_refused_again(device, op, changed, message):
    calls = cross_entropy_calls() | binary_cross_entropy_calls() | kl_div_calls()
    calls = {name: call for name, call in calls.items() if name.startswith(op)}
    assert calls
    for name, call in calls.items():
        launcher, given = recorded(name, call)
        with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
            launcher(0, **host_module.altered(given, changed))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"n_rows": 0}, "n_rows must lie in"),
        ({"n_cols": 0}, "n_cols must be positive"),
        ({"loss": None}, "loss and total_weight must be given"),
        ({"labels": None}, "row_losses and labels must be given"),
        ({"weight": (16, 7)}, "weight must be float32"),
    ],
    ids=str,
)
def test_the_sum_of_row_losses_refuses_it_too(changed, message):
    module, _ = host_module.load("plain")
    given = host_module.altered(host_module.harmless(module, module.SIGNATURES["linear_cross_entropy_fwd"]), changed)
    with pytest.raises(ValueError, match=f"^linear_cross_entropy_fwd: .*{message}"):
        module.linear_cross_entropy_fwd(0, **given)


def test_rows_too_many_are_stopped_at_the_first_byte_outside(race):
    logits, loss, lse, total = torch.randn(4, 40), torch.empty(3), torch.empty(4), torch.empty(())
    with pytest.raises(
        RuntimeError, match=r"kernel cross_entropy_fwd, .*out of bounds: write of 4 bytes at loss\+12, a"
    ):
        cross_entropy_cuda.cross_entropy_fwd(loss, lse, total, logits, torch.zeros(4).long(), None, -100, 0.0, NONE)
