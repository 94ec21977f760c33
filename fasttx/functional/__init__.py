"""Functions with torch.nn.functional's names and semantics, and functions that only fasttx has."""

from __future__ import annotations

from ._binary_cross_entropy import binary_cross_entropy_with_logits
from ._cross_entropy import cross_entropy
from ._distillation import distillation_loss, hidden_state_loss
from ._dropout_add_layer_norm import dropout_add_layer_norm
from ._embedding_layer_norm import embedding_layer_norm
from ._gelu import gelu, linear_gelu
from ._int8_linear import int8_linear
from ._kl_div import kl_div
from ._layer_norm import layer_norm
from ._linear_cross_entropy import linear_cross_entropy
from ._multi_head_attention import multi_head_attention_forward
from ._packing import repad, unpad
from ._quantize import add_layer_norm_quantize, gelu_quantize, quantize_per_channel, quantize_per_token, quantize_static
from ._softmax import log_softmax, softmax
from .attention import flash_registry
from .attention.sdpa import attention_varlen, scaled_dot_product_attention

__all__ = [
    "add_layer_norm_quantize",
    "attention_varlen",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "distillation_loss",
    "dropout_add_layer_norm",
    "gelu",
    "gelu_quantize",
    "embedding_layer_norm",
    "hidden_state_loss",
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

flash_registry.register()
