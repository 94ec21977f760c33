"""Where no kernel can run, torch's fused attention does the work instead of our composition of operators.

A tensor on "meta" stands for one on a device other than a CPU: whether a kernel exists there is what is replaced.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

import fasttx
from fasttx.functional import scaled_dot_product_attention
from fasttx.functional.attention import routes as attention_routes
from fasttx.functional.attention import torch_fn
from fasttx.functional.attention.layouts import attention_padded
from fasttx.functional.attention.torch_fn import call_torch
from fasttx.ops import registry
from fasttx.ops.attention.call import AttentionCall
from fasttx.ops.attention.op import ATTENTION


def _padded(q: Tensor) -> Tensor:
    return attention_padded(q, q, q, attn_bias=torch.ones(2, 1, 1, 9, dtype=torch.bool, device=q.device))


def _drop_in(q: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, q, q)


@pytest.fixture(params=[None, "needs compute capability 80, the device has 75"], ids=["kernel", "no-kernel"])
def reason(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the registry says about the device."""
    monkeypatch.setattr(registry, "cannot_run_on", lambda *a: request.param)
    monkeypatch.setattr(registry, "_kernels", {})
    return request.param


def _ops_of(function: Callable[..., Tensor], q: Tensor, mode: str) -> set[str]:
    """Which of the two ran: "fasttx" or "torch"."""
    found: set[str] = set()

    def look(name: str) -> None:
        if "attention_fwd" in name or "AttentionFunction" in name:
            found.add("fasttx")
        elif "scaled_dot_product_attention" in name:
            found.add("torch")

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        for node in graph.graph.nodes:
            if node.op == "call_function":
                look(str(node.target))
        return graph.forward

    if mode != "eager":
        torch._dynamo.reset()
        torch.compile(function, backend=backend, fullgraph=True, dynamic=mode == "dynamic")(q)
    else:

        class Look(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None):
                look(str(func))
                return func(*args, **(kwargs or {}))  # type: ignore[operator]

        with Look():
            function(q)
    return found


@pytest.mark.parametrize("mode", ["eager", "static", "dynamic"])
@pytest.mark.parametrize("function", [_padded, _drop_in])
def test_torch_attention_runs_where_no_kernel_can(
    function: Callable[..., Tensor], mode: str, reason: str | None
) -> None:
    q = torch.empty(2, 9, 4, 16, device="meta")
    assert _ops_of(function, q, mode) == {"fasttx" if reason is None else "torch"}
    with fasttx.backend("torch"):  # forced: the op, in its composition
        assert _ops_of(function, q, mode) == {"fasttx"}
    wide = torch.empty(2, 9, 4, 264, device="meta")
    assert _ops_of(function, wide, mode) == {"torch"}


def test_deterministic_gradients_are_not_left_to_torch(reason: str | None) -> None:
    q = torch.empty(2, 9, 4, 16, device="meta")
    assert _ops_of(lambda x: attention_padded(x, x, x, deterministic=True), q, "eager") == {"fasttx"}


def test_a_wrong_call_is_refused_all_the_same() -> None:
    q = torch.empty(2, 9, 4, 16, device="meta")
    with pytest.raises(ValueError, match="attention: attn_bias's shape: got"):
        attention_padded(q, q, q, attn_bias=torch.ones(2, 1, 3, 4, dtype=torch.bool, device="meta"))
    with pytest.raises(ValueError, match="attention: dropout_p: got 1.5"):
        attention_padded(q, q, q, dropout_p=1.5)


def test_the_reason_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "needs compute capability 80, the device has 61"
    monkeypatch.setattr(registry, "cannot_run_on", lambda *a: why)
    monkeypatch.setattr(registry, "_warned", set())
    q = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16, shape=(2, 9, 4, 16), stride=lambda i: 64)
    with pytest.warns(UserWarning, match=f"attention runs as PyTorch's own operators on cuda:0 .triton: {why}"):
        assert not attention_routes.has_kernel(q, q, q)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not attention_routes.has_kernel(q, q, q)  # type: ignore[arg-type]
        assert ATTENTION.choice("auto", q, q, q) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("mask", ["none", "keys", "rows", "additive", "seqused"])
def test_the_form_of_torch_gives_what_the_op_gives(mask: str, window: tuple[int, int]) -> None:
    """Also where torch's own kernel gives NaN to a row without keys, in its output or in a gradient."""
    inputs = [torch.randn(2, n, 4, 16, requires_grad=True) for n in (9, 11, 11)]
    keys = torch.arange(11) < torch.tensor([11, 0])[:, None]
    rows = torch.rand(2, 1, 9, 11) > 0.4
    rows[0, 0, 3] = False
    bias = {
        "keys": keys[:, None, None],
        "rows": rows,
        "additive": torch.zeros(rows.shape).masked_fill(~rows, float("-inf")),
    }.get(mask)
    used = torch.tensor([11, 0], dtype=torch.int32) if mask == "seqused" else None
    dout = torch.randn(2, 9, 4, 16)
    results = []
    for out in (
        call_torch(
            *inputs,
            AttentionCall(
                attn_bias=bias, seqused_k=used, softmax_scale=0.25, window_left=window[0], window_right=window[1]
            ),
        ),
        attention_padded(*inputs, attn_bias=bias, seqused_k=used, window=window, softmax_scale=0.25, backend="torch"),
    ):
        results.append((out, *torch.autograd.grad(out, inputs, dout)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_rows_without_keys_do_not_rely_on_the_kernel_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On MPS, and in some kernels of CUDA, torch's function gives NaN for them."""

    def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *args: object, scale: float, **kwargs: object) -> Tensor:
        s = q @ k.transpose(-1, -2) * scale
        s = s.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else s + mask
        return s.softmax(-1) @ v

    monkeypatch.setattr(torch_fn, "torch_attention", naive)
    q = torch.randn(2, 5, 2, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    for bias in (mask, torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))):
        out = call_torch(q, q, q, AttentionCall(attn_bias=bias, softmax_scale=0.3))
        assert not out[1].any() and out[0].all()
        (dq,) = torch.autograd.grad(out.sum(), q)
        assert not dq[1].any() and dq.isfinite().all()
