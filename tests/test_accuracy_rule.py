"""The rule of fasttx.testing, put to every op and direction: what is wrong is refused, and so is what nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fasttx.ops.dispatch
from fasttx.ops import OPS, cases
from fasttx.ops.checks import MEAN
from fasttx.ops.dispatch import as_tuple
from fasttx.ops.registry import Direction, Impl, Op
from fasttx.testing import assert_as_accurate, compare, error, poisoned_outputs

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALVES = [pytest.param(op, name, id=f"{op.name}_{name}") for op in OPS.values() for name in op.directions]
KEPT = 1 - 26 / 256  # of dropout with p = 0.1: of the scales an op may lack, the one that is nearest to 1


def large(op: Op, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Calls of a user's size whose results are small numbers."""
    if op.name == "softmax":
        yield "16384-columns", (torch.randn(4, 16_384).to(dtype), None, None, 1.0, 0.0, False)
        keys = torch.arange(16_384) < torch.tensor([16_384, 3])[:, None]
        yield "one-short-row", (torch.randn(2, 16_384).to(dtype), keys, None, 1.0, 0.0, False)
    if op.name == "kl_div":
        x, target = torch.randn(2, 37, 129).log_softmax(-1).to(dtype)
        yield "mean", (x, target.exp(), MEAN, False)
    if op.name == "binary_cross_entropy":
        x = torch.randn(37, 129).to(dtype)
        yield "mean-large", (x, (x > 0.3).to(dtype), None, None, MEAN)
    if op.name == "cross_entropy":
        yield "mean-large", (torch.randn(24, 5000).to(dtype), torch.arange(24), None, -100, 0.1, MEAN)


def calls(op: Op, direction: str, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Arguments of every call without dropout, of which PyTorch's operators draw another mask than the reference."""
    for name, forward in [*cases.cases(op, CPU, dtype), *large(op, dtype)]:
        if name == "empty" or dict(zip(op.fwd.argument_names(), forward)).get("rng_state") is not None:
            continue
        if direction == "bwd":
            outputs = as_tuple(op.fwd.torch(*forward))
            yield name, tuple(op.backward_arguments(forward, outputs, torch.randn_like(outputs[0]), **given(op)))
        else:
            yield name, forward


def given(op: Op) -> dict[str, Any]:
    return {"deterministic": True} if op.name == "attention" else {}


def tiles(x: Tensor, each: bool) -> Iterator[slice]:
    """2 % of the elements of a flat tensor, one after the other, at three places.

    A tile of a few elements may happen to hold numbers that are small beside those of its row; unless elements are held
    to their own size, such a tile may be lost in the rounding of the others.
    """
    n = max(1, x.numel() // 50)
    for part in (0.0, 0.4, 1.0):
        first = int(part * (x.numel() - n))
        largest = x[first : first + n].nan_to_num(0, 0, 0).abs().max()
        if largest > (0.0 if each else x.nan_to_num(0, 0, 0).abs().max() / 8):
            yield slice(first, first + n)


def zeros(x: Tensor, each: bool) -> Iterator[Tensor]:
    yield torch.zeros_like(x)


def lost_tile(x: Tensor, each: bool) -> Iterator[Tensor]:
    """A tile of 2 % that was not written; of a sum, a fiftieth of its terms."""
    if x.numel() == 1:
        yield x * 0.98
        return
    for where in tiles(x.reshape(-1), each):
        wrong = x.clone(memory_format=torch.contiguous_format).view(-1)
        wrong[where] = 0
        yield wrong.view(x.shape)


def other_tile(x: Tensor, each: bool) -> Iterator[Tensor]:
    """A tile of 2 % that has the other sign: one of two products is missing in it."""
    for where in tiles(x.reshape(-1), each):
        wrong = x.clone(memory_format=torch.contiguous_format).view(-1)
        wrong[where] *= -1
        yield wrong.view(x.shape)


def missing_scale(x: Tensor, each: bool) -> Iterator[Tensor]:
    yield (x * KEPT).to(x.dtype)


@pytest.mark.parametrize("fault", [zeros, lost_tile, other_tile, missing_scale], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op, direction", HALVES)
def test_what_is_wrong_is_refused(op: Op, direction: str, dtype: torch.dtype, fault: Any) -> None:
    half: Direction = op.directions[direction]
    refused = 0
    for name, arguments in calls(op, direction, dtype):
        same, reference = as_tuple(half.torch(*arguments)), as_tuple(half.reference(*arguments))
        for i, (right, ref) in enumerate(zip(same, reference, strict=True)):
            if not right.numel() or not bool(ref.any()):
                continue  # a gradient that nobody asked for, or one of zeros
            assert_as_accurate(right, right, ref, f"{name}, result {i}", by=half.compared_by)
            for wrong in fault(right, half.compared_by == "element"):
                found = compare(wrong, right, ref, by=half.compared_by)
                assert found.share > 1.0, f"{name}, result {i}: {found}"
                refused += 1
    assert refused


def write_nothing(*arguments: Any) -> None:
    """A launcher whose kernel forgets its results."""


@pytest.mark.parametrize("backend", ["torch", "triton", "cuda"])
@pytest.mark.parametrize("op, direction", HALVES)
def test_what_is_not_written_is_refused(monkeypatch, op: Op, direction: str, backend: str) -> None:
    """Every result comes from memory that holds the right numbers of the call before, unless it was poisoned."""
    half: Direction = op.directions[direction]
    forgetful = Impl(backend, "none:fwd", "none:bwd", supports=lambda *_: None)
    monkeypatch.setattr(fasttx.ops.dispatch, "resolve", lambda path: write_nothing)
    row = SimpleNamespace(name=op.name, choice=lambda *_: None if backend == "torch" else forgetful, why=lambda *_: "")
    unwritten = SimpleNamespace(**{**vars(half), "torch": half.fake, "argument_names": half.argument_names})
    call = fasttx.ops.dispatch.body(row, direction, unwritten if backend == "torch" else half)
    for name, arguments in calls(op, direction, torch.float32):
        with poisoned_outputs():
            results = as_tuple(call(*arguments, backend))
        for i, (out, ref) in enumerate(zip(results, as_tuple(half.reference(*arguments)), strict=True)):
            if out.numel():
                assert error(out, ref) > 0.0 if out.dtype == torch.int8 else error(out, ref) == torch.inf, (name, i)


def test_memory_is_left_as_it_is_without_poison() -> None:
    assert not fasttx.ops.dispatch.around
    with poisoned_outputs(), poisoned_outputs():
        assert len(fasttx.ops.dispatch.around) == 2
    assert not fasttx.ops.dispatch.around


# -------------------------------------------------------------------------------------------------------- its bounds

ONE = torch.tensor([[1.0, 2.0], [0.5, 0.25]], dtype=torch.float64)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e20])
def test_the_bound_follows_the_size(size: float) -> None:
    ref = ONE * size
    found = compare(ref.float(), ref.float(), ref)
    assert found.share < 0.1 and 2e-6 * size <= found.allowed < 1e-5 * size
    assert compare((ref * (1 + 2e-5)).float(), ref.float(), ref).share > 1


def test_a_small_row_is_held_to_its_own_size() -> None:
    ref = torch.stack([ONE[0], ONE[1] / 16])
    right = ref.bfloat16()
    assert compare(right, right, ref).share < 1
    wrong = right.clone()
    wrong[1] += 4e-3  # a quarter of the floor of the other row
    assert compare(wrong, right, ref).share > 1
    assert compare(wrong, right, ref, by="tensor").share < 1


def test_a_small_element_is_held_to_its_own_size() -> None:
    """Which shows in the gradient of a cross-entropy of many classes: its kernel may write the label's column alone."""
    ref = torch.full((2, 1000), 3e-5, dtype=torch.float64)
    ref[:, 7] = -1.0
    wrong = torch.zeros(2, 1000)
    wrong[:, 7] = -1.0
    for dtype in DTYPES:
        right = ref.to(dtype)
        assert compare(right, right, ref, by="element").share < 1
        assert compare(wrong.to(dtype), right, ref, by="element").share > 1


def test_a_row_that_cancelled_may_hold_what_float32_left_over() -> None:
    ref = torch.stack([ONE[0], torch.zeros(2)])
    noise = torch.tensor([[1.0, 2.0], [2e-6, -1e-6]])
    assert compare(noise, ref.float(), ref).share < 1
    assert compare(noise * torch.tensor([[1.0], [4.0]]), ref.float(), ref).share > 1


def test_rows_count_as_at_least_the_size_that_is_named() -> None:
    ref, noise = torch.zeros(3, dtype=torch.float64), torch.full((3,), 1e-7)
    assert compare(noise, torch.zeros(3), ref).share > 1
    assert compare(noise, torch.zeros(3), ref, least=1.0).share < 1


def test_numbers_below_the_steps_of_float16_are_equal() -> None:
    ref = torch.full((3,), 2e-8, dtype=torch.float64)
    assert compare(torch.zeros(3).half(), ref.half(), ref).share < 1


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_infinities_and_nan_must_agree(wrong: float) -> None:
    ref = torch.tensor([1.0, torch.inf, torch.nan, -torch.inf], dtype=torch.float64)
    assert compare(ref.float(), ref.float(), ref).share < 1
    for i in range(4):
        out = ref.float()
        if not (out[i] == wrong or (out[i].isnan() and wrong != wrong)):
            out[i] = wrong
            assert compare(out, ref.float(), ref).error == torch.inf
