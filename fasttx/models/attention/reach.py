"""Whether ``set_attn_implementation`` would make a model's attention fasttx's, found out without touching the model."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .interface import IMPLEMENTATION

REGISTRY = "ALL_ATTENTION_FUNCTIONS"
"""What transformers' modelling files call the registry that an attention looks its function up in."""


def _skeleton(module: nn.Module, memo: dict[int, Any]) -> Any:
    """A tree of the same classes with configs of its own; all else is shared, and nothing is computed on it."""
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    if "config" in module.__dict__:
        made.__dict__["config"] = copy.deepcopy(module.__dict__["config"], memo)
    children = module._modules.items()
    made.__dict__["_modules"] = {name: child if child is None else _skeleton(child, memo) for name, child in children}
    return made


def _looks_up(module: nn.Module) -> bool:
    """Whether the forward of a module looks its attention up in the registry, by its own config."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and REGISTRY in code.co_names and "config" in module.__dict__


def how_to_set(model: PreTrainedModel, name: str = "") -> str:
    """How the attention of a model of no known family becomes fasttx's, as the end of a sentence about it.

    Args:
        model: the model.
        name: where it is in the model that the user has; "" is that model itself.
    """
    typed = "model" if not name else f"model.{name}"
    if not all(part.isidentifier() for part in typed.split(".")):  # "0.auto_model"
        typed = f"model.get_submodule({name!r})"
    if not any(_looks_up(module) for module in model.modules()):
        return "is its own, and not looked up in transformers' registry"
    if model._can_set_attn_implementation():
        trial = _skeleton(model, {})
        trial.set_attn_implementation(IMPLEMENTATION)
        reached = [module.config._attn_implementation for module in trial.modules() if _looks_up(module)]
        if IMPLEMENTATION in reached:
            return f"alone can be fasttx's: {typed}.set_attn_implementation({IMPLEMENTATION!r})"
    return (
        f"is not reached by {typed}.set_attn_implementation, as its parts have configs of their own; load the model "
        f"with attn_implementation={IMPLEMENTATION!r}"
    )
