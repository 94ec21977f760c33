"""Transformers models on fasttx; importing this package registers ``attn_implementation="fasttx"``, and with
``from_pretrained`` what reads int8 models that ``save_pretrained`` wrote.
"""

from __future__ import annotations

from . import saved_int8 as saved_int8  # registers itself
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
