"""Patching every model that transformers loads from now on: off unless asked for, and undone exactly."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from transformers import PreTrainedModel

from .options import Options
from .patch import patch

_original: Any = None  # the classmethod object that is given back
_wrapper: Any = None


def patch_transformers(**options: Any) -> None:
    """Patch every model that ``from_pretrained`` returns from now on, in this process.

    ``PreTrainedModel.from_pretrained`` is wrapped; Auto classes, pipelines and sentence-transformers all end there.
    Models of families that fasttx does not know load as before. A second call changes the options.

    Args:
        **options: arguments of :func:`fasttx.patch`.

    Raises:
        ValueError, TypeError: an option is not allowed; ``strict=True`` never is, as models of other families load too.
    """
    global _original, _wrapper
    if options.get("strict"):
        raise ValueError("strict: got True; allowed is False, as models of other families are to load too")
    Options(**options)
    if _original is None:
        _original = PreTrainedModel.__dict__["from_pretrained"]
    load = _original.__func__

    @functools.wraps(load)
    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        result = load(cls, *args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fasttx.patch replaced (nothing|only)")
            patch(model, **options)
        return result

    _wrapper = classmethod(from_pretrained)
    PreTrainedModel.from_pretrained = _wrapper


def unpatch_transformers() -> None:
    """Undo :func:`patch_transformers`. Models loaded meanwhile stay patched.

    Raises:
        ValueError: patch_transformers was not called, or something else has replaced from_pretrained since.
    """
    global _original, _wrapper
    if _original is None:
        raise ValueError("unpatch_transformers: patch_transformers() is not in force")
    if PreTrainedModel.__dict__["from_pretrained"] is not _wrapper:
        raise ValueError("unpatch_transformers: PreTrainedModel.from_pretrained was replaced since; undo that first")
    PreTrainedModel.from_pretrained = _original
    _original = _wrapper = None
