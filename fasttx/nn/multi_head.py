"""MultiheadAttention: torch.nn's class on the attention of fasttx."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional._multi_head_attention import multi_head, one_mask
from ..functional._multi_head_call import Projections, Wants, why_torch_multi_head
from ..functional._routing import refuse_if_forced
from ..ops.backends import forced_backend
from ..ops.checks import values_are_known

_SMALL = 32_768
"""Elements of query below which torch's fused forward of evaluation is faster on a CPU: it is one operator there."""
SMALL_REASON = "torch's one operator for evaluation is faster for a small call on a CPU"


def may_be_fused(module: torch.nn.Module, x: Tensor, parameter: Tensor) -> bool:
    """Whether torch may take its forward of evaluation, on a CPU, with no backend forced."""
    if module.training or x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if forced_backend() != "auto" or not values_are_known(x):
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or parameter.requires_grad))


def every_row_sees(x: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None, heads: int) -> bool:
    """Whether the masks do nothing but hide, and leave each row of x a key: only then torch's fused forward is right.

    It takes every number but 0 in a mask for -inf, and makes NaN of a row without a key, for which torch's other
    forward and ours give zeros.  Reads the masks' values. True, too, of masks of a wrong shape, which torch refuses.
    """
    batch, rows, _ = x.shape
    if key_padding_mask is not None and key_padding_mask.shape != (batch, rows):
        return True
    if attn_mask is not None and attn_mask.shape not in ((rows, rows), (batch * heads, rows, rows)):
        return True
    hidden: list[Tensor | None] = []
    for mask in (key_padding_mask, attn_mask):
        if mask is not None and mask.dtype != torch.bool:
            hides = mask == -math.inf
            if not bool((hides | (mask == 0)).all()):
                return False
            mask = hides
        hidden.append(mask)
    merged = one_mask(hidden[0], hidden[1], batch, heads)
    return merged is None or not bool(merged.all(-1).any())


class MultiheadAttention(torch.nn.MultiheadAttention):
    """torch.nn.MultiheadAttention on fasttx kernels; see :func:`fasttx.functional.multi_head_attention_forward`.

    Arguments, parameters and state dictionaries are those of torch's class. need_weights=True, torch's default, writes
    the weights to memory: pass False where you do not use them. In evaluation torch computes self-attention by one
    operator. That operator runs here for small calls on a CPU and for NestedTensors only.
    """

    _fasttx_original = torch.nn.MultiheadAttention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if self._qkv_same_embed_dim:
            weights: tuple[Tensor | None, ...] = (self.in_proj_weight,)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        out = self.out_proj
        p = Projections(weights, self.in_proj_bias, self.bias_k, self.bias_v, out.weight, out.bias)
        wants = Wants(
            self.num_heads,
            self.add_zero_attn,
            self.dropout if self.training else 0.0,
            need_weights,
            average_attn_weights,
            is_causal,
            self.batch_first,
        )
        reason = why_torch_multi_head(query, key, value, key_padding_mask, attn_mask, p, wants)
        if reason is None and query.shape[-1] != self.embed_dim:
            reason = "query is not as wide as embed_dim"
        if (
            reason is None
            and query is key
            and self.batch_first
            and query.dim() == 3
            and query.numel() < _SMALL
            and may_be_fused(self, query, out.weight)
            and every_row_sees(query, key_padding_mask, attn_mask, self.num_heads)
        ):
            reason = SMALL_REASON
        if reason is None:
            return multi_head(query, key, value, key_padding_mask, attn_mask, p, wants)
        found = super().forward(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )
        refuse_if_forced("MultiheadAttention", reason, query)
        return found
