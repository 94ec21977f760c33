"""fasttx: fused attention, losses and more for Hugging Face BERT and its relatives, in one call.

Every name is imported at its first use, so that ``python -m fasttx --help`` waits for neither torch nor transformers.
``fasttx.patch(model)`` and its companions live in :mod:`fasttx.models`, which needs transformers; the rest does not.
Where transformers is imported already, ``attn_implementation="fasttx"`` is known to it from here on.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import is_patched, patch_transformers, patched, supported, unpatch, unpatch_transformers
    from .models.calibrate import calibrate
    from .models.capture.capture import capture
    from .models.diagnostics.explain import explain
    from .models.diagnostics.verify import verify
    from .models.lora import lora_on_int8
    from .models.patch import patch
    from .models.prune import prune
    from .models.quantize import dequantize, quantize
    from .models.trainer import FastTxCallback
    from .ops.backends import BackendError, backend
    from .quant import Int8Config

__version__ = "0.1.0.dev0"

_SUBPACKAGES = ("ops", "functional", "nn", "data", "quant", "models")
_WITHOUT_TRANSFORMERS = {"BackendError": "ops.backends", "backend": "ops.backends", "Int8Config": "quant"}
_FROM_MODELS = {
    **dict.fromkeys(("patch", "unpatch", "patched", "is_patched", "supported"), "patch"),
    **dict.fromkeys(("patch_transformers", "unpatch_transformers"), "global_patch"),
    **dict.fromkeys(("quantize", "dequantize"), "quantize"),
    **{name: f"diagnostics.{name}" for name in ("explain", "verify")},
    "calibrate": "calibrate",
    "capture": "capture.capture",
    "lora_on_int8": "lora",
    "prune": "prune",
    "FastTxCallback": "trainer",
}

__all__ = [
    "BackendError",
    "FastTxCallback",
    "Int8Config",
    "backend",
    "calibrate",
    "capture",
    "dequantize",
    "explain",
    "is_patched",
    "lora_on_int8",
    "patch",
    "patch_transformers",
    "patched",
    "prune",
    "quantize",
    "supported",
    "unpatch",
    "unpatch_transformers",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    home = _WITHOUT_TRANSFORMERS.get(name)
    if home is None:
        if name not in _FROM_MODELS:
            raise AttributeError(f"module 'fasttx' has no attribute {name!r}")
        try:
            import transformers  # noqa: F401
        except ImportError as error:
            raise ImportError(f"fasttx.{name} needs transformers 5 (pip install 'fasttx[hf]')") from error
        home = f"models.{_FROM_MODELS[name]}"
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_MODELS, *_SUBPACKAGES, *_WITHOUT_TRANSFORMERS})


if hasattr(sys.modules.get("transformers"), "AttentionMaskInterface"):  # transformers 4 has none, and no use for it
    importlib.import_module(".models.attention.interface", __name__)  # registers itself
