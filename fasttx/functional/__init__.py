"""Functions: those that torch.nn.functional has, under its names and with its semantics, and those of our own."""

from __future__ import annotations

from .activations import gelu, linear_gelu
from .attention import attention_varlen, scaled_dot_product_attention
from .binary_losses import binary_cross_entropy_with_logits
from .divergence import kl_div
from .embedding import embedding_layer_norm
from .int8 import int8_linear
from .losses import cross_entropy
from .multi_head import multi_head_attention_forward
from .normalisation import layer_norm
from .packing import repad, unpad
from .probabilities import log_softmax, softmax
from .quantisation import (
    add_layer_norm_quantize,
    gelu_quantize,
    quantize_per_channel,
    quantize_per_token,
    quantize_static,
)
from .residual_norm import dropout_add_layer_norm
from .vocabulary_loss import linear_cross_entropy

__all__ = [
    "add_layer_norm_quantize",
    "attention_varlen",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "dropout_add_layer_norm",
    "gelu",
    "gelu_quantize",
    "embedding_layer_norm",
    "int8_linear",
    "kl_div",
    "layer_norm",
    "linear_cross_entropy",
    "linear_gelu",
    "log_softmax",
    "quantize_per_channel",
    "quantize_per_token",
    "quantize_static",
    "multi_head_attention_forward",
    "repad",
    "scaled_dot_product_attention",
    "softmax",
    "unpad",
]
