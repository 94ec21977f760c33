"""Int8 for inference: its options, and the exchange of layers; models/quantize.py chooses the layers."""

from __future__ import annotations

from .config import Int8Config
from .layers import int8_layers, put_back, replace_layers

__all__ = ["Int8Config", "int8_layers", "put_back", "replace_layers"]
