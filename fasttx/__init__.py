"""fasttx: fused attention, losses and more for Hugging Face BERT and its relatives, in one call.

``fasttx.patch(model)`` and its companions live in :mod:`fasttx.models` and are imported at first use, because they need
transformers; the rest of the package does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .ops.registry import BackendError, backend

if TYPE_CHECKING:
    from .models import is_patched, patch_transformers, patched, supported, unpatch, unpatch_transformers
    from .models.patch import patch

__version__ = "0.1.0.dev0"

_SUBPACKAGES = ("functional", "nn", "data", "models")
_FROM_MODELS = ("patch", "unpatch", "patched", "is_patched", "supported", "patch_transformers", "unpatch_transformers")

__all__ = [
    "BackendError",
    "backend",
    "is_patched",
    "patch",
    "patch_transformers",
    "patched",
    "supported",
    "unpatch",
    "unpatch_transformers",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _FROM_MODELS:
        raise AttributeError(f"module 'fasttx' has no attribute {name!r}")
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(f"fasttx.{name} needs transformers 5 (pip install 'fasttx[hf]')") from error
    from .models import global_patch, patch

    value = getattr(global_patch if name.endswith("_transformers") else patch, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_MODELS, *_SUBPACKAGES})
