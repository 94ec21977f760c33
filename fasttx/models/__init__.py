"""Transformers models on fasttx; importing this package registers ``attn_implementation="fasttx"``."""

from __future__ import annotations

from .attention.interface import fasttx_attention, fasttx_mask
from .global_patch import patch_transformers, unpatch_transformers
from .patch import is_patched, patched, supported, unpatch
from .report import Report, Row

__all__ = [
    "Report",
    "Row",
    "fasttx_attention",
    "fasttx_mask",
    "is_patched",
    "patch_transformers",
    "patched",
    "supported",
    "unpatch",
    "unpatch_transformers",
]
