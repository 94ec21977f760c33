"""The linear layers of encoders, of which ``fasttx.quantize`` and ``fasttx.prune`` choose.

The layers of an encoder hold most of the weights and nearly all of the products, and their errors average out over
tokens and layers. What stands outside (embeddings, poolers, heads) stays as it is: few rows, or errors that go straight
into the result.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..nn.int8 import Int8Linear
from .plan import FAMILIES
from .subclass import key_of, original_of, without_fsdp

LAYERS = frozenset((family.source, family.layer) for family in FAMILIES)
"""Classes of the layers of encoders."""
OWN = ("transformers.", "torch.nn.modules.")
"""Where classes come from that call their linear layers as they are."""


def class_of(module: nn.Module) -> type:
    """transformers' class of a module that may be patched or wrapped."""
    return original_of(without_fsdp(type(module)))


@dataclass(frozen=True)
class Candidate:
    """A linear layer, in float or int8.

    Attributes:
        name: within the model.
        layer: it.
        inside: the modules around it, from the layer of the encoder inwards; [] outside of any.
        skipped: the pattern that names it, or None.
    """

    name: str
    layer: Any
    inside: list[nn.Module]
    skipped: str | None

    @property
    def before(self) -> str:
        """What it is, for a report."""
        return f"{type(self.layer).__name__}({self.layer.in_features}, {self.layer.out_features})"

    @property
    def asked_reason(self) -> str | None:
        """Why it stays as it is whatever it looks like, or None."""
        if not self.inside:
            return "is outside of encoder layers: poolers and heads have few rows, and their errors reach the result"
        return None if self.skipped is None else f"skip names it: {self.skipped!r}"

    @property
    def foreign_reason(self) -> str | None:
        """Why what holds it may use it in another way, or None."""
        for module in self.inside:
            if not class_of(module).__module__.startswith(OWN):
                return f"is part of a {type(module).__module__}.{type(module).__name__}"
        return None


def candidates(root: nn.Module, skip: tuple[str, ...]) -> list[Candidate]:
    """Every linear layer of `root`.

    Args:
        skip: names to leave alone, with a shell's wildcards.

    Raises:
        ValueError: `root` has no encoder layer of a known family, or a pattern of `skip` matches no layer.
    """
    if not any(key_of(class_of(module)) in LAYERS for module in root.modules()):
        names = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"model: got {type(root).__name__}, without an encoder layer; allowed are those of {names}")
    found, unused = [], set(skip)
    for name, module in root.named_modules():
        if not isinstance(module, (nn.Linear, Int8Linear)):
            continue
        named_by = {pattern for pattern in skip if fnmatch.fnmatchcase(name, pattern)}
        unused -= named_by
        found.append(Candidate(name, module, _around(root, name), min(named_by, default=None)))
    if unused:
        raise ValueError(
            f"skip: got {sorted(unused)}; allowed are patterns that match a linear layer of {type(root).__name__}"
        )
    return found


def _around(root: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold the one of that name, from the innermost layer of an encoder inwards; [] outside of any."""
    parts = name.split(".")
    above = [root.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    starts = [i for i, module in enumerate(above) if key_of(class_of(module)) in LAYERS]
    return above[starts[-1] :] if starts else []
