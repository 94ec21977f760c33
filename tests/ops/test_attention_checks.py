"""What the attention op refuses: each error names the argument, what was given and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.test_attention_op import make

from fasttx.ops.attention.checks import check_bwd, check_fwd

POSITION = dict(zip(
    ("q", "k", "v", "attn_bias", "seqused_k", "cu_seqlens_q", "cu_seqlens_k", "rng_state", "max_seqlen_q",
    "max_seqlen_k",
     "softmax_scale", "dropout_p", "window_left", "window_right"), range(14), strict=True,
))  # fmt: skip
I32 = torch.int32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.randn(2, 19, 4, 16).double()}, "q's dtype"),
        ({"q": torch.randn(2, 19, 64)}, "q's shape"),
        ({"k": torch.randn(2, 23, 4, 16).half()}, "k's dtype"),
        ({"v": torch.randn(2, 23, 4, 16, device="meta")}, "v's device"),
        ({"k": torch.randn(2, 23, 4, 8)}, "head_dim"),
        ({"k": torch.randn(3, 23, 4, 16), "v": torch.randn(3, 23, 4, 16)}, "k's batch"),
        ({"k": torch.randn(2, 23, 3, 16), "v": torch.randn(2, 23, 3, 16)}, "num_heads"),
        ({"v": torch.randn(2, 22, 4, 16)}, "v's shape"),
        ({"q": torch.randn(2, 19, 16, 4).transpose(2, 3)}, "q's strides"),
        ({"attn_bias": torch.zeros(2, 1, 19, 23, dtype=torch.int64)}, "attn_bias's dtype"),
        ({"attn_bias": torch.zeros(19, 23)}, "attn_bias's shape"),
        ({"attn_bias": torch.zeros(2, 2, 19, 23)}, "attn_bias's shape"),
        ({"attn_bias": torch.zeros(1, 1, 1, 1, device="meta")}, "attn_bias's device"),
        ({"seqused_k": torch.tensor([3, 4])}, "seqused_k"),
        ({"seqused_k": torch.tensor([3], dtype=I32)}, "seqused_k"),
        ({"seqused_k": torch.tensor([3, 24], dtype=I32)}, "seqused_k: got 3 to 24"),
        ({"seqused_k": torch.tensor([-1, 2], dtype=I32)}, "seqused_k"),
        ({"cu_seqlens_q": torch.tensor([0, 19], dtype=I32)}, "cu_seqlens_k"),
        ({"max_seqlen_q": 20}, "max_seqlen"),
        ({"dropout_p": 1.0}, "dropout_p"),
        ({"dropout_p": float("nan")}, "dropout_p"),
        ({"dropout_p": 0.1}, "rng_state"),
        ({"rng_state": torch.tensor([1, 2])}, "rng_state"),
        ({"rng_state": torch.tensor([1.0, 2.0]), "dropout_p": 0.1}, "rng_state"),
        ({"rng_state": torch.tensor([1, 2, 3]), "dropout_p": 0.1}, "rng_state"),
        ({"softmax_scale": float("inf")}, "softmax_scale"),
        ({"window_left": -2}, "window"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_errors_name_the_argument(changes: dict[str, Any], message: str) -> None:
    args = list(make())
    for name, value in changes.items():
        args[POSITION[name]] = value
    with pytest.raises(ValueError, match=message):
        check_fwd(*args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cu_seqlens_q": torch.tensor([0, 7, 19])}, "cu_seqlens_q"),
        ({"cu_seqlens_q": torch.tensor([], dtype=I32)}, "cu_seqlens_q"),
        ({"cu_seqlens_k": torch.tensor([0, 23], dtype=I32)}, "cu_seqlens_k"),
        ({"cu_seqlens_q": torch.tensor([0, 9, 7, 19], dtype=I32)}, "cu_seqlens_q"),
        ({"cu_seqlens_q": torch.tensor([1, 7, 7, 19], dtype=I32)}, "cu_seqlens_q"),
        ({"cu_seqlens_k": torch.tensor([0, 9, 12, 24], dtype=I32)}, "cu_seqlens_k"),
        ({"max_seqlen_q": 11}, "max_seqlen_q"),
        ({"max_seqlen_k": -1}, "max_seqlen"),
        ({"seqused_k": torch.tensor([1, 1, 1], dtype=I32)}, "seqused_k"),
        ({"q": torch.randn(1, 19, 4, 16)}, "q's shape"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else None,
)
def test_errors_of_packed_calls(changes: dict[str, Any], message: str) -> None:
    args = list(make(varlen=True))
    for name, value in changes.items():
        args[POSITION[name]] = value
    with pytest.raises(ValueError, match=message):
        check_fwd(*args)


def test_errors_of_backward() -> None:
    args = make()
    out, lse = torch.ops.fasttx.attention_fwd(*args, "torch")
    check_bwd(out, *args[:3], out, lse, *args[3:], False, False)
    for wrong, message in (
        ((out[:1], out, lse), "dout"),
        ((out, out.half(), lse), "out"),
        ((out, out.transpose(1, 2).contiguous().transpose(1, 2), lse), "out's strides"),
        ((out, out, lse.double()), "softmax_lse"),
        ((out, out, lse[:, :, :-1]), "softmax_lse"),
        ((out, out, lse.transpose(1, 2).contiguous().transpose(1, 2)), "softmax_lse's strides"),
    ):
        with pytest.raises(ValueError, match=message):
            check_bwd(wrong[0], *args[:3], *wrong[1:], *args[3:], False, False)
    for bias, given in ((None, "None"), (torch.ones(1, 1, 1, 23) > 0, "torch.bool")):
        with pytest.raises(
            ValueError, match=f"needs_dbias: got True with attn_bias {given}; allowed is True only with"
        ):
            check_bwd(out, *args[:3], out, lse, bias, *args[4:], False, True)
