"""fasttx: fused attention, losses and more for Hugging Face BERT and its relatives, in one call."""

from __future__ import annotations

from .ops.registry import BackendError, backend

__version__ = "0.1.0.dev0"
__all__ = ["BackendError", "backend"]
