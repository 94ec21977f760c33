"""Functions: those that torch.nn.functional has, under its names and with its semantics, and those of our own."""

from __future__ import annotations

from .attention import attention_varlen, scaled_dot_product_attention
from .losses import binary_cross_entropy_with_logits, cross_entropy
from .multi_head import multi_head_attention_forward
from .normalisation import dropout_add_layer_norm, layer_norm
from .packing import repad, unpad
from .probabilities import log_softmax, softmax
from .vocabulary_loss import linear_cross_entropy

__all__ = [
    "attention_varlen",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout_add_layer_norm",
    "layer_norm",
    "linear_cross_entropy",
    "log_softmax",
    "multi_head_attention_forward",
    "repad",
    "scaled_dot_product_attention",
    "softmax",
    "unpad",
]
