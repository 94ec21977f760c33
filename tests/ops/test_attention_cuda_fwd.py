"""Attention's forward in CUDA C++ by mma.sync, called directly, against float64 and PyTorch's operators in the same
dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the cases are those of the Triton kernels")

from ops.attention_cases import Case, check_forward, guarded, make_inputs, poisoned, run_forward
from ops.numpy_dropout import attention_keep
from ops.test_attention_kernels import BF16, F16, MASKS, PACKED

from fasttx.ops.attention import cuda as attention
from fasttx.ops.attention.cuda import attention_fwd
from fasttx.ops.cuda import launch as cuda

EITHER = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])


@pytest.fixture(autouse=True)
def compiled(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = cuda.why_not(device, None if device.type == "cpu" else 80)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(attention, "FORM", 80)


def check(device: torch.device, case: Case) -> None:
    check_forward(attention_fwd, case, device)


# a tile is 128 queries and 64 keys, 64 and 32 of the largest heads; 200 keys fill either stage twice
@EITHER
@pytest.mark.parametrize(
    ("sq", "sk", "dim"),
    [(1, 1, 32), (127, 63, 32), (128, 64, 64), (129, 65, 64), (20, 200, 96), (65, 33, 256), (64, 32, 192)],
)
def test_tile_boundaries(device: torch.device, sq: int, sk: int, dim: int, aligned: bool) -> None:
    check(device, Case(sq, sk, 1, dim=dim, dim_v=dim, dtype=BF16, aligned=aligned))


@EITHER
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize(
    ("dim", "dim_v"),
    [(1, 1), (20, 40), (33, 31), (64, 16), (80, 80), (96, 96), (100, 128), (128, 100), (192, 129), (8, 256)],
)
def test_head_dims(device: torch.device, dim: int, dim_v: int, dtype: torch.dtype, aligned: bool) -> None:
    check(device, Case(20, 100, 1, dim=dim, dim_v=dim_v, dtype=dtype, dropout_p=0.1, aligned=aligned))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("sq", "sk", "dim"), [(40, 70, 32), (150, 200, 128)])
def test_masks(device: torch.device, mask: str, sq: int, sk: int, dim: int) -> None:
    dtype = F16 if mask.endswith(("add", "lowest")) else BF16
    check(device, Case(sq, sk, mask=mask, heads=2, heads_k=2, dim=dim, dim_v=dim, dtype=dtype, aligned=True))


@pytest.mark.parametrize("window", [(-1, 0), (0, 3), (9, -1), (70, 40), (2**40, 4)])
@pytest.mark.parametrize("lengths", [(), ((150, 170), (0, 5), (170, 30), (5, 0), (20, 3))], ids=["padded", "packed"])
@pytest.mark.parametrize("mask", ["", "full-add"])
def test_windows(
    device: torch.device, window: tuple[int, int], lengths: tuple[tuple[int, int], ...], mask: str
) -> None:
    check(device, Case(150, 170, 1, lengths=lengths, window=window, mask=mask, dtype=BF16, aligned=True))


@EITHER
@pytest.mark.parametrize(("mask", "dropout_p"), [("", 0.0), ("key-bool", 0.3), ("full-add", 0.3)])
def test_packed(device: torch.device, mask: str, dropout_p: float, aligned: bool) -> None:
    check(
        device,
        Case(heads=2, heads_k=1, lengths=PACKED, mask=mask, dropout_p=dropout_p, dtype=F16, aligned=aligned),
    )


@EITHER
@pytest.mark.parametrize(
    ("seqused", "mask"), [((70, 0), ""), ((33, 1), ""), ((33, 1), "key-bool"), ((32, 64), "full-bool")]
)
def test_valid_keys(device: torch.device, seqused: tuple[int, ...], mask: str, aligned: bool) -> None:
    check(device, Case(seqused=seqused, mask=mask, dtype=BF16, aligned=aligned))


@pytest.mark.parametrize("heads_k", [1, 2])
def test_grouped_heads(device: torch.device, heads_k: int) -> None:
    check(device, Case(20, 40, 2, heads=4, heads_k=heads_k, dropout_p=0.1, mask="head_key-bool", dtype=BF16))


@pytest.mark.parametrize("mask", ["", "key-bool", "key-add"])
@pytest.mark.parametrize("scale", [0.0, -0.3, 3.0])
def test_scales(device: torch.device, scale: float, mask: str) -> None:
    check(device, Case(20, 40, scale=scale, mask=mask, dtype=BF16))


@pytest.mark.parametrize("threshold", [1, 26, 128, 129, 255])
def test_dropout_is_that_of_the_package_bit_for_bit(device: torch.device, threshold: int) -> None:
    """v is the identity: out has the probabilities, of which just those are not zero that are kept."""
    batch, heads, rows, keys, p = 2, 3, 150, 80, threshold / 256
    q, k = (torch.randn(batch, n, heads, 16, device=device).to(F16) for n in (rows, keys))
    v = torch.eye(keys, device=device, dtype=F16)[None, :, None].expand(batch, keys, heads, keys).contiguous()
    seed, offset = 2**62 + 987654321, 5 * 2**32 + 77
    state = torch.tensor([seed, offset], device=device)
    args = (None, None, None, None, state, rows, keys, 0.1, p, -1, -1)
    out, _ = run_forward(attention_fwd, q, k, v, args)
    whole, _ = run_forward(attention_fwd, q, k, v, (*args[:4], None, *args[5:8], 0.0, -1, -1))
    for head in range(batch * heads):
        found = out[head // heads, :, head % heads].cpu()
        kept = torch.from_numpy(attention_keep(seed, offset, head, np.arange(rows), np.arange(keys), threshold))
        assert torch.equal(found != 0, kept), head
        expected = whole[head // heads, :, head % heads].cpu().float() / (1 - p) * kept
        torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-6)


def test_no_keys_at_all(device: torch.device) -> None:
    q, k, v, _, args = make_inputs(Case(20, 0, dtype=BF16), device)
    out, lse = run_forward(attention_fwd, q, k, v, args)
    assert not bool(out.any()) and bool(lse.isneginf().all())


@pytest.mark.parametrize("batch, sq", [(0, 5), (3, 0)])
def test_no_queries_at_all(device: torch.device, batch: int, sq: int) -> None:
    q, k = (torch.randn(batch, n, 2, 8, device=device).to(BF16) for n in (sq, 7))
    run_forward(attention_fwd, q, k, k, (None, None, None, None, None, sq, 7, 1.0, 0.0, -1, -1))
    cu = torch.zeros(1, dtype=torch.int32, device=device)
    q = torch.randn(5, 2, 8, device=device).to(BF16)
    out, lse = run_forward(attention_fwd, q, q, q, (None, None, cu, cu, None, 5, 5, 1.0, 0.0, -1, -1))
    assert not bool(out.any()) and bool(lse.isneginf().all())


def test_lengths_beyond_the_stated_maximum(device: torch.device) -> None:
    q, k, v, _, args = make_inputs(Case(lengths=((40, 50), (20, 30)), mask="full-add", dtype=BF16), device)
    bias = guarded((2, 1, 33, 35), torch.float32, device)[0]
    run_forward(attention_fwd, q, k, v, (bias.fill_(0.0), *args[1:5], 33, 35, *args[7:]))


@pytest.mark.parametrize("starts", [(0, 40), (-3, 24), (10, 4), (0, 30, 60), (10, -(2**31))])
def test_wrong_sequence_bounds_touch_nothing_else(device: torch.device, starts: tuple[int, ...]) -> None:
    q, k, v, _, args = make_inputs(Case(lengths=((24, 24),), dtype=BF16), device)
    cu = torch.tensor(starts, dtype=torch.int32, device=device)
    run_forward(attention_fwd, q, k, v, (*args[:2], cu, cu, args[4], 64, 64, *args[7:]))


def test_what_wrong_bounds_leave_out_is_nan_and_tokens_of_none_are_zero(device: torch.device) -> None:
    q, k, v, _, args = make_inputs(Case(heads=2, lengths=((60, 60),), dtype=BF16), device)
    cu = torch.tensor([2, 22, 55], dtype=torch.int32, device=device)
    out, lse = run_forward(attention_fwd, q, k, v, (*args[:2], cu, cu, None, 30, 30, *args[7:]))
    assert bool(out[2:52].isfinite().all()) and bool(lse[:, 2:52].isfinite().all())
    for lost in (slice(0, 2), slice(52, 55)):  # the second sequence is cut off after 30 tokens
        assert bool(out[lost].isnan().all()) and bool(lse[:, lost].isnan().all())
    assert not bool(out[55:].any()) and bool(lse[:, 55:].isneginf().all())


@pytest.mark.parametrize("keys, hidden", [(32, 8), (96, 8), (200, 130)])
def test_padding_that_a_key_mask_hides_is_never_read(device: torch.device, keys: int, hidden: int) -> None:
    q, k, v = (torch.randn(1, n, 2, 32, device=device).to(BF16) for n in (20, keys, keys))
    mask = torch.arange(keys, device=device)[None, None, None] < keys - hidden
    results = []
    for poison in (0.0, float("nan")):
        k[:, keys - hidden :], v[:, keys - hidden :] = poison, poison
        args = (mask, None, None, None, None, 20, keys, 0.2, 0.0, -1, -1)
        results.append(run_forward(attention_fwd, q, k, v, args))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_lowest_numbers_hide_and_a_constant_changes_nothing(device: torch.device) -> None:
    q, k, v, _, args = make_inputs(Case(40, 70, dtype=BF16), device)
    keep = torch.rand(2, 1, 40, 70, device=device) > 0.3
    keep[0, 0, 4] = False
    wanted = run_forward(attention_fwd, q, k, v, (keep, *args[1:]))
    plain = run_forward(attention_fwd, q, k, v, args)
    for dtype in (torch.float32, F16, BF16):
        lowest = torch.zeros(keep.shape, dtype=dtype, device=device).masked_fill_(~keep, torch.finfo(dtype).min)
        found = run_forward(attention_fwd, q, k, v, (lowest, *args[1:]))
        assert not bool(found[0][0, 4].any()) and bool(found[1][0, 0, 4].isneginf())
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
        far = torch.full((1, 1, 1, 70), -1e4, dtype=dtype, device=device)
        moved = run_forward(attention_fwd, q, k, v, (far, *args[1:]))[0]
        torch.testing.assert_close(moved, plain[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, F16, BF16], ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_nan_in_a_mask_is_seen(device: torch.device, rows: int, dtype: torch.dtype) -> None:
    """It hides no key, neither as the last one nor in float16: its row is NaN, as by PyTorch's function."""
    q, k, v, _, args = make_inputs(Case(40, 70, dtype=BF16), device)
    bias = torch.zeros(2, 1, rows, 70, dtype=dtype, device=device)
    bias[1, ..., -1] = float("nan")
    for x in run_forward(attention_fwd, q, k, v, (bias, *args[1:])):
        assert bool(x[1].isnan().all()) and bool(x[0].isfinite().all())


@pytest.mark.parametrize("dim", [40, 256])
def test_results_are_the_same_bits_every_time_and_alone(device: torch.device, dim: int) -> None:
    case = Case(70, 130, 3, dtype=F16, dim=dim, dim_v=dim, mask="shared-fp32", seqused=(130, 9, 64))
    q, k, v, _, args = make_inputs(case, device)
    first, second = (run_forward(attention_fwd, q, k, v, args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    alone = run_forward(attention_fwd, q[1:2], k[1:2], v[1:2], (args[0], args[1][1:2], *args[2:]))
    assert all(torch.equal(a[1:2], b) for a, b in zip(first, alone, strict=True))


@pytest.mark.parametrize("dim", [20, 40])  # 20: an aligned first row, and others that are not
def test_layouts_give_the_same_bits(device: torch.device, dim: int) -> None:
    """Copies of 16 bytes and of single elements, any order of the dims: one result."""
    shape = (2, 140, 3, dim)
    plain = [torch.randn(shape, device=device).to(BF16) for _ in range(3)]
    args = (None, None, None, None, None, 140, 140, 0.2, 0.0, -1, 0)
    wanted = run_forward(attention_fwd, *plain, args)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain]
    joint = list(torch.cat(plain, -1).split(dim, dim=-1))
    odd = [poisoned(shape, BF16, device).copy_(x) for x in plain]
    for q, k, v in (heads_first, joint, odd, (plain[0], odd[1], joint[2])):
        found = run_forward(attention_fwd, q, k, v, args)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_padded_and_packed_drop_the_same_elements(device: torch.device) -> None:
    lengths = (37, 20, 64)
    case = Case(64, 64, batch=3, dropout_p=0.4, seqused=lengths, dtype=BF16)
    q, k, v, _, args = make_inputs(case, device)
    padded, _ = run_forward(attention_fwd, q, k, v, args)
    packed = [torch.cat([x[b, :n] for b, n in enumerate(lengths)]) for x in (q, k, v)]
    cu = torch.tensor([0, 37, 57, 121], dtype=torch.int32, device=device)
    found, _ = run_forward(attention_fwd, *packed, (None, None, cu, cu, *args[4:]))
    assert torch.equal(found, torch.cat([padded[b, :n] for b, n in enumerate(lengths)]))
