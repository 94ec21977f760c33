"""Packed tokens after the last sequence, as in batches of a fixed capacity, and those that wrong bounds leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.attention_cases import SMALL, Case, make_inputs, run
from ops.test_attention_kernels import BF16, F32, PACKED, use_tile

import fasttx
import fasttx.functional as F
from fasttx.kernels.attention_config import Config
from fasttx.ops.attention import composed as attention_composed
from fasttx.ops.attention import reference as attention_reference
from fasttx.ops.attention.call import has_dbias

NAMES = ("out", "softmax_lse", "dq", "dk", "dv", "dbias")
TAIL = (40, 9)  # tokens of no sequence in q (more than a tile of 32) and in k


def packed(device: torch.device, tail: tuple[int, int] = TAIL, **options: Any) -> tuple[Any, ...]:
    """q, k, v, dout and the other arguments of PACKED, with tokens of NaN after them."""
    q, k, v, dout, args = make_inputs(Case(heads=4, heads_k=2, lengths=PACKED, **options), device)

    def longer(x: torch.Tensor, n: int) -> torch.Tensor:
        return torch.cat([x, x.new_full((n, *x.shape[1:]), float("nan"))])

    return longer(q, tail[0]), longer(k, tail[1]), longer(v, tail[1]), longer(dout, tail[0]), args


def expect_nothing_after(results: list[torch.Tensor], n_q: int, n_k: int) -> None:
    out, lse, dq, dk, dv = results[:5]
    assert not bool(out[n_q:].any()) and bool(lse[:, n_q:].isneginf().all())
    for name, grad, n in (("dq", dq, n_q), ("dk", dk, n_k), ("dv", dv, n_k)):
        assert not bool(grad[n:].any()), name


# default tiles: one block holds every key; small ones: several, dq by atomics or by a kernel of its own
@pytest.mark.parametrize("tile", [None, SMALL[0]], ids=["one-pass", "blocks"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"dtype": BF16, "window": (-1, 0), "dropout_p": 0.2}, marks=pytest.mark.slow),
        {"dim": 20, "dim_v": 40},
    ],
    ids=str,
)
def test_tokens_of_no_sequence_in_the_kernels(
    tile: Config | None,
    deterministic: bool,
    options: dict[str, Any],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tile is not None:
        use_tile(monkeypatch, tile)
    n_q, n_k = (sum(x) for x in zip(*PACKED, strict=True))
    q, k, v, dout, args = packed(device, **options)
    found = run(q, k, v, dout, args, deterministic)
    expect_nothing_after(found, n_q, n_k)
    alone = run(q[:n_q], k[:n_k], v[:n_k], dout[:n_q], args, deterministic)
    for name, got, same in zip(NAMES[:5], found, alone, strict=True):
        got = got[:, :n_q] if name == "softmax_lse" else got[: same.shape[0]]
        torch.testing.assert_close(got, same, rtol=0 if deterministic or tile is None else 1e-2, atol=1e-5, msg=name)


@pytest.mark.parametrize("heads_k", [1, 2])
def test_sequences_without_tokens_before_tokens_of_none(heads_k: int, device: torch.device) -> None:
    cu = torch.zeros(3, dtype=torch.int32, device=device)
    q, k, v, dout, args = make_inputs(Case(heads=2, heads_k=heads_k, lengths=((5, 6),)), device)
    for sizes in ((8, 8), (0, 0), (0, 300)):
        for deterministic in (False, True):
            results = run(q, k, v, dout, (*args[:2], cu, cu, None, *sizes, *args[7:]), deterministic)
            expect_nothing_after(results, 0, 0)
    results = run(q, k, v, dout, (*args[:2], cu[:1], cu[:1], None, 8, 8, *args[7:]), False)  # no sequence at all
    expect_nothing_after(results, 0, 0)


@pytest.mark.parametrize("tile", [None, SMALL[0]], ids=["one-pass", "blocks"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_wrong_bounds_leave_out_is_nan(
    tile: Config | None, deterministic: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU nobody reads the bounds; the gradients of such tokens are zeros."""
    if tile is not None:
        use_tile(monkeypatch, tile)
    q, k, v, dout, args = make_inputs(Case(heads=2, lengths=((60, 60),)), device)
    cu = torch.tensor([2, 22, 58], dtype=torch.int32, device=device)
    out, lse, dq, dk, dv = run(q, k, v, dout, (*args[:2], cu, cu, None, 30, 30, *args[7:]), deterministic)
    covered = torch.zeros(60, dtype=torch.bool, device=device)
    covered[2:52] = True  # the second sequence is cut off after 30 tokens
    lost = ~covered
    lost[58:] = False
    assert bool(out[covered].isfinite().all()) and bool(lse[:, covered].isfinite().all())
    assert bool(out[lost].isnan().all()) and bool(lse[:, lost].isnan().all())
    assert not bool(out[58:].any()) and bool(lse[:, 58:].isneginf().all())
    for name, grad in (("dq", dq), ("dk", dk), ("dv", dv)):
        assert bool(grad[covered].any(-1).all()) and not bool(grad[~covered].any()), name


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"window": (-1, 0)}, {"window": (5, 3)}, {"mask": "key-bool"}, {"mask": "full-add"}], ids=str
)
def test_tokens_of_no_sequence_in_the_compositions(options: dict[str, Any], dtype: torch.dtype) -> None:
    n_q, n_k = (sum(x) for x in zip(*PACKED, strict=True))
    q, k, v, dout, args = packed(torch.device("cpu"), dtype=dtype, **options)
    out, lse = torch.ops.fasttx.attention_fwd(q, k, v, *args, "torch")
    grads = torch.ops.fasttx.attention_bwd(dout, q, k, v, out, lse, *args, False, has_dbias(args[0]), "torch")
    ref_out, ref_lse = attention_reference.forward(q, k, v, *args)
    refs = (ref_out, ref_lse, *attention_reference.backward(dout, q, k, v, out, lse, *args, False, has_dbias(args[0])))
    out2, lse2 = attention_composed.forward(q, k, v, *args)
    others = (out2, lse2, *attention_composed.backward(dout, q, k, v, out2, lse2, *args, False, has_dbias(args[0])))
    for results in ((out, lse, *grads), others, refs):
        expect_nothing_after(list(results), n_q, n_k)
    tolerance = 1e-4 if dtype is F32 else 3e-2
    for name, got, other, ref in zip(NAMES, (out, lse, *grads), others, refs, strict=True):
        torch.testing.assert_close(got, ref.to(got.dtype), rtol=tolerance, atol=tolerance, msg=name)
        torch.testing.assert_close(other, ref.to(got.dtype), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("starts", [[0], [0, 0]], ids=["no sequence", "an empty one"])
@pytest.mark.parametrize("module", ["op", "math"])
def test_no_token_has_a_sequence_in_the_compositions(module: str, starts: list[int]) -> None:
    q, k, v, dout, args = make_inputs(Case(heads=2, lengths=((5, 6),)), torch.device("cpu"))
    cu = torch.tensor(starts, dtype=torch.int32)
    args = (*args[:2], cu, cu, None, 0, 0, *args[7:])
    if module == "op":
        out, lse = torch.ops.fasttx.attention_fwd(q, k, v, *args, "torch")
        grads = torch.ops.fasttx.attention_bwd(dout, q, k, v, out, lse, *args, False, False, "torch")
    else:
        out, lse = attention_composed.forward(q, k, v, *args)
        grads = attention_composed.backward(dout, q, k, v, out, lse, *args, False, False)
    expect_nothing_after([out, lse, *grads], 0, 0)
    assert all(grad.shape == x.shape for grad, x in zip(grads[:3], (q, k, v), strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_first_and_second_derivatives(dropout_p: float, backend: str) -> None:
    """What hangs on tokens of no sequence is 0, and so is what they do to the others."""
    lengths = torch.tensor([0, 5, 12], dtype=torch.int32)
    given = [torch.randn(16, 2, 8, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        for x in given:
            x[12:] = float("nan")
    state = torch.tensor([7, 0]) if dropout_p else None
    options: dict[str, Any] = {"dropout_p": dropout_p, "rng_state": state}
    with fasttx.backend(backend):
        out = F.attention_varlen(*given, lengths, lengths, 7, 7, **options)
        short = F.attention_varlen(*(x[:12] for x in given), lengths, lengths, 7, 7, **options)
        seed = torch.randn(16, 2, 8)
        first = torch.autograd.grad(out, given, seed, create_graph=True)
        same = torch.autograd.grad(short, given, seed[:12], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), given)
        same2 = torch.autograd.grad(same[0].square().sum(), given)
    assert torch.equal(out[:12], short) and not bool(out[12:].any())
    for got, want in zip((*first, *second), (*same, *same2), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        assert not bool(got[12:].any())
