"""torch.nn with fasttx inside: fasttx modules under torch's names, and every other name straight from torch.nn.

Replace ``import torch.nn as nn`` by ``import fasttx.nn as nn``; nothing else changes. torch.nn's submodules are
attributes here (``nn.utils.clip_grad_norm_``). To import from one, name torch: ``from torch.nn.utils import ...``.
"""

from __future__ import annotations

from typing import Any

import torch.nn as _torch_nn

from . import functional
from .distillation import DistillationLoss, HiddenStateLoss
from .embedding import EmbeddingLayerNorm
from .gelu import GELU, LinearGELU
from .int8 import Int8Linear
from .layer_norm import DropoutAddLayerNorm, LayerNorm
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, KLDivLoss, LinearCrossEntropyLoss
from .multi_head import MultiheadAttention
from .softmax import LogSoftmax, Softmax
from .transformer import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "DistillationLoss",
    "DropoutAddLayerNorm",
    "GELU",
    "EmbeddingLayerNorm",
    "HiddenStateLoss",
    "Int8Linear",
    "KLDivLoss",
    "LayerNorm",
    "LinearCrossEntropyLoss",
    "LinearGELU",
    "LogSoftmax",
    "MultiheadAttention",
    "Softmax",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "functional",
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_nn, name)
    except AttributeError:
        raise AttributeError(f"neither fasttx.nn nor torch.nn has {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_nn)})
