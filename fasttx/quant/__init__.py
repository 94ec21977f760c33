"""Int8 for inference: how it is asked for, and the exchange of layers. ``fasttx.quantize`` (models/int8.py) chooses."""

from __future__ import annotations

from .config import Int8Config
from .exchange import int8_layers, put_back, replace_layers

__all__ = ["Int8Config", "int8_layers", "put_back", "replace_layers"]
