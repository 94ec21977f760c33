"""The table of ops: importing this package fills it. One folder an op; ``OPS`` holds the rows by name."""

from __future__ import annotations

from .add_layer_norm_quantize.op import ADD_LAYER_NORM_QUANTIZE
from .attention.op import ATTENTION
from .bias_gelu.op import BIAS_GELU
from .bias_gelu_quantize.op import BIAS_GELU_QUANTIZE
from .binary_cross_entropy.op import BINARY_CROSS_ENTROPY
from .cross_entropy.op import CROSS_ENTROPY
from .dropout_add_layer_norm.op import DROPOUT_ADD_LAYER_NORM
from .embedding_layer_norm.op import EMBEDDING_LAYER_NORM
from .int8_linear.op import INT8_LINEAR
from .kl_div.op import KL_DIV
from .linear_cross_entropy.op import LINEAR_CROSS_ENTROPY
from .quantize_per_token.op import QUANTIZE_PER_TOKEN
from .registry import OPS
from .softmax.op import SOFTMAX

for _name in sorted(OPS):  # one row may have imported another
    OPS[_name] = OPS.pop(_name)

__all__ = [
    "OPS",
    "ADD_LAYER_NORM_QUANTIZE",
    "ATTENTION",
    "BIAS_GELU",
    "BIAS_GELU_QUANTIZE",
    "BINARY_CROSS_ENTROPY",
    "CROSS_ENTROPY",
    "DROPOUT_ADD_LAYER_NORM",
    "EMBEDDING_LAYER_NORM",
    "INT8_LINEAR",
    "KL_DIV",
    "LINEAR_CROSS_ENTROPY",
    "QUANTIZE_PER_TOKEN",
    "SOFTMAX",
]
