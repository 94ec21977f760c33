"""torch.nn.functional with fasttx inside: the functions of fasttx.functional, and every other name straight from torch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as _torch_functional

from .. import functional as _ours


def __getattr__(name: str) -> Any:
    if name in _ours.__all__:
        return getattr(_ours, name)
    try:
        return getattr(_torch_functional, name)
    except AttributeError:
        raise AttributeError(f"neither fasttx.functional nor torch.nn.functional has {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *_ours.__all__, *dir(_torch_functional)})
