"""Attention that transformers looks up by its config: a patch gives the module a config that names fasttx's."""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from torch import nn

from ..report import expected_backend
from ..role import Found, Role
from .interface import IMPLEMENTATION
from .masks import calls_the_interface


def otherwise_built(module: nn.Module) -> str | None:
    """Why transformers' attention interface does not reach a module in this version of it, or None."""
    if "config" in module.__dict__ and calls_the_interface(module.config):
        return None
    return f"transformers {transformers.__version__} builds it otherwise than the versions that fasttx knows"


@dataclass(frozen=True)
class InterfaceAttention(Role):
    """A module that calls transformers' attention interface. Its class stays; its config is exchanged."""

    option = "attention"

    def before_in(self, module: nn.Module) -> str:
        return type(module).__name__

    def plan(self, found: Found) -> bool:
        module = found.module
        otherwise = otherwise_built(module)
        if otherwise is not None:
            found.leave(self.before_in(module), otherwise)
            return False
        now = module.config._attn_implementation
        if module.config.output_attentions and now in ("eager", None):
            # transformers refuses to save or validate a config with output_attentions under any other implementation
            reason = (
                "config.output_attentions is set, for which transformers demands eager; pass it to the call instead"
            )
            found.leave(f"attention: {now}", reason)
            return False
        found.attention.append(module)
        backend = expected_backend("attention", found.options.backend, module)
        found.replace(f"attention: {now}", f"attention: {IMPLEMENTATION}", backend, "", ops=("attention",))
        return False
