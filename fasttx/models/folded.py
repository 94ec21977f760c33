"""Factors of smoothed int8 layers in the weight of the norm before them, where nothing else reads that norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..nn.bypass import bypass_reason
from ..nn.int8 import Int8Linear
from .linears import class_of
from .plan import FAMILIES
from .subclass import key_of

NORMS = {(family.source, family.layer): family.norms for family in FAMILIES if family.norms}


def fold_factors(root: nn.Module, made: Mapping[nn.Module, Int8Linear], undo: ExitStack) -> None:
    """Multiply norms by the factors of the int8 layers that are to take the place of their readers, and drop these.

    .. math:: (\\hat x \\circ \\gamma + \\beta) \\circ f = \\hat x \\circ (\\gamma f) + \\beta f

    Factors are powers of two: what the layers read is the same to the bit. A norm stays as it is where not all that
    reads it becomes int8 with one factor, where it has no weight, where it is not plain (hooks, a class of its own), or
    where it stands at several places of the model. It gets new parameters: the old ones may be others' too.

    Args:
        undo: gets what gives the norms their parameters back, before they change.
    """
    places = Counter(id(module) for _, module in root.named_modules(remove_duplicate=False))
    for layer in root.modules():
        for path, readers in NORMS.get(key_of(class_of(layer)), {}).items():
            norm, linears = _at(layer, path), [_at(layer, reader) for reader in readers]
            int8 = [made[linear] for linear in linears if linear in made]
            factor = int8[0].input_factor if int8 else None
            if factor is None or len(int8) < len(linears) or bypass_reason(norm, path, cls="LayerNorm") is not None:
                continue
            same = all(each.input_factor is not None and torch.equal(each.input_factor, factor) for each in int8)
            if norm.weight is None or not same or places[id(norm)] > 1:
                continue
            undo.callback(norm._parameters.update, dict(norm._parameters))
            for name, parameter in norm._parameters.items():
                if parameter is not None:
                    product = parameter.detach() * factor.to(parameter)
                    norm._parameters[name] = nn.Parameter(product, requires_grad=parameter.requires_grad)
            for each in int8:
                each.input_factor = None


def _at(layer: nn.Module, path: str) -> Any:
    """The module at a path, or None: an old transformers may call it otherwise."""
    module: Any = layer
    for name in path.split("."):
        module = getattr(module, "_modules", {}).get(name)
    return module
