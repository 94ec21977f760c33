"""PyTorch's registry of flash attention: its own functions run the op while "fasttx" is active, and not before."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import attention as torch_attention

import fasttx
from fasttx.functional import attention_varlen
from fasttx.functional.attention import flash_registry
from fasttx.testing import assert_as_accurate

if not hasattr(torch_attention, "register_flash_attention_impl"):
    pytest.skip("this PyTorch has no registry of flash attention", allow_module_level=True)
from torch.nn.attention.varlen import varlen_attn

LENGTHS = (5, 0, 12, 1)
SDPA = torch.ops.aten._scaled_dot_product_flash_attention
FLASH = torch.ops.aten._flash_attention_forward
GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on


def _starts(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def _inputs(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def _math(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """(batch, heads, tokens, head_dim) by products and a softmax; zeros in rows that see no key."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if seen is None:
        return scores.softmax(-1) @ v
    return scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0) @ v


def _same(got: Tensor, want: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    dout = torch.randn_like(want)
    for dx, wanted in zip(torch.autograd.grad(got, inputs, dout), torch.autograd.grad(want, inputs, dout), strict=True):
        torch.testing.assert_close(dx, wanted, rtol=5e-5, atol=5e-5)


@pytest.fixture
def active() -> Iterator[None]:
    torch_attention.activate_flash_attention_impl(flash_registry.NAME)
    yield
    torch_attention.restore_flash_attention_impl(_raise_warn=False)


def test_importing_registers_and_activates_nothing() -> None:
    program = """
import torch, warnings
warnings.simplefilter("error")
import fasttx.nn
from torch.nn import attention
assert "fasttx" in attention.list_flash_attention_impls()
assert attention.current_flash_attention_impl() is None
for _ in range(3):
    attention.activate_flash_attention_impl("fasttx")
    assert attention.current_flash_attention_impl() == "fasttx"
    attention.restore_flash_attention_impl()
assert attention.current_flash_attention_impl() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_it_ends() -> None:
    q, k, v = _inputs(*[(6, 2, 8)] * 3)
    starts = _starts(2, 4)
    for _ in range(2):
        torch_attention.activate_flash_attention_impl(flash_registry.NAME)
        varlen_attn(q, k, v, starts, starts, 4, 4)
        torch_attention.restore_flash_attention_impl()
        with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
            varlen_attn(q, k, v, starts, starts, 4, 4)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (3, 2)], ids=str)
def test_varlen_attn(active: None, window: tuple[int, int], backend: str) -> None:
    inputs = _inputs((sum(LENGTHS), 4, 16), *[(sum(LENGTHS), 2 if GROUPED else 4, 16)] * 2)
    starts, longest = _starts(*LENGTHS), max(LENGTHS)
    with fasttx.backend(backend):
        got, lse = varlen_attn(
            *inputs,
            starts,
            starts,
            longest,
            longest,
            window_size=window,
            **({"enable_gqa": True} if GROUPED else {}),
            return_aux=torch.nn.attention.varlen.AuxRequest(lse=True),
        )
        want, wanted_lse = attention_varlen(
            *inputs, starts, starts, longest, longest, window_size=window, return_lse=True
        )
        _same(got, want, inputs)
        torch.testing.assert_close(lse, wanted_lse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_accuracy_of_the_dense_operator(active: None, dtype: torch.dtype) -> None:
    inputs = _inputs(*[(2, 3, 17, 32)] * 3, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    out, same_dtype, ref64 = SDPA(*inputs)[0], _math(*inputs), _math(*exact)
    assert_as_accurate(out, same_dtype, ref64)
    dout = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, dout)
    torchs = torch.autograd.grad(same_dtype, inputs, dout)
    wanted = torch.autograd.grad(ref64, exact, dout.double())
    for name, dx, dx_torch, dx_ref64 in zip(("dq", "dk", "dv"), found, torchs, wanted, strict=True):
        assert_as_accurate(dx, dx_torch, dx_ref64, name)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_operator_in_torchs_layout(active: None, causal: bool) -> None:
    inputs = _inputs(*[(2, 3, 9, 16)] * 3)
    out, lse, *_ = SDPA(*inputs, 0.0, causal)
    seen = torch.ones(9, 9, dtype=torch.bool).tril() if causal else None
    _same(out, _math(*inputs, seen), inputs)
    scores = inputs[0] @ inputs[1].transpose(-1, -2) / 4.0
    torch.testing.assert_close(lse, (scores if seen is None else scores.masked_fill(~seen, -torch.inf)).logsumexp(-1))


@pytest.mark.parametrize("rows, keys", [(4, 9), (9, 4), (7, 7)])
@pytest.mark.parametrize("window", [(-1, 0), (2, 1), (-1, -1)], ids=str)
def test_windows_of_a_dense_call_end_at_the_last_key(
    active: None, rows: int, keys: int, window: tuple[int, int]
) -> None:
    q, k, v = inputs = _inputs((2, rows, 3, 8), *[(2, keys, 3, 8)] * 2)
    left, right = window
    out, lse, *rest = FLASH(
        q, k, v, None, None, rows, keys, 0.0, False, False, window_size_left=left, window_size_right=right
    )
    i, j = torch.arange(rows)[:, None] + keys - rows, torch.arange(keys)
    seen = ((left < 0) | (j >= i - left)) & ((right < 0) | (j <= i + right))
    want = _math(*(x.transpose(1, 2) for x in inputs), seen).transpose(1, 2)
    torch.testing.assert_close(out, want, rtol=2e-5, atol=2e-5)
    dout = torch.randn_like(want)
    gradients = torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse, None, None, rows, keys, 0.0, False, rest[0], rest[1],
        window_size_left=left, window_size_right=right,
    )  # fmt: skip
    for dx, wanted in zip(gradients, torch.autograd.grad(want, inputs, dout), strict=True):
        torch.testing.assert_close(dx, wanted, rtol=5e-5, atol=5e-5)


def test_dropout_is_drawn_once_for_both_directions(active: None) -> None:
    q, k, v = inputs = _inputs(*[(2, 2, 8, 16)] * 3)
    one, again = (SDPA(q, k, torch.ones_like(v), 0.5)[0] for _ in range(2))
    assert not torch.equal(one, again)
    torch.manual_seed(3)
    out = SDPA(*inputs, 0.5)[0]
    dq, dk, dv = torch.autograd.grad(out.sum(), inputs)
    for x, dx in ((v, dv), (q, dq), (k, dk)):  # out is linear in v; of q and k a finite difference
        step = torch.randn_like(x)
        values = []
        for sign in (1.0, -1.0):
            torch.manual_seed(3)
            moved = [y + sign * 0.01 * step if y is x else y for y in inputs]
            values.append(SDPA(*moved, 0.5)[0].double().sum())
        torch.testing.assert_close(
            ((values[0] - values[1]) / 0.02).item(), (dx * step).double().sum().item(), rtol=2e-2, atol=2e-2
        )


def test_the_form_that_writes_in_place(active: None) -> None:
    write = getattr(torch.ops.aten, "_flash_attention_forward_no_dropout_inplace", None)
    if write is None:
        pytest.skip("this PyTorch has no such operator")
    with torch.no_grad():
        q, k, v = (x.detach() for x in _inputs(*[(6, 2, 8)] * 3))
        starts, out = _starts(2, 4), torch.empty(6, 2, 8)
        lse = write(out, q, k, v, starts, starts, 4, 4, 0.0, False, False)
        want, wanted_lse = attention_varlen(q, k, v, starts, starts, 4, 4, return_lse=True)
    assert torch.equal(out, want)
    assert torch.equal(lse, wanted_lse)


@pytest.mark.filterwarnings("ignore")
def test_under_compile_without_a_break(active: None) -> None:
    inputs = _inputs(*[(sum(LENGTHS), 2, 16)] * 3)
    starts = _starts(*LENGTHS)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return varlen_attn(q, k, v, starts, starts, 12, 12)

    _same(torch.compile(call, fullgraph=True, backend="aot_eager")(*inputs), call(*inputs), inputs)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"return_debug_mask": True}, "return_debug_mask: got True; allowed is False"),
        ({"seqused_k": torch.ones(2, dtype=torch.int32)}, r"seqused_k: got a tensor of shape \(2,\); allowed is None"),
        ({"alibi_slopes": torch.ones(2)}, r"alibi_slopes: got a tensor of shape \(2,\); allowed is None"),
    ],
)
def test_options_that_the_op_lacks_are_refused(active: None, options: dict[str, Any], message: str) -> None:
    q, k, v = _inputs(*[(6, 2, 8)] * 3)
    starts = _starts(2, 4)
    debug = options.pop("return_debug_mask", False)
    with pytest.raises(NotImplementedError, match=message):
        FLASH(q, k, v, starts, starts, 4, 4, 0.0, False, debug, **options)
