"""PyTorch's own attention on the device, by the kernels of this package: the registry of flash attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

import fasttx
import fasttx.functional as F
from fasttx.functional.attention.flash_registry import NAME

pytestmark = pytest.mark.skipif(
    not hasattr(torch_attention, "register_flash_attention_impl"), reason="this PyTorch has no registry"
)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0) -> Tensor:
    if q.device.type != "cuda":  # where PyTorch's function takes another operator
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p)[0]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_scaled_dot_product_attention_has_the_bits_of_ours(device: torch.device, dropout_p: float) -> None:
    q, k, v = (torch.randn(2, 3, 70, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    torch_attention.activate_flash_attention_impl(NAME)
    try:
        results = []
        for function in (_sdpa, F.scaled_dot_product_attention):
            torch.manual_seed(0)
            with fasttx.backend("triton"):
                out = function(q, k, v, dropout_p=dropout_p)
                results.append((out, *torch.autograd.grad(out.float().sum(), (q, k, v))))
    finally:
        torch_attention.restore_flash_attention_impl()
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=0.0)
