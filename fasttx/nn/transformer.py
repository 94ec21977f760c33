"""TransformerEncoderLayer and TransformerEncoder: torch.nn's classes on the attention and layer norm of fasttx."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from ..functional._dropout_add_layer_norm import dropout_add_layer_norm
from ..functional._multi_head_attention import same_kind
from ..functional._packing import repad, unpad
from ..functional._routing import refuse_if_forced, unsupported_reason
from ..functional.attention.sdpa import attention_varlen
from ..ops.checks import values_are_known
from .bypass import bypass_reason
from .layer_norm import LayerNorm
from .multi_head import SMALL_REASON, MultiheadAttention, every_row_sees, may_be_fused

_TorchLayer = torch.nn.TransformerEncoderLayer
_SMALL = 1_000_000
"""Scores of a call below which torch's fused forward of evaluation is as fast or faster on a CPU."""
_SMALL_MASKED = 200_000
"""The same with a mask, which that forward writes out for each head."""
_SMALL_BATCH = 65_536
"""Elements of an encoder's input below which torch's NestedTensors are as fast as packing on a CPU."""


def _bool_or_floating(*masks: Tensor | None) -> bool:
    return all(m is None or m.dtype == torch.bool or m.is_floating_point() for m in masks)


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """torch.nn.TransformerEncoderLayer on fasttx kernels.

    Attention is :class:`MultiheadAttention`, the norms are :class:`LayerNorm`. Without norm_first, dropout, sum and
    norm after attention and after the feed-forward part are one :func:`fasttx.functional.dropout_add_layer_norm`.

    Arguments, initial values and state dictionaries are those of torch's class. In evaluation torch computes the layer
    by one operator. That operator runs here for NestedTensors, and on a CPU for small calls, only.
    """

    _fasttx_original = torch.nn.TransformerEncoderLayer

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = torch_functional.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            batch_first,
            norm_first,
            bias,
            device,
            dtype,
        )
        # not built a second time, which would draw other initial values
        self.self_attn.__class__ = MultiheadAttention
        self.norm1.__class__ = self.norm2.__class__ = LayerNorm

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        reason = self._why_torch(src, src_mask, src_key_padding_mask)
        if reason is not None:
            out = super().forward(src, src_mask, src_key_padding_mask, is_causal)
            refuse_if_forced("TransformerEncoderLayer", reason, src)
            return out
        names = ("src_key_padding_mask", "src_mask")
        hidden, mask = same_kind(src_key_padding_mask, src_mask, src.dtype, names)

        def attend(x: Tensor) -> Tensor:
            return self.self_attn(
                x, x, x, attn_mask=mask, key_padding_mask=hidden, need_weights=False, is_causal=is_causal
            )[0]

        return self._with(attend, src)

    def _why_torch(self, src: Tensor, src_mask: Tensor | None, src_key_padding_mask: Tensor | None) -> str | None:
        """Why torch's own forward takes this call, a wrong one included; it calls our modules within."""
        if not isinstance(src, Tensor):
            return "src is no Tensor"
        reason = unsupported_reason(src, src_mask, src_key_padding_mask)
        if reason is not None:
            return reason
        if not isinstance(self.self_attn, MultiheadAttention):
            return "self_attn is not fasttx.nn's"
        kind = type(self)
        if kind._sa_block is not _TorchLayer._sa_block or kind._ff_block is not _TorchLayer._ff_block:
            return "a subclass has a block of its own"
        if not all(
            m is None or m.dtype == torch.bool or m.is_floating_point() for m in (src_mask, src_key_padding_mask)
        ):
            return "a mask is neither bool nor floating"
        if src.dim() == 3 and self.self_attn.batch_first and may_be_fused(self, src, self.linear1.weight):
            heads, (batch, rows, _) = self.self_attn.num_heads, src.shape
            bound = _SMALL if src_mask is None and src_key_padding_mask is None else _SMALL_MASKED
            if batch * heads * rows * rows < bound and every_row_sees(src, src_key_padding_mask, src_mask, heads):
                return SMALL_REASON
        return None

    def _with(self, attend: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The layer around its attention; rows are independent of each other in all else."""
        if self.norm_first:
            x = x + self.dropout1(attend(self.norm1(x)))
            return x + self._ff_block(self.norm2(x))
        x = _add_norm(self.norm1, self.dropout1, attend(x), x)
        y = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return _add_norm(self.norm2, self.dropout2, y, x)

    def packed(self, x: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
        """The layer without dropout on packed tokens (total, width): what :class:`TransformerEncoder` calls."""
        attention = self.self_attn
        heads, width = attention.num_heads, attention.embed_dim

        def attend(x: Tensor) -> Tensor:
            qkv = torch_functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
            q, k, v = qkv.unflatten(-1, (3, heads, width // heads)).unbind(1)
            out = attention_varlen(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
            return torch_functional.linear(out.flatten(1), attention.out_proj.weight, attention.out_proj.bias)

        return self._with(attend, x)


def _add_norm(norm: Any, dropout: Any, x: Tensor, residual: Tensor) -> Tensor:
    """norm(residual + dropout(x)), in one where both are what they were made as."""
    if (
        bypass_reason(norm, "norm", source=LayerNorm.__module__, cls="LayerNorm") is None
        and bypass_reason(dropout, "dropout", cls="Dropout") is None
        and 0.0 <= dropout.p < 1.0
        and len(norm.normalized_shape) == 1
        and unsupported_reason(x, residual, norm.weight, norm.bias) is None
    ):
        return dropout_add_layer_norm(
            x, residual, norm.weight, norm.bias, dropout_p=dropout.p, eps=norm.eps, training=dropout.training
        )
    return norm(residual + dropout(x))


class TransformerEncoder(torch.nn.TransformerEncoder):
    """torch.nn.TransformerEncoder that packs padded batches, and hands its layers bool masks as they are.

    Arguments and state dictionaries are those of torch's class. The layers do the work, so make it of
    :class:`TransformerEncoderLayer`. In evaluation torch drops padding on the right by NestedTensors, and returns zeros
    there. This class does the same by packing the real tokens; the host waits for their number, as torch's does. Small
    calls on a CPU run torch's own forward.
    """

    _fasttx_original = torch.nn.TransformerEncoder

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        reason = self._why_torch(src, mask, src_key_padding_mask)
        if reason is not None:
            out = super().forward(src, mask, src_key_padding_mask, is_causal)
            refuse_if_forced("TransformerEncoder", reason, src)
            return out
        if self._packs(src, mask, src_key_padding_mask):
            x, indices, cu_seqlens, longest = unpad(src, ~src_key_padding_mask)  # type: ignore[operator]
            for layer in self.layers:
                x = layer.packed(x, cu_seqlens, longest)
            x = repad(x, indices, src.shape[0], src.shape[1])
        else:
            x, hidden = src, src_key_padding_mask
            hidden, mask = same_kind(hidden, mask, src.dtype, ("src_key_padding_mask", "mask"))
            if is_causal is None:
                is_causal = _is_causal_mask(mask)
            for layer in self.layers:
                x = layer(x, src_mask=mask, is_causal=is_causal, src_key_padding_mask=hidden)
        return x if self.norm is None else self.norm(x)

    def _why_torch(self, src: Tensor, mask: Tensor | None, src_key_padding_mask: Tensor | None) -> str | None:
        """Why torch's own forward takes this call, a wrong one included; it calls our layers within."""
        if not isinstance(src, Tensor):
            return "src is no Tensor"
        reason = unsupported_reason(src, mask, src_key_padding_mask)
        if reason is not None:
            return reason
        if not (len(self.layers) and all(isinstance(layer, TransformerEncoderLayer) for layer in self.layers)):
            return "a layer is not fasttx.nn's"
        if not _bool_or_floating(mask, src_key_padding_mask):
            return "a mask is neither bool nor floating"
        bools = src_key_padding_mask is None or src_key_padding_mask.dtype == torch.bool  # torch packs by numbers, too
        if bools and src.numel() < _SMALL_BATCH and may_be_fused(self, src, self.layers[0].linear1.weight):
            return SMALL_REASON
        return None

    def _packs(self, src: Tensor, mask: Tensor | None, src_key_padding_mask: Tensor | None) -> bool:
        """Whether torch would make a NestedTensor: evaluation, no gradient, and a bool mask of padding on the right."""
        if (
            src_key_padding_mask is None
            or src_key_padding_mask.dtype != torch.bool
            or mask is not None
            or src.dim() != 3
            or src_key_padding_mask.shape != src.shape[:2]
            or not getattr(self, "use_nested_tensor", False)
            or not torch.backends.mha.get_fastpath_enabled()
            or torch.is_autocast_enabled(src.device.type)
            or not values_are_known(src_key_padding_mask)
        ):
            return False
        first = self.layers[0]
        tensors = (src, *first.parameters())
        if first.training or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return False
        blocks = (TransformerEncoderLayer.forward, _TorchLayer._sa_block, _TorchLayer._ff_block)
        for layer in self.layers:
            kind = type(layer)
            own = (kind.forward, kind._sa_block, kind._ff_block)
            if own != blocks or layer.norm_first or not layer.self_attn._qkv_same_embed_dim:
                return False
            if bypass_reason(layer, "layer", source=kind.__module__) or bypass_reason(
                layer.self_attn, "self_attn", source=MultiheadAttention.__module__
            ):
                return False
        return not bool((src_key_padding_mask[:, :-1] & ~src_key_padding_mask[:, 1:]).any())


def _is_causal_mask(mask: Tensor | None) -> bool:
    """Whether the mask hides exactly what is right of the diagonal; False while a graph is made. Reads its values."""
    if mask is None or mask.dim() != 2 or mask.shape[0] != mask.shape[1] or not values_are_known(mask):
        return False
    future = torch.ones(mask.shape, dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:
        return bool((mask == future).all())
    return bool((mask == torch.zeros_like(mask).masked_fill(future, -math.inf)).all())
