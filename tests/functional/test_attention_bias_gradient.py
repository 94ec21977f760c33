"""The gradient of an additive bias in the functions: padded and packed, alone, twice, compiled, cast, checkpointed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fasttx
from fasttx.functional.attention import autograd
from fasttx.functional.attention.layouts import attention_padded
from fasttx.nn.functional import attention_varlen, scaled_dot_product_attention
from fasttx.ops.registry import LAUNCHES
from fasttx.testing import assert_as_accurate

LENGTHS = (9, 4, 1)
BATCH, HEADS, SIZE, DIM = len(LENGTHS), 2, max(LENGTHS), 8
SHAPES = [(1, HEADS, SIZE, SIZE), (BATCH, HEADS, SIZE, SIZE), (1, 1, SIZE, SIZE), (BATCH, 1, 1, SIZE)]


def starts(device: torch.device) -> Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)


def inputs_of(layout: str, shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """q, k, v and a bias."""
    lead = (sum(LENGTHS),) if layout == "packed" else (BATCH, SIZE)
    sizes = [(*lead, HEADS, DIM)] * 3 + [shape]
    return [torch.randn(*size, device=device).requires_grad_() for size in sizes]


def ours(layout: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, **options: Any) -> Tensor:
    if layout == "packed":
        cu = starts(q.device)
        return attention_varlen(q, k, v, cu, cu, SIZE, SIZE, attn_bias=bias, **options)
    if layout == "padded":
        return attention_padded(q, k, v, attn_bias=bias, **options)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, bias, **options).transpose(1, 2)


def dense(layout: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The formula, a sequence at a time."""
    outs, bias = [], bias.expand(BATCH, HEADS, SIZE, SIZE)
    for b in range(BATCH):
        at: Any = slice(sum(LENGTHS[:b]), sum(LENGTHS[: b + 1])) if layout == "packed" else b
        n = LENGTHS[b] if layout == "packed" else SIZE
        s = torch.einsum("ihd,jhd->hij", q[at], k[at]) * DIM**-0.5 + bias[b, :, :n, :n]
        outs.append(torch.einsum("hij,jhd->ihd", s.softmax(-1), v[at]))
    return torch.cat(outs) if layout == "packed" else torch.stack(outs)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out)
    return torch.autograd.grad(out, inputs, dout)


@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["packed", "padded", "drop-in"])
def test_against_float64(layout: str, shape: tuple[int, ...], backend: str, device: torch.device) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is not installed")
    inputs = inputs_of(layout, shape, device)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    want = gradients(dense(layout, *wide), wide)
    plain = gradients(dense(layout, *inputs), inputs)
    with fasttx.backend(backend):
        got = gradients(ours(layout, *inputs), inputs)
    for name, x, same, exact in zip(("dq", "dk", "dv", "dbias"), got, plain, want, strict=True):
        assert_as_accurate(x, same, exact, name, least=1.0)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_of_the_bias_alone(layout: str) -> None:
    inputs = inputs_of(layout, SHAPES[0], torch.device("cpu"))
    (want,) = gradients(dense(layout, *inputs), inputs[3:])
    q, k, v = (x.detach() for x in inputs[:3])
    with fasttx.backend("torch"):
        (got,) = gradients(ours(layout, q, k, v, inputs[3]), inputs[3:])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_none_is_computed_where_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(*arguments: Any) -> Any:
        asked.append(arguments[-2])
        found = torch.ops.fasttx.attention_bwd(*arguments)
        assert (found[3].numel() > 0) == arguments[-2]
        return found

    monkeypatch.setattr(autograd, "_bwd", recorded)
    q, k, v, bias = inputs_of("packed", SHAPES[0], torch.device("cpu"))
    for given in (bias, bias.detach(), None):
        ours("packed", q, k, v, given).sum().backward()  # type: ignore[arg-type]
    assert asked == [True, False, False]


def test_a_view_a_strided_and_a_repeated_bias() -> None:
    """Autograd hands the gradient on to what the bias is made of."""
    q, k, v, _ = inputs_of("packed", SHAPES[0], torch.device("cpu"))
    table = torch.randn(SIZE, SIZE, HEADS, requires_grad=True)
    for bias in (table.permute(2, 0, 1)[None], table.permute(2, 0, 1)[None].expand(BATCH, -1, -1, -1)):
        (want,) = gradients(dense("packed", q, k, v, bias), [table])
        (got,) = gradients(ours("packed", q, k, v, bias), [table])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded", "drop-in"])
def test_twice(layout: str) -> None:
    """create_graph=True: of the gradient of the bias too."""
    inputs = inputs_of(layout, SHAPES[0], torch.device("cpu"))
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found = []
    for call, x in ((ours, inputs), (dense, wide)):
        with fasttx.backend("torch"):
            first = torch.autograd.grad(call(layout, *x).square().sum(), x, create_graph=True)
            found.append((*first, *torch.autograd.grad(sum(g.square().sum() for g in first), x)))  # type: ignore[arg-type]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-4)


def test_in_torch_func() -> None:
    q, k, v, bias = (x.detach() for x in inputs_of("packed", SHAPES[0], torch.device("cpu")))

    def loss(b: Tensor) -> Tensor:
        return ours("packed", q, k, v, b).square().sum()

    bias.requires_grad_()
    (want,) = torch.autograd.grad(loss(bias), bias)
    torch.testing.assert_close(torch.func.grad(loss)(bias.detach()), want, rtol=1e-4, atol=1e-5)
    several = torch.stack([bias.detach(), 2 * bias.detach()])
    found = torch.func.vmap(torch.func.grad(loss))(several)
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_under_autocast_it_keeps_the_dtype_of_the_bias(layout: str) -> None:
    inputs = inputs_of(layout, SHAPES[0], torch.device("cpu"))
    (want,) = gradients(dense(layout, *inputs), inputs[3:])
    with fasttx.backend("torch"), torch.autocast("cpu", torch.bfloat16):
        out = ours(layout, *inputs)
    (got,) = gradients(out, inputs[3:])
    assert out.dtype == torch.bfloat16 and got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_checkpointed_with_dropout(layout: str) -> None:
    inputs, found = inputs_of(layout, SHAPES[0], torch.device("cpu")), []
    with fasttx.backend("torch"):
        for call in (ours, lambda *x, **y: checkpoint(ours, *x, use_reentrant=False, **y)):
            torch.manual_seed(5)
            found.append(gradients(call(layout, *inputs, dropout_p=0.3), inputs))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_bitwise_the_same_where_gradients_have_to_be(device: torch.device) -> None:
    inputs = inputs_of("packed", SHAPES[0], device)
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (gradients(ours("packed", *inputs), inputs) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_compiled(layout: str) -> None:
    """One graph, with a backward of its own."""
    inputs = inputs_of(layout, SHAPES[0], torch.device("cpu"))
    with fasttx.backend("torch"):
        want = gradients(ours(layout, *inputs), inputs)
        compiled = torch.compile(lambda *x: ours(layout, *x), fullgraph=True, backend="aot_eager")
        before = LAUNCHES["attention_bwd", "torch"]
        got = gradients(compiled(*inputs), inputs)
    assert LAUNCHES["attention_bwd", "torch"] == before + 1
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y)
