"""Tensors of more than 2^31 elements: the last rows must be right, which they are only with 64-bit offsets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttx.ops import OPS
from fasttx.testing import assert_as_accurate

BF16 = torch.bfloat16
ops = torch.ops.fasttx


def _attention_args(q: Tensor, k: Tensor, v: Tensor) -> list[object]:
    return [q, k, v, None, None, None, None, None, q.shape[1], k.shape[1], q.shape[-1] ** -0.5, 0.0, -1, -1]


def _torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _same_as_torch(inputs: tuple[Tensor, ...], dout: Tensor, found: list[Tensor], names: str) -> None:
    """out, dq, dk, dv of one slice against PyTorch in the same dtype and in float64."""
    results = []
    for dtype in (inputs[0].dtype, torch.float64):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = _torch_attention(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))])
    for name, actual, same, exact in zip(names.split(), found, *results, strict=True):
        assert_as_accurate(actual, same, exact, name)


def test_attention_strides_past_2_31(
    device: torch.device, sized: Callable[[int, int], int], enough_memory: Callable[[int], None]
) -> None:
    """Two sequences that lie more than 2^31 elements apart in one buffer: little arithmetic, large offsets."""
    distance = sized(2**31 + 4096, 65536)
    enough_memory(2 * distance + (1 << 30))
    buffer = torch.empty(distance + 3 * 32768, dtype=BF16, device=device)
    shape, strides = (2, 70, 2, 64), (distance, 128, 64, 1)
    views = [buffer.as_strided(shape, strides, 32768 * i) for i in range(3)]
    for view in views:
        view.copy_(torch.randn(shape, device=device))
    out, lse = ops.attention_fwd.default(*_attention_args(*views), "triton")
    dout = torch.randn_like(out)
    *grads, _ = ops.attention_bwd.default(dout, *views, out, lse, *_attention_args(*views)[3:], False, False, "triton")
    _same_as_torch(tuple(views), dout, [out, *grads], "out dq dk dv")


def test_attention_dense_past_2_31(
    device: torch.device, sized: Callable[[int, int], int], enough_memory: Callable[[int], None]
) -> None:
    """Contiguous q, k, v, out and gradients of 2^31 + 2^16 elements each; the last sequence is compared."""
    batch = sized(2**15 + 1, 3)
    enough_memory(9 * 2 * batch * 2**16)
    heads = sized(64, 1)
    q, k, v = (torch.randn(batch, 16, heads, 64, dtype=BF16, device=device) for _ in range(3))
    args = _attention_args(q, k, v)
    out, lse = ops.attention_fwd.default(*args, "triton")
    dout = torch.randn_like(out)
    *grads, _ = ops.attention_bwd.default(dout, q, k, v, out, lse, *args[3:], False, False, "triton")
    last = tuple(x[-1:] for x in (q, k, v))
    _same_as_torch(last, dout[-1:], [x[-1:] for x in (out, *grads)], "out dq dk dv")


@pytest.mark.parametrize("log", [False, True])
def test_softmax_past_2_31(
    log: bool, device: torch.device, sized: Callable[[int, int], int], enough_memory: Callable[[int], None]
) -> None:
    rows, cols = sized(65537, 5), sized(32768, 130)
    enough_memory(5 * 2 * rows * cols)
    x = torch.randn(rows, cols, dtype=BF16, device=device)
    out = ops.softmax_fwd.default(x, None, None, 1.0, 0.0, log, "triton")
    dx = ops.softmax_bwd.default(x, out, None, None, 1.0, 0.0, log, "triton")
    function = F.log_softmax if log else F.softmax
    leaves = [x[-1:].detach().to(dtype).requires_grad_() for dtype in (BF16, torch.float64)]
    outs = [function(leaf, -1) for leaf in leaves]
    assert_as_accurate(out[-1:], *(o.detach() for o in outs), "out")
    dxs = [torch.autograd.grad(o, leaf, x[-1:].to(o.dtype))[0] for o, leaf in zip(outs, leaves, strict=True)]
    assert_as_accurate(dx[-1:], *dxs, "dx")


def test_cross_entropy_past_2_31(
    device: torch.device, sized: Callable[[int, int], int], enough_memory: Callable[[int], None]
) -> None:
    """BERT's vocabulary, 70,400 rows; the last rows' losses and gradients are compared."""
    rows, cols = sized(70_400, 6), sized(30_522, 133)
    enough_memory(4 * 2 * rows * cols)
    logits = torch.randn(rows, cols, dtype=BF16, device=device)
    target = torch.arange(rows, device=device) % cols
    loss, lse, total = ops.cross_entropy_fwd.default(logits, target, None, -100, 0.0, 0, "triton")
    dloss = torch.ones_like(loss)
    dlogits = ops.cross_entropy_bwd.default(dloss, logits, target, None, lse, total, -100, 0.0, 0, "triton")
    for dtype in (torch.float64,):
        leaf = logits[-4:].to(dtype).requires_grad_()
        exact = F.cross_entropy(leaf, target[-4:], reduction="none")
        assert_as_accurate(loss[-4:], exact.detach().float(), exact.detach(), "loss")
        (grad,) = torch.autograd.grad(exact.sum(), leaf)
        assert_as_accurate(dlogits[-4:], grad.to(BF16), grad, "dlogits", by="element")


@pytest.mark.parametrize("written", ["triton", "cuda"])
def test_kl_div_past_2_31(
    written: str, device: torch.device, sized: Callable[[int, int], int], enough_memory: Callable[[int], None]
) -> None:
    """Whole tiles and a rest behind 2^31 elements; the last losses and gradients are compared."""
    reason = OPS["kl_div"].reasons(torch.ones(1, device=device))[written]
    if reason is not None:
        pytest.skip(f"kl_div on {written}: {reason}")
    n = sized(2**31 + 5000, 5000)
    enough_memory(14 * n)
    x, target = (torch.randn(n, dtype=BF16, device=device) for _ in range(2))
    loss = ops.kl_div_fwd.default(x, target, 0, True, written)
    exact = F.kl_div(x[-4999:].double(), target[-4999:].double(), reduction="none", log_target=True)
    single = F.kl_div(x[-4999:].float(), target[-4999:].float(), reduction="none", log_target=True)
    assert_as_accurate(loss[-4999:], single, exact, "loss")
    del loss
    dx = ops.kl_div_bwd.default(torch.ones((), device=device), target, 2, True, BF16, written)
    exact = -target[-4999:].double().exp()
    assert_as_accurate(dx[-4999:], exact.to(BF16), exact, "dx", by="element")
