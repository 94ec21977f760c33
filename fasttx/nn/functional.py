"""torch.nn.functional with fasttx inside: fasttx.functional's functions, and every other name straight from torch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as _torch_functional

from .. import functional as _fasttx_functional
from ..functional import *  # noqa: F403

__all__ = list(_fasttx_functional.__all__)


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_functional, name)
    except AttributeError:
        raise AttributeError(f"neither fasttx.functional nor torch.nn.functional has {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch_functional)})
