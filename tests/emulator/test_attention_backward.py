"""Attention's backward in CUDA C++ against float64, in each of its three ways: one tile of keys, sums of dq in shared
memory, and a kernel of its own for dq."""

from __future__ import annotations

import dataclasses
from typing import Any

import host_build
import pytest
import torch
from ops.attention_cases import Case, check_guards, composition, guarded, make_inputs
from torch import Tensor

from fasttx.ops.attention import composed
from fasttx.ops.attention.call import has_dbias
from fasttx.ops.attention.cuda import attention_bwd
from fasttx.testing import assert_as_accurate

pytestmark = pytest.mark.skipif(host_build.lacks() is not None, reason=str(host_build.lacks()))

F16, BF16 = torch.float16, torch.bfloat16
PACKED = ((33, 34), (0, 5), (17, 164), (5, 0), (20, 3))
# archs by their shared memory: with 227 KB all of these have sums of dq there, with 99 KB the longer ones have not
ARCHS = (90, 86)
DQ_KERNEL_BYTES = {32: 32768, 64: 65536, 128: 65536, 256: 98304}
"""Shared memory of the kernel of dq, by head_dim (bwd_config.h): no other launch has just as much."""


def gradients(case: Case, inputs: tuple[Any, ...]) -> list[Tensor]:
    """dq, dk, dv, and dbias of an additive mask, after a forward of PyTorch's operators; nothing else is written."""
    q, k, v, dout, args = inputs
    out, lse = composed.forward(q, k, v, *args)
    (dq, m0), (dk, m1), (dv, m2) = (guarded(tuple(x.shape), x.dtype, x.device) for x in (q, k, v))
    bias = args[0]
    needed = has_dbias(bias)
    dbias, m3 = guarded(tuple(bias.shape), bias.dtype, q.device) if needed else guarded((0,), q.dtype, q.device)
    attention_bwd(dq, dk, dv, dbias, dout, q, k, v, out, lse, *args, case.deterministic, needed)
    check_guards(m0, m1, m2, m3)
    return [dq, dk, dv, *([dbias] if needed else [])]


def check(case: Case, device: torch.device, bias: tuple[int, ...] = ()) -> list[Tensor]:
    """The gradients, which are as accurate as those of PyTorch's own operators in the same dtype.

    Args:
        bias: shape of an additive mask that hides nothing, in place of the case's.
    """
    inputs = make_inputs(case, device)
    if bias:
        of_case = inputs[4]
        inputs = (*inputs[:4], (torch.randn(bias, device=device).to(case.dtype), *of_case[1:]))
    found = gradients(case, inputs)
    exact, terms = composition(*inputs, torch.float64)
    same, _ = composition(*inputs, case.dtype)
    for name, a, b, c in zip(("dq", "dk", "dv", "dbias"), found, same[2:], exact[2:]):
        assert_as_accurate(a, b.to(a.dtype), c, name, least=terms[name])
    for b, n in enumerate(case.seqused):
        assert not found[1][b, n:].any() and not found[2][b, n:].any(), "gradients of keys that nobody reads"
    return found


@pytest.mark.parametrize(
    "case, arch, dq_kernel",
    [
        (Case(1, 1, 1, dtype=BF16), 90, False),
        (Case(40, 70, dtype=F16), 86, False),  # one tile of 128 keys
        (Case(65, 128, 1, dtype=BF16), 86, False),
        (Case(65, 129, 1, dtype=BF16), 86, False),  # dq of 128 rows of 32 floats in 16 KB
        (Case(130, 300, 1, dim=64, dim_v=64, dtype=BF16, dropout_p=0.1), 90, False),
        (Case(130, 300, 1, dim=64, dim_v=64, dtype=BF16, dropout_p=0.1), 86, True),
        (Case(40, 64, 1, dim=128, dim_v=128, dtype=F16), 86, False),  # one tile of 64 keys
        (Case(33, 65, 1, dim=128, dim_v=128, dtype=BF16, dropout_p=0.4), 90, False),
        (Case(70, 65, 1, dim=128, dim_v=128, dtype=F16, dropout_p=0.4), 86, True),
        (Case(40, 30, 1, dim=256, dim_v=256, dtype=BF16), 90, True),  # never with dq
        (Case(70, 70, 1, dim=200, dim_v=150, dtype=F16, dropout_p=0.4), 90, True),
    ],
    ids=lambda x: f"{x.sq}x{x.sk}x{x.dim}" if isinstance(x, Case) else str(x),
)
def test_each_way_to_dq(plain, device, case: Case, arch: int, dq_kernel: bool) -> None:
    plain.set_device(arch)
    check(case, device)
    width = next(n for n in DQ_KERNEL_BYTES if n >= max(case.dim, case.dim_v))
    assert (plain.last_launch()[1] == DQ_KERNEL_BYTES[width]) == dq_kernel


FEATURES = {
    "grouped-window": Case(40, 140, heads=4, heads_k=2, window=(20, 3), dropout_p=0.2),
    "causal": Case(150, 150, 1, window=(-1, 0)),
    "window-without-keys": Case(60, 20, 1, window=(2, 0)),
    "packed-causal": Case(lengths=PACKED, window=(-1, 0), dropout_p=0.1),
    "packed-grouped": Case(lengths=PACKED, heads=2, dim=16, dim_v=24),
    "lengths": Case(sk=140, seqused=(5, 0)),
    "full-add": Case(70, 140, 1, mask="full-add", heads=2, heads_k=1),
    "full-bool": Case(mask="full-bool", heads=2, heads_k=2, dropout_p=0.25),
    "key-add-heads": Case(mask="head_key-bool", heads=4, heads_k=2),
    "key-lowest": Case(sk=140, mask="key-lowest"),
    "transposed-fp32": Case(mask="transposed-fp32", window=(-1, 5)),
    "row-add": Case(mask="row-add"),
    "packed-bias": Case(lengths=PACKED, mask="shared-fp32"),
    "negative-scale": Case(scale=-0.3, window=(3, 2)),
    "scale-0": Case(scale=0.0),
    "odd-head-dims": Case(20, 30, 1, dim=1, dim_v=7),
    "narrow-values": Case(20, 30, 1, dim=64, dim_v=16, dout="expanded"),
    "permuted-dout": Case(20, 30, 1, dim=20, dim_v=40, dout="permuted"),
    "most-is-dropped": Case(dropout_p=0.999),
    "least-is-dropped": Case(dropout_p=0.001),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", FEATURES)
def test_features(plain, device, name: str, arch: int) -> None:
    """On the arch with less shared memory heads are wide, so that dq has a kernel of its own."""
    case = dataclasses.replace(FEATURES[name], dtype=F16 if len(name) % 2 else BF16)
    if arch == 86 and case.dim == 32:
        case = dataclasses.replace(case, dim=136, dim_v=130)
    plain.set_device(arch)
    check(case, device)


@pytest.mark.parametrize("dim", [32, 128, 160])
@pytest.mark.parametrize(
    "bias",
    [(1, 1, 140, 150), (2, 4, 140, 150), (1, 4, 1, 150), (2, 1, 1, 150), (1, 1, 140, 1)],
    ids=str,
)
def test_gradient_of_a_bias(plain, device, bias: tuple[int, ...], dim: int) -> None:
    """All its dims, and each in which it has one element; heads that share keys, and windows that leave tiles out."""
    case = Case(140, 150, 2, heads=4, heads_k=2, dim=dim, dim_v=dim, dtype=BF16, window=(40, 5), dropout_p=0.2)
    found = check(case, device, bias)
    assert len(found) == 4 and bool(found[3].any()) == (bias[3] > 1)


@pytest.mark.parametrize("bias", [(1, 2, 70, 164), (1, 1, 1, 164)])
def test_gradient_of_a_bias_of_packed_sequences(plain, device, bias: tuple[int, ...]) -> None:
    check(Case(lengths=((33, 34), (0, 5), (70, 164), (20, 3)), heads=2, heads_k=2, dtype=F16), device, bias)


@pytest.mark.parametrize("dim", [32, 160])
@pytest.mark.parametrize("rows", [1, 40])
def test_rows_of_a_bias_that_are_one_by_their_strides(plain, device, rows: int, dim: int) -> None:
    """Each has a gradient of its own where the caller expanded the bias; NaN in it hides no key."""
    q, k, v, dout, args = make_inputs(Case(40, 70, dim=dim, dim_v=dim, dtype=BF16), device)
    bias = torch.randn(2, 1, 1, 70, device=device).to(BF16).expand(2, 1, rows, 70)
    case = Case()
    found, wanted = (gradients(case, (q, k, v, dout, (x, *args[1:]))) for x in (bias, bias.contiguous()))
    for got, same in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, same)
    bias = bias.clone()
    bias[1, ..., -1] = float("nan")
    for got in gradients(case, (q, k, v, dout, (bias, *args[1:]))):
        assert bool(got[1].isnan().any()) and bool(got[0].isfinite().all())


@pytest.mark.parametrize("lengths", [(), ((20, 0), (3, 0))], ids=["padded", "packed"])
@pytest.mark.parametrize("dim", [32, 160])
def test_no_keys_at_all(plain, device, dim: int, lengths: tuple[tuple[int, int], ...]) -> None:
    """Empty tensors have no address."""
    case = Case(20, 0, dim=dim, dim_v=dim, lengths=lengths, dtype=BF16)
    dq, dk, dv = gradients(case, make_inputs(case, device))
    assert not dq.any() and dk.numel() == dv.numel() == 0


@pytest.mark.parametrize("starts", [(0, 40), (-3, 24), (10, 4), (0, 30, 60), (10, -(2**31))])
def test_wrong_sequence_bounds_touch_nothing_else(plain, device, starts: tuple[int, ...]) -> None:
    q, k, v, dout, args = make_inputs(Case(lengths=((24, 24),), dtype=BF16), device)
    cu = torch.tensor(starts, dtype=torch.int32, device=device)
    grads = [guarded(tuple(x.shape), x.dtype, device) for x in (q, k, v)]
    out, lse = torch.zeros(dout.shape, dtype=BF16, device=device), torch.zeros(1, 24, device=device)
    args = (None, None, cu, cu, None, 64, 64, *args[7:])
    attention_bwd(*(x for x, _ in grads), q[:0], dout, q, k, v, out, lse, *args, False, False)
    check_guards(*(memory for _, memory in grads))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_bits_in_any_order(plain, device, arch: int) -> None:
    """Threads and blocks run in another order with each seed."""
    plain.set_device(arch)
    case = Case(70, 140, 1, heads=2, dim=64, dim_v=64, dtype=BF16, dropout_p=0.2)
    inputs = make_inputs(case, device)
    plain.configure(1)
    first = gradients(case, inputs)
    for seed in (2, 3):
        plain.configure(seed)
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(case, inputs), strict=True))


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_at_any_address_give_the_same_bits(plain, device, arch: int) -> None:
    """Inputs that 16-byte copies cannot read come element by element, to the same place."""
    plain.set_device(arch)
    case = Case(70, 140, 1, heads=2, dim=64, dim_v=64, dtype=BF16, window=(-1, 3))
    q, k, v, dout, args = make_inputs(case, device)
    assert all(x.stride(1) % 8 for x in (q, k, v, dout)), "these are the ones that cannot be copied so"
    inputs = (q.contiguous(), k.contiguous(), v.contiguous(), dout.contiguous(), args)
    assert all(x.data_ptr() % 16 == 0 for x in inputs[:4])
    for a, b in zip(gradients(case, inputs), gradients(case, (q, k, v, dout, args)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("longest", [20, 0])
def test_tokens_of_no_tile_get_zeros(plain, device, arch: int, longest: int) -> None:
    """Packed tokens before the first and after the last sequence, and what max_seqlen cuts off."""
    plain.set_device(arch)
    width = 32 if arch == 90 else 160
    q, k, v, dout = (torch.randn(60, 1, width, device=device).to(BF16) for _ in range(4))
    starts = torch.tensor([3, 10, 40, 50], dtype=torch.int32, device=device)
    args = (None, None, starts, starts, None, 20, longest, 0.2, 0.0, -1, -1)
    out, lse = torch.zeros_like(q), torch.zeros(1, 60, device=device)
    (dq, m0), (dk, m1), (dv, m2) = (guarded(tuple(x.shape), x.dtype, device) for x in (q, k, v))
    attention_bwd(dq, dk, dv, dq[:0], dout, q, k, v, out, lse, *args, False, False)
    check_guards(m0, m1, m2)
    covered = torch.zeros(60, dtype=torch.bool)
    covered[3:30] = covered[40:50] = True
    for x in (dq, dk, dv):
        assert not x[~covered].any(), "a token of none"
        assert bool(x[covered].any(-1).all()) == (longest > 0) and bool(x.isfinite().all())


def test_what_padding_holds_reaches_no_gradient(plain, device) -> None:
    """Keys after the last one that a mask shows to any head of a group: 0 * NaN would be NaN."""
    keep = torch.zeros(1, 4, 1, 70, dtype=torch.bool)
    keep[0, :, 0, :30] = keep[0, 1, 0, :40] = True
    q, k, v, dout = (torch.randn(1, n, h, 32).to(BF16) for n, h in ((40, 4), (70, 2), (70, 2), (40, 4)))
    k[:, 40:] = v[:, 40:] = float("nan")
    args = (keep, None, None, None, None, 40, 70, 0.2, 0.0, -1, -1)
    out, lse = composed.forward(q, k.nan_to_num(), v.nan_to_num(), *args)
    found = [torch.empty_like(x) for x in (q, k, v)]
    attention_bwd(*found, q[:0], dout, q, k, v, out, lse, *args, False, False)
    assert all(bool(x.isfinite().all()) for x in found) and not found[1][:, 40:].any() and found[1][:, 30:40, 0].any()


RACES = [
    (Case(70, 100, 1, dtype=BF16, dropout_p=0.1), 90),
    (Case(70, 140, 1, heads=2, dim=64, dim_v=64, dtype=F16, window=(-1, 0)), 90),
    (Case(lengths=((40, 70), (3, 2)), dim=64, dim_v=64, dtype=BF16, mask="key-bool"), 86),
    (Case(40, 70, 1, dim=160, dim_v=160, dtype=BF16, dropout_p=0.1), 86),
    (Case(40, 70, 1, heads=2, dim=128, dim_v=128, dtype=F16, mask="full-add", heads_k=1), 90),
    (Case(140, 70, 2, dtype=BF16, mask="head_key-fp32"), 90),
]


@pytest.mark.parametrize("case, arch", RACES, ids=range(len(RACES)))
def test_no_race(race, device, case: Case, arch: int) -> None:
    race.set_device(arch)
    for seed in (1, 2):
        race.configure(seed)
        found = check(case, device) if seed == 1 else gradients(case, make_inputs(case, device))
        assert all(bool(x.isfinite().all()) for x in found)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"threshold": 3}, "threshold must"),
        ({"head_dim": 257}, "head_dim"),
        ({"num_heads": 3}, "num_heads_k must lie in 1 .. num_heads, and divide it"),
    ],
)
def test_what_the_launcher_refuses(plain, monkeypatch, change: dict[str, int], message: str) -> None:
    from fasttx.ops.attention import cuda

    right = cuda.shape
    monkeypatch.setattr(cuda, "shape", lambda *args: {**right(*args), **change})
    q, k, v, dout, args = make_inputs(Case(4, 4, 1, heads=2, heads_k=2, dtype=BF16), torch.device("cpu"))
    out, lse = composed.forward(q, k, v, *args)
    with pytest.raises(ValueError, match=f"attention_bwd: .*{message}"):
        grads = [torch.empty(x.shape, dtype=BF16) for x in (q, k, v, q[:0])]
        attention_bwd(*grads, dout, q, k, v, out, lse, *args, False, False)
