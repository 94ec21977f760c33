"""Classes of transformers': what they are matched by, and the one that a patched module's ``__class__`` is set to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .transformers_names import register_outputs


def has_own_forward(module: nn.Module) -> bool:
    """Whether `module` itself has another forward than its class. transformers 5.0 puts the class's own on an instance,
    after a call that asked for attentions or hidden states.
    """
    own = module.__dict__.get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def key_of(cls: type) -> tuple[str, str]:
    """What a class of transformers' is matched by: its modelling module and its name."""
    return cls.__module__, cls.__name__


def without_fsdp(cls: type) -> type:
    """The class under the one that fully_shard puts on top (FSDP<name>)."""
    if cls.__name__.startswith("FSDP") and any(base.__name__ == "FSDPModule" for base in cls.__bases__):
        return next(base for base in cls.__bases__ if base.__name__ != "FSDPModule")
    return cls


def original_of(cls: type) -> type:
    """transformers' own class under those that a patch has made of it."""
    original: type = cls.__dict__.get("_fasttx_original", cls)
    return original


def become(module: nn.Module, cls: type) -> None:
    """Sets the class; a forward of the old one that stands on the instance would hide the new one's."""
    if "forward" in module.__dict__ and not has_own_forward(module):
        del module.__dict__["forward"]
    module.__class__ = cls


def subclass_of(original: type, replacement: Callable[..., Any], module: str, method: str = "forward") -> type:
    """A subclass of transformers' class with another method, which :func:`fasttx.unpatch` can take back.

    Args:
        original: the class; the new one has its name (config.architectures, pipelines, Trainer and FSDP go by it).
            It may be such a subclass itself, where several parts of one module are replaced.
        replacement: wraps the original's method, whose signature it shows. On an instance that carries no patch it must
            do what the original does: such instances are left where a copy was made and unpatched by other means.
        module: where pickle finds the class, as an attribute of the original's name.
        method: the name of the method.
    """
    made = type(original)(
        original.__name__,
        (original,),
        {
            "__module__": module,
            "__qualname__": original.__name__,
            "__doc__": original.__doc__,
            method: replacement,
            "_fasttx_original": original_of(original),
        },
    )
    register_outputs(made)
    return made
