"""The attention op: compositions against the float64 reference, the reference against autograd, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fasttx.ops.attention import composed as attention_composed
from fasttx.ops.attention import reference as attention_reference
from fasttx.ops.attention.call import AttentionCall, has_dbias
from fasttx.ops.attention.cpu import chunks as attention_chunks
from fasttx.ops.attention.cpu import dispatch as attention_cpu
from fasttx.ops.attention.op import ATTENTION, visible_pairs
from fasttx.ops.backends import backend
from fasttx.ops.dropout.attention import attention_keep, dropout_threshold
from fasttx.testing import assert_as_accurate

NAMES = ("out", "softmax_lse", "dq", "dk", "dv", "dbias")
LENGTHS_Q, LENGTHS_K = (7, 0, 12), (9, 3, 11)  # an empty sequence, and more keys than queries and the other way round


def cu(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def make(
    varlen: bool = False, dtype: torch.dtype = torch.float32, p: float = 0.0, window: tuple[int, int] = (-1, -1),
    heads: int = 4,
    heads_k: int = 4, d: int = 16, dv: int = 16, rows: int = 19, keys: int = 23, bias: Any = None, used: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    """q, k, v and the other arguments of the op."""
    batch: tuple[int, ...] = () if varlen else (2,)
    rows, keys = (sum(LENGTHS_Q), sum(LENGTHS_K)) if varlen else (rows, keys)
    q = torch.randn(*batch, rows, heads, d).to(dtype)
    k = torch.randn(*batch, keys, heads_k, d).to(dtype)
    v = torch.randn(*batch, keys, heads_k, dv).to(dtype)
    lengths = (cu(LENGTHS_Q), cu(LENGTHS_K)) if varlen else (None, None)
    sizes = (max(LENGTHS_Q), max(LENGTHS_K)) if varlen else (rows, keys)
    rng = torch.tensor([2**62 + 12345, 2**33 + 7]) if p else None
    used = None if used is None else torch.tensor(used, dtype=torch.int32)
    return (q, k, v, bias, used, *lengths, rng, *sizes, 0.3, p, *window)


def key_mask(*lengths: int, keys: int = 23) -> torch.Tensor:
    return (torch.arange(keys) < torch.tensor(lengths)[:, None])[:, None, None]


def dead_rows(*shape: int) -> torch.Tensor:
    bias = torch.randn(*shape)
    bias[0, :, 3] = float("-inf")
    return bias


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"heads_k": 2},
    "one-row": {"rows": 1, "keys": 1},
    "head-dim-of-v": {"dv": 8, "heads_k": 2},
    "causal": {"window": (-1, 0)},
    "window": {"window": (3, 2)},
    "window-without-keys": {"window": (2, 0), "rows": 31},
    "bool-mask": {"bias": torch.rand(2, 1, 19, 23, generator=torch.Generator().manual_seed(1)) > 0.5},
    "bias-and-dead-rows": {"bias": dead_rows(2, 4, 19, 23)},
    "bias-and-causal": {"bias": dead_rows(2, 1, 19, 23), "window": (-1, 0)},
    "bias-window-v": {"bias": dead_rows(1, 4, 19, 23), "window": (2, 1), "dv": 8},
    "bias-bf16": {"bias": torch.randn(1, 4, 1, 23).bfloat16()},
    "bias-one-column": {"bias": torch.randn(1, 1, 19, 1)},
    "bias-shared": {"bias": dead_rows(1, 1, 19, 23), "heads_k": 2},
    "bias-of-keys": {"bias": torch.randn(2, 1, 1, 23), "window": (4, -1)},
    "bias-seqused": {"used": (5, 23), "bias": dead_rows(1, 4, 19, 23), "d": 256, "dv": 256},
    "key-mask-prefix": {"bias": key_mask(23, 9)},
    "key-mask-empty": {"bias": key_mask(0, 9), "d": 256, "dv": 256},
    "key-mask-shared": {"bias": key_mask(9)},
    "key-mask-holes": {"bias": torch.arange(23)[None, None, None] % 3 > 0},
    "seqused": {"used": (5, 0)},
    "seqused-sliced": {"used": (5, 23), "d": 256, "dv": 256, "bias": dead_rows(2, 4, 19, 23)},
    "seqused-bool": {
        "used": (5, 20),
        "bias": torch.rand(2, 4, 19, 23, generator=torch.Generator().manual_seed(2)) > 0.3,
    },
    "varlen": {"varlen": True},
    "varlen-causal": {"varlen": True, "window": (-1, 0)},
    "varlen-window-grouped": {"varlen": True, "window": (2, 1), "heads_k": 2},
    "varlen-bias": {"varlen": True, "bias": torch.randn(3, 1, 12, 11)},
    "varlen-bias-shared": {"varlen": True, "bias": dead_rows(1, 4, 12, 11), "window": (-1, 2)},
    "varlen-key-mask": {"varlen": True, "bias": torch.arange(11)[None, None, None] < 4},
    "no-keys": {"keys": 0},
    "no-rows": {"rows": 0},
}


def results(module: Any, args: tuple[Any, ...], dout: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out, lse = module.forward(*args)
    grads = module.backward(dout, *args[:3], out.to(dout.dtype), lse.float(), *args[3:], False, has_dbias(args[3]))
    return (out, lse, *grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("module", [attention_cpu, attention_composed], ids=["cpu", "math"])
@pytest.mark.parametrize("case", CASES)
def test_composition_against_float64(case: str, module: Any, dtype: torch.dtype) -> None:
    args = make(dtype=dtype, **CASES[case])
    dout = torch.randn(*args[0].shape[:-1], args[2].shape[-1]).to(dtype)
    refs = results(attention_reference, args, dout)
    plain = results(attention_composed, args, dout)  # PyTorch's operators in fp32, rounded once: the stricter bar
    for name, got, same, ref in zip(NAMES, results(module, args, dout), plain, refs, strict=True):
        if dtype is not torch.float32 and module is attention_cpu:  # PyTorch's kernel multiplies in `dtype`
            scale = float(ref.nan_to_num(neginf=0.0).abs().max().clamp(min=1.0)) if ref.numel() else 1.0
            same = torch.where(ref.isfinite(), ref + scale * torch.finfo(dtype).eps, ref).to(got.dtype)
        nothing = ref.numel() and float(ref.abs().nan_to_num(posinf=1.0).max()) < 1e-12
        least = 1.0 if nothing else 0.0  # of one key, or a bias of one column: what terms about 1 left over
        assert_as_accurate(got, same.to(got.dtype), ref, f"{case} {name}", least=least)


@pytest.mark.parametrize(
    "case", ["plain", "grouped", "bool-mask", "bias-shared", "varlen", "varlen-causal", "varlen-bias-shared", "no-keys"]
)
def test_exact_dropout_of_the_device_composition(case: str) -> None:
    args = make(p=0.3, **CASES[case])
    dout = torch.randn(*args[0].shape[:-1], args[2].shape[-1])
    same = results(attention_composed, args, dout)
    for name, got, ref in zip(NAMES, same, results(attention_reference, args, dout), strict=True):
        assert_as_accurate(got, ref.to(got.dtype), ref, name)


@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "causal",
        "bias-and-dead-rows",
        "bias-shared",
        "bias-of-keys",
        "bias-one-column",
        "varlen-window-grouped",
        "varlen-bias-shared",
        "head-dim-of-v",
    ],
)
def test_reference_gradients_are_those_of_autograd(case: str) -> None:
    args = make(p=0.25, **CASES[case])
    inputs = [x.double().requires_grad_() for x in (*args[:3], *([args[3]] if has_dbias(args[3]) else []))]
    q, k, v, bias = (*inputs, None)[:4]
    out, lse = attention_reference.forward(q, k, v, bias, *args[4:])
    dout = torch.randn_like(out)
    wanted = torch.autograd.grad(out, inputs, dout)
    got = attention_reference.backward(dout, q, k, v, out, lse, bias, *args[4:], False, bias is not None)
    for g, w in zip(got[: len(inputs)], wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------------------- dropout


def numpy_keep(seed: int, head: int, offset: int, rows: int, keys: int, threshold: int) -> np.ndarray:
    """The scheme of kernels/dropout.py, element by element, in uint64."""
    low = np.uint64(0xFFFFFFFF)
    row, col = (x.astype(np.uint64) for x in np.broadcast_arrays(np.arange(rows)[:, None], np.arange(keys)[None, :]))
    c = [
        row // 16 * 8 + row % 8,
        col // 32 * 4 + col % 8 // 2,
        np.full_like(row, head),
        np.full_like(row, offset % 2**32),
    ]
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(7):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    word = np.choose((row // 8 % 2 * 2 + col // 16 % 2).astype(int), c)
    return (word >> (8 * (col // 8 % 2 * 2 + col % 2)).astype(np.uint64)) % 256 >= threshold


def test_the_mask_is_that_of_the_design() -> None:
    seed, offset = 2**62 + 987654321, 5 * 2**32 + 77
    heads = torch.tensor([0, 3, 1000])
    got = attention_keep(torch.tensor([seed, offset]), heads, 37, 75, 0.1)
    for n, head in enumerate(heads.tolist()):
        assert np.array_equal(got[n].numpy(), numpy_keep(seed, head, offset, 37, 75, 26))


@pytest.mark.parametrize(("p", "threshold"), [(0.0, 0), (1e-6, 1), (0.1, 26), (0.5, 128), (0.999, 255)])
def test_threshold(p: float, threshold: int) -> None:
    assert dropout_threshold(p) == threshold


def test_cpu_dropout_drops_p_hat_and_backward_draws_the_same_mask() -> None:
    p = 0.25
    q, k, v, *rest = make(p=p, rows=32, keys=48, d=48, dv=48, heads=2, heads_k=2)
    v = (
        torch.eye(48).view(1, 48, 1, 48).expand(2, 48, 2, 48).contiguous()
    )  # out shows the dropped probabilities themselves
    out, lse = attention_cpu.forward(q, k, v, *rest)
    probabilities, _ = attention_reference.forward(q, k, v, *rest[:4], None, *rest[5:8], 0.0, *rest[9:])
    factor = torch.where(out == 0, 0.0, out / probabilities)
    torch.testing.assert_close(factor[out != 0], torch.full_like(factor[out != 0], 1 / (1 - p)), rtol=1e-4, atol=1e-4)
    assert abs(float((out == 0).double().mean()) - p) < 4 * (p * (1 - p) / out.numel()) ** 0.5
    dout = torch.randn_like(out)
    dv = attention_cpu.backward(dout, q, k, v, out, lse, *rest, False, False).dv
    torch.testing.assert_close(dv, torch.einsum("bqhk,bqhd->bkhd", out, dout), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "grouped",
        "key-mask-prefix",
        "bias-and-dead-rows",
        "bias-shared",
        "bias-of-keys",
        "varlen-causal",
        "varlen-bias-shared",
        "head-dim-of-v",
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 10, 1 << 20], ids=["head", "heads", "sequences"])
def test_cpu_dropout_gradients(case: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a given mask the output is linear in v and the gradient exact: compared with differences in float32."""
    monkeypatch.setattr(attention_chunks, "CHUNK", chunk)
    q, k, v, *rest = make(p=0.2, **CASES[case])
    out, lse = attention_cpu.forward(q, k, v, *rest)
    dout = torch.randn_like(out)
    grads = attention_cpu.backward(dout, q, k, v, out, lse, *rest, False, has_dbias(rest[0]))
    inputs = [q, k, v, rest[0]]
    for n, grad in enumerate(grads if has_dbias(rest[0]) else grads[:3]):
        step = torch.randn_like(inputs[n]) * 1e-2
        values = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[n] = inputs[n] + sign * step
            values.append(float((attention_cpu.forward(*moved, *rest[1:])[0].double() * dout).sum()))
        expected = (values[0] - values[1]) / 2
        assert float((grad.double() * step).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-3), NAMES[2 + n]


def test_cpu_ignores_what_is_masked() -> None:
    args = make(used=(5, 9), d=256, dv=256)
    poisoned = [x.clone() for x in args[:3]]
    for x in poisoned[1:]:
        x[0, 5:], x[1, 9:] = float("nan"), float("nan")
    dout = torch.randn(args[0].shape)
    for module in (attention_cpu, attention_composed):
        for got, clean in zip(results(module, (*poisoned, *args[3:]), dout), results(module, args, dout), strict=True):
            torch.testing.assert_close(got, clean, rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------- the op as a whole


@pytest.mark.parametrize("case", ["plain", "key-mask-prefix", "varlen", "varlen-bias-shared", "grouped"])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_opcheck(case: str, p: float) -> None:
    args = make(p=p, **CASES[case])
    torch.library.opcheck(torch.ops.fasttx.attention_fwd.default, (*args, "torch"))
    out, lse = torch.ops.fasttx.attention_fwd(*args, "torch")
    dout = torch.randn_like(out)
    backward = (dout, *args[:3], out, lse, *args[3:], False, has_dbias(args[3]), "torch")
    torch.library.opcheck(torch.ops.fasttx.attention_bwd.default, backward)


def test_outputs_are_contiguous_whatever_the_strides() -> None:
    args = make()
    for order in ((0, 2, 1, 3), (1, 0, 2, 3)):
        q, k, v = (x.permute(order).contiguous().permute(order) for x in args[:3])
        out, lse = torch.ops.fasttx.attention_fwd(q, k, v, *args[3:], "torch")
        grads = torch.ops.fasttx.attention_bwd(out, q, k, v, out, lse, *args[3:], False, False, "torch")
        assert all(x.is_contiguous() for x in (out, lse, *grads))


def test_autocast_does_not_reach_into_the_op() -> None:
    args = make(p=0.1)
    plain = torch.ops.fasttx.attention_fwd(*args, "torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.ops.fasttx.attention_fwd(*args, "torch")
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_cost_counts_visible_pairs() -> None:
    q, k, v, *rest = make(window=(3, 2))
    seen = sum(1 for i in range(19) for j in range(23) if i - 3 <= j <= i + 2)
    assert visible_pairs(q, k, AttentionCall(*rest)) == 2 * seen
    q, k, v, *rest = make(varlen=True, window=(-1, 0))
    seen = sum(
        1 for m, n in zip(LENGTHS_Q, LENGTHS_K, strict=True) for i in range(m) for j in range(n) if j <= i + n - m
    )
    assert visible_pairs(q, k, AttentionCall(*rest)) == seen
    flop, moved = ATTENTION.fwd.cost(q, k, v, *rest)
    assert flop == 4.0 * seen * 4 * 16
    assert moved >= 4 * (q.numel() + k.numel() + v.numel())


# -------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("case", ["plain", "varlen-causal", "seqused-bool", "bias-seqused", "varlen-bias-shared"])
def test_triton_through_the_op(case: str, p: float, device: torch.device) -> None:
    """The op finds the launchers and they agree with the reference, dropout bit for bit."""
    pytest.importorskip("triton")
    args = tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in make(p=p, **CASES[case]))
    refs = results(attention_reference, args, dout := torch.randn_like(args[0]))
    same = results(attention_composed, args, dout)
    with backend("triton"):
        out, lse = torch.ops.fasttx.attention_fwd(*args, "triton")
        grads = torch.ops.fasttx.attention_bwd(dout, *args[:3], out, lse, *args[3:], True, has_dbias(args[3]), "triton")
    for name, got, plain, ref in zip(NAMES, (out, lse, *grads), same, refs, strict=True):
        assert_as_accurate(got, plain, ref, name)
