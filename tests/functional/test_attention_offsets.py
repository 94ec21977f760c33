"""Offsets within a tile are 32-bit in the kernels: token strides that they could pass are refused, or copied away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttx.functional.attention import autograd as attention_autograd
from fasttx.functional.attention.autograd import run_attention
from fasttx.ops.attention.call import AttentionCall
from fasttx.ops.attention.op import LARGEST_BLOCK, MAX_HEAD_DIM, MAX_TOKEN_STRIDE, supports


def strided(stride: int, *shape: int) -> Tensor:
    """(batch, tokens, heads, head_dim) or (tokens, heads, head_dim) on "meta", with this stride of the tokens."""
    inner = (shape[-1], 1)
    outer = (stride * shape[-3],) if len(shape) == 4 else ()
    return torch.empty_strided(shape, (*outer, stride, *inner), device="meta")


def test_the_largest_block_is_the_tables() -> None:
    from fasttx.kernels import attention_config as table

    tiles = [*table.TABLE.values(), *table.TABLE_MASKED.values(), *table.TABLE_FP32.values()]
    tiles += [tile for others in table.OTHER_TILES.values() for tile in others]
    assert max(max(t.block_m, t.block_n) for t in tiles) == LARGEST_BLOCK
    first, next_one = (LARGEST_BLOCK * stride + MAX_HEAD_DIM for stride in (MAX_TOKEN_STRIDE, MAX_TOKEN_STRIDE + 1))
    assert first <= 2**31 < next_one


@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("shape", [(2, 300, 4, 64), (300, 4, 64)], ids=["padded", "packed"])
def test_a_token_stride_beyond_32_bits_is_refused(shape: tuple[int, ...], which: str) -> None:
    good = strided(MAX_TOKEN_STRIDE, *shape)
    assert supports(good, good, good) is None
    bad = strided(MAX_TOKEN_STRIDE + 1, *shape)
    reason = supports(*(bad if name == which else good for name in "qkv"))
    assert reason is not None and f"{which}'s token stride" in reason and str(MAX_TOKEN_STRIDE + 1) in reason
    one = (*shape[:-3], 1, *shape[-2:])  # the stride of a single token is never used
    assert supports(*(strided(2**33, *one) if name == which else good for name in "qkv")) is None


def test_so_are_heads_that_make_the_output_that_wide() -> None:
    q = torch.empty(1, 300, (MAX_TOKEN_STRIDE // 64) + 1, 64, device="meta")
    assert "token stride" in (supports(q, q, q) or "")


def test_gradients_and_masks_are_copied_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backend is chosen by them."""
    seen: dict[str, Tensor] = {}
    original = attention_autograd._bwd

    def spy(dout: Tensor, *args: Tensor) -> object:
        seen["dout"], seen["bias"] = dout, args[5]
        return original(dout, *args)

    monkeypatch.setattr(attention_autograd, "_bwd", spy)
    q = torch.empty(1, 300, 2, 8, device="meta", requires_grad=True)
    bias = torch.empty_strided((1, 1, 300, 300), (2**40, 2**40, MAX_TOKEN_STRIDE + 1, 1), device="meta")
    call = AttentionCall(max_seqlen_q=300, max_seqlen_k=300, softmax_scale=0.3)
    out = run_attention(q, q, q, call._replace(attn_bias=bias), backend="torch")
    torch.autograd.grad(out, q, strided(MAX_TOKEN_STRIDE + 1, 1, 300, 2, 8))
    assert seen["dout"].is_contiguous() and seen["bias"].is_contiguous()
    torch.autograd.grad(run_attention(q, q, q, call, backend="torch"), q, strided(24, 1, 300, 2, 8))
    assert seen["dout"].stride(1) == 24
