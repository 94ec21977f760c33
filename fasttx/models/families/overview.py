"""What a patch replaces in each family, for the table of the documentation."""

from __future__ import annotations

from ..attention.role import InterfaceAttention
from ..fusions.fusion import Fusion
from ..fusions.qkv import Projections
from ..padding.encoder import Encoder
from ..plan import FAMILIES
from .family import Family

PARTS = ("padding skipped", "attention", "fused norms", "fused MLP", "joint q, k, v", "losses")


def replaced_parts() -> dict[str, set[str]]:
    """Family -> those of PARTS that are replaced in it."""
    return {family.name: _parts(family) for family in FAMILIES}


def _parts(family: Family) -> set[str]:
    fusions = family.roles(Fusion).values()
    own_attention = any(fusion.op == "attention" for fusion in fusions)  # which joins its products by itself
    replaced = (
        bool(family.roles(Encoder)),
        own_attention or bool(family.roles(InterfaceAttention)),
        any(fusion.option == "norm" for fusion in fusions),
        any(fusion.option == "mlp" for fusion in fusions),
        own_attention or bool(family.roles(Projections)),
        bool(family.heads),
    )
    return {part for part, is_replaced in zip(PARTS, replaced) if is_replaced}
