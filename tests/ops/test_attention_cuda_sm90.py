"""Attention's forward in CUDA C++ by wgmma and TMA, called directly, against float64 and PyTorch's operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the cases are those of the Triton kernels")

from ops.attention_cases import Case, check_forward, make_inputs, poisoned, run_forward
from ops.numpy_dropout import attention_keep
from ops.test_attention_kernels import BF16, F16, MASKS, PACKED

from fasttx.ops.attention import cuda as attention
from fasttx.ops.attention.cuda import attention_fwd
from fasttx.ops.cuda import launch as cuda


@pytest.fixture(autouse=True)
def compiled(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    reason = cuda.why_not(device, None if device.type == "cpu" else 90)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(attention, "FORM", 90)  # refuses what it cannot run


def check(device: torch.device, case: Case) -> None:
    check_forward(attention_fwd, case, device)


# a tile is 64 queries and 128 keys; three of them fill the consumers, seven come round again
@pytest.mark.parametrize(
    ("sq", "sk", "dim"), [(1, 1, 64), (63, 127, 64), (64, 128, 64), (65, 129, 64), (420, 500, 64), (200, 700, 64)]
)
def test_tile_boundaries(device: torch.device, sq: int, sk: int, dim: int) -> None:
    check(device, Case(sq, sk, 1, dim=dim, dim_v=dim, dtype=BF16, aligned=True))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize(("dim", "dim_v"), [(8, 64), (40, 24), (64, 128), (96, 96), (128, 72)])
def test_head_dims(device: torch.device, dim: int, dim_v: int, dtype: torch.dtype) -> None:
    check(device, Case(70, 300, 1, dim=dim, dim_v=dim_v, dtype=dtype, dropout_p=0.1, aligned=True))


@pytest.mark.parametrize("window", [(-1, 0), (0, 3), (9, -1), (70, 140), (2**40, 4)])
@pytest.mark.parametrize("lengths", [(), ((250, 290), (0, 5), (170, 30), (5, 0), (20, 3))], ids=["padded", "packed"])
def test_windows(device: torch.device, window: tuple[int, int], lengths: tuple[tuple[int, int], ...]) -> None:
    check(device, Case(250, 290, 1, dim=64, dim_v=64, lengths=lengths, window=window, dtype=BF16, aligned=True))


@pytest.mark.parametrize("mask", MASKS)
def test_masks(device: torch.device, mask: str) -> None:
    dtype, dim = (F16, 128) if mask.endswith(("add", "lowest")) else (BF16, 64)
    check(device, Case(70, 200, mask=mask, heads=2, heads_k=2, dim=dim, dim_v=dim, dtype=dtype, aligned=True))


@pytest.mark.parametrize("mask", ["", "key-add"])
@pytest.mark.parametrize("scale", [0.0, -0.3, 3.0])
def test_scales(device: torch.device, scale: float, mask: str) -> None:
    check(device, Case(20, 140, scale=scale, mask=mask, dim=64, dtype=BF16, aligned=True))


@pytest.mark.parametrize("mask", ["key-bool", "full-add"])
@pytest.mark.parametrize("lengths", [(), ((150, 170), (0, 5), (170, 30), (5, 0))], ids=["padded", "packed"])
def test_windows_under_masks(device: torch.device, mask: str, lengths: tuple[tuple[int, int], ...]) -> None:
    case = Case(150, 170, 1, dim=64, lengths=lengths, window=(40, 9), mask=mask, dtype=BF16, aligned=True)
    check(device, case)


@pytest.mark.parametrize(("keys", "hidden"), [(96, 8), (300, 172)])
def test_padding_that_a_key_mask_hides_never_counts(device: torch.device, keys: int, hidden: int) -> None:
    q, k, v = (torch.randn(1, n, 2, 64, device=device).to(BF16) for n in (20, keys, keys))
    mask = torch.arange(keys, device=device)[None, None, None] < keys - hidden
    results = []
    for poison in (0.0, float("nan")):
        k[:, keys - hidden :], v[:, keys - hidden :] = poison, poison
        args = (mask, None, None, None, None, 20, keys, 0.2, 0.0, -1, -1)
        results.append(run_forward(attention_fwd, q, k, v, args))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("rows", [1, 40])
def test_nan_in_a_mask_is_seen(device: torch.device, rows: int) -> None:
    q, k, v, _, args = make_inputs(Case(40, 140, dim=64, dtype=BF16, aligned=True), device)
    bias = torch.zeros(2, 1, rows, 140, dtype=BF16, device=device)
    bias[1, ..., -1] = float("nan")
    for x in run_forward(attention_fwd, q, k, v, (bias, *args[1:])):
        assert bool(x[1].isnan().all()) and bool(x[0].isfinite().all())


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_packed(device: torch.device, dropout_p: float) -> None:
    check(device, Case(heads=2, heads_k=1, dim=64, lengths=PACKED, dropout_p=dropout_p, dtype=F16, aligned=True))


@pytest.mark.parametrize("seqused", [(300, 0), (33, 1), (128, 256), (299, 129)])
@pytest.mark.parametrize("dim", [64, 128])
def test_valid_keys(device: torch.device, seqused: tuple[int, ...], dim: int) -> None:
    check(device, Case(40, 300, 2, dim=dim, dim_v=dim, seqused=seqused, dtype=BF16, aligned=True))


@pytest.mark.parametrize("heads_k", [1, 2])
def test_grouped_heads(device: torch.device, heads_k: int) -> None:
    check(device, Case(20, 140, 2, heads=4, heads_k=heads_k, dim=64, dropout_p=0.1, dtype=BF16, aligned=True))


@pytest.mark.parametrize("threshold", [1, 26, 128, 129, 255])
def test_dropout_is_that_of_the_package_bit_for_bit(device: torch.device, threshold: int) -> None:
    """v is the identity: out has the probabilities, of which just those are not zero that are kept."""
    batch, heads, rows, keys, p = 2, 2, 80, 128, threshold / 256
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


@pytest.mark.parametrize("starts", [(0, 40), (-3, 24), (10, 4), (0, 30, 60), (10, -(2**31))])
def test_wrong_sequence_bounds_touch_nothing_else(device: torch.device, starts: tuple[int, ...]) -> None:
    q, k, v, _, args = make_inputs(Case(dim=64, lengths=((24, 24),), dtype=BF16, aligned=True), device)
    cu = torch.tensor(starts, dtype=torch.int32, device=device)
    run_forward(attention_fwd, q, k, v, (*args[:2], cu, cu, args[4], 64, 64, *args[7:]))


def test_what_wrong_bounds_leave_out_is_nan_and_tokens_of_none_are_zero(device: torch.device) -> None:
    q, k, v, _, args = make_inputs(Case(heads=2, dim=64, lengths=((60, 60),), dtype=BF16, aligned=True), device)
    cu = torch.tensor([2, 22, 55], dtype=torch.int32, device=device)
    out, lse = run_forward(attention_fwd, q, k, v, (*args[:2], cu, cu, None, 30, 30, *args[7:]))
    assert bool(out[2:52].isfinite().all()) and bool(lse[:, 2:52].isfinite().all())
    for lost in (slice(0, 2), slice(52, 55)):  # the second sequence is cut off after 30 tokens
        assert bool(out[lost].isnan().all()) and bool(lse[:, lost].isnan().all())
    assert not bool(out[55:].any()) and bool(lse[:, 55:].isneginf().all())


def test_neighbours_that_are_nan_are_not_seen(device: torch.device) -> None:
    """Boxes of keys reach into the next sequence: its values count for nothing, NaN or not."""
    q, k, v, _, args = make_inputs(Case(dim=64, lengths=((30, 40), (30, 200)), dtype=BF16, aligned=True), device)
    wanted = run_forward(attention_fwd, q, k, v, args)
    k[40:], v[40:] = float("nan"), float("nan")
    found = run_forward(attention_fwd, q, k, v, args)
    assert torch.equal(found[0][:30], wanted[0][:30]) and torch.equal(found[1][:, :30], wanted[1][:, :30])


@pytest.mark.parametrize("dim", [40, 128])
def test_layouts_give_the_same_bits(device: torch.device, dim: int) -> None:
    shape = (2, 140, 3, dim)
    plain = [torch.randn(shape, device=device).to(BF16) for _ in range(3)]
    args = (None, None, None, None, None, 140, 140, 0.2, 0.0, -1, 0)
    wanted = run_forward(attention_fwd, *plain, args)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain]
    joint = list(torch.cat(plain, -1).split(dim, dim=-1))
    between = [poisoned(shape, BF16, device, aligned=True).copy_(x) for x in plain]
    for q, k, v in (heads_first, joint, between, (plain[0], between[1], joint[2])):
        found = run_forward(attention_fwd, q, k, v, args)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_padded_and_packed_drop_the_same_elements(device: torch.device) -> None:
    lengths = (37, 20, 64)
    case = Case(64, 64, batch=3, dim=64, dropout_p=0.4, seqused=lengths, dtype=BF16, aligned=True)
    q, k, v, _, args = make_inputs(case, device)
    padded, _ = run_forward(attention_fwd, q, k, v, args)
    packed = [torch.cat([x[b, :n] for b, n in enumerate(lengths)]) for x in (q, k, v)]
    cu = torch.tensor([0, 37, 57, 121], dtype=torch.int32, device=device)
    found, _ = run_forward(attention_fwd, *packed, (None, None, cu, cu, *args[4:]))
    assert torch.equal(found, torch.cat([padded[b, :n] for b, n in enumerate(lengths)]))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_strides_that_no_tensor_map_has(device: torch.device, which: int) -> None:
    args = (None, None, None, None, None, 20, 20, 0.2, 0.0, -1, -1)
    whole = [torch.randn(1, 20, 2, 64, device=device).to(BF16) for _ in range(3)]
    odd = torch.randn(1, 20, 2, 68, device=device).to(BF16)[..., :64]
    for other in (odd, whole[which][:, :, :1].expand(1, 20, 2, 64)):
        given = [*whole[:which], other, *whole[which + 1 :]]
        with pytest.raises(ValueError, match="rows that are not multiples of 16 bytes apart"):
            run_forward(attention_fwd, *given, args)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(dim=64, mask="key-bool", dropout_p=0.1, dtype=BF16, aligned=True), "it has no dropout under masks"),
        (Case(dim=64, dtype=BF16), "multiples of 16 bytes"),
        (Case(dim=36, dtype=BF16, aligned=True), "head_dim is no multiple of 8"),
        (Case(dim=136, dtype=BF16, aligned=True), "head_dim is above 128"),
        (
            Case(dim=64, scale=-0.3, dropout_p=0.1, dtype=BF16, aligned=True),
            "it has no dropout under .* scales up to 0",
        ),
        (Case(sk=0, dim=64, dtype=BF16, aligned=True), "no elements"),
    ],
)
def test_what_it_cannot_run_the_other_kernel_runs(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, case: Case, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"attention_fwd: form 90 cannot run this call: .*{reason}"):
        check(device, case)
    monkeypatch.setattr(attention, "FORM", attention.BY_CALL)
    if case.sk:
        check(device, case)
