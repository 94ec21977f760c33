"""What a call of attention asks for besides q, k and v: one type, from the operators' schemas up to the models."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gradients(NamedTuple):
    """What ``fasttx::attention_bwd`` returns; dbias has no element where nobody asked for it."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dbias: Tensor


def has_dbias(attn_bias: Tensor | None) -> bool:
    """Whether a bias can have a gradient: numbers that are added to the scores, not a bool mask."""
    return attn_bias is not None and attn_bias.is_floating_point()


class AttentionCall(NamedTuple):
    """The arguments that ``fasttx::attention_fwd`` and ``attention_bwd`` share, in their order; shapes: docs/design.md.

    ``torch.ops.fasttx.attention_fwd(q, k, v, *call, backend)`` is how an operator gets them.
    """

    attn_bias: Tensor | None = None
    seqused_k: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    rng_state: Tensor | None = None
    max_seqlen_q: int = 0
    max_seqlen_k: int = 0
    softmax_scale: float = 1.0
    dropout_p: float = 0.0
    window_left: int = -1
    window_right: int = -1

    @property
    def starts(self) -> tuple[Tensor, Tensor] | None:
        """Where packed sequences start, in q and in k; None for a padded batch."""
        if self.cu_seqlens_q is None or self.cu_seqlens_k is None:
            return None
        return self.cu_seqlens_q, self.cu_seqlens_k

    @property
    def causal(self) -> bool:
        """Whether the window is nothing but causal."""
        return self.window_left < 0 and self.window_right == 0
