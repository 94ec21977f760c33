"""What changes a model changes all of it, or leaves it as it was: whatever error or interrupt comes in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def all_or_nothing(root: nn.Module, change: Callable[[], T]) -> T:
    """Returns ``change()``. If that fails, each module gets back its class, attributes, children and config.

    Tensors are not copied: what is written into a parameter stays written. `change` should end with its last effect.
    """
    modules = [(module, type(module), _contents(module)) for module in root.modules()]
    configs = [
        module.__dict__["config"] for module, _, _ in modules if hasattr(module.__dict__.get("config"), "__dict__")
    ]
    settings = [(config, dict(vars(config))) for config in configs]
    try:
        return change()
    except BaseException:
        for module, cls, contents in modules:
            module.__class__ = cls
            for own, before in contents:
                own.clear()
                own.update(before)
        for config, before in settings:
            vars(config).clear()
            vars(config).update(before)
        raise


def _contents(module: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """The dictionaries of a module that a patch, a quantisation or a mask changes, with a copy of each."""
    state = module.__dict__
    within = (state[name] for name in ("_modules", "_load_state_dict_post_hooks") if name in state)  # not if traced
    return [(own, dict(own)) for own in (state, *within)]
