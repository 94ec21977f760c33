"""What a family of models is to the patch engine: names of transformers' classes, and the roles of each, as data.

The engine matches modules by (module, name) of their class, so that none of transformers' modelling files is imported
before a model of that family exists.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ..attention.role import InterfaceAttention
from ..capture.parts import BERT_LAYER
from ..dropout import Layer
from ..fusions.embeddings import EMBEDDINGS
from ..fusions.fusion import Fusion
from ..fusions.mlp import LINEAR_GELU
from ..fusions.qkv import Projections
from ..fusions.residual_norm import RESIDUAL_NORM
from ..heads.role import Head, OtherHead, heads
from ..heads.vocabulary import BERT_HEAD, VocabularyHead
from ..padding.encoder import Encoder
from ..padding.model import Model
from ..role import Role

R = TypeVar("R", bound=Role)


@dataclass(frozen=True)
class Family:
    """One family of transformers models.

    Attributes:
        name: as people write it.
        model_type: ``config.model_type``.
        source: transformers' modelling module.
        bare: the model without a head.
        layer: one layer of its encoder.
        classes: class -> its roles, in the order of the report's rows. A class without any is known all the same: its
            models are of this family.
        norms: of a layer, the path of a norm -> those of all that reads it, linear layers alone. Where the residual
            takes what a norm gives, as in every post-norm layer, it is not here.
    """

    name: str
    model_type: str
    source: str
    bare: str
    layer: str
    classes: Mapping[str, tuple[Role, ...]] = field(hash=False)
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def roles(self, kind: type[R]) -> dict[str, R]:
        """Class -> its role of this kind, where it has one."""
        return {name: role for name, roles in self.classes.items() for role in roles if isinstance(role, kind)}

    @property
    def heads(self) -> dict[str, str]:
        """Class with a loss of its own -> its kind, a key of :data:`fasttx.models.heads.kinds.KINDS`."""
        return {name: head.kind for name, head in self.roles(Head).items()}

    @property
    def other_heads(self) -> dict[str, str | None]:
        """Class of a head whose loss stays transformers' -> why; None if it has no loss."""
        return {name: head.reason for name, head in self.roles(OtherHead).items()}

    @property
    def replaces_attention(self) -> bool:
        """Whether its attention is fasttx's where it is patched."""
        fusions = self.roles(Fusion).values()
        return bool(self.roles(InterfaceAttention)) or any(fusion.op == "attention" for fusion in fusions)


def bert_like(
    name: str,
    model_type: str,
    prefix: str,
    source: str,
    kinds: Mapping[str, str],
    vocabulary: VocabularyHead = BERT_HEAD,
) -> Family:
    """A family whose layers are BERT's under another name; `kinds` of heads go by the class without `prefix`."""
    parts = {
        "Model": (Model(),),
        "Embeddings": (EMBEDDINGS,),
        "Encoder": (
            Encoder(
                {
                    "layer.*": f"{prefix}Layer",
                    "layer.*.attention": f"{prefix}Attention",
                    "layer.*.attention.self": f"{prefix}SelfAttention",
                },
                parts=BERT_LAYER,
            ),
        ),
        "Layer": (Layer(),),
        "SelfAttention": (InterfaceAttention(), Projections()),
        "CrossAttention": (InterfaceAttention(),),
        "SelfOutput": (RESIDUAL_NORM,),
        "Intermediate": (LINEAR_GELU,),
        "Output": (RESIDUAL_NORM,),
    }
    classes: dict[str, tuple[Role, ...]] = {prefix + part: roles for part, roles in parts.items()}
    classes |= heads(kinds, prefix, vocabulary=vocabulary)
    return Family(name, model_type, source, bare=f"{prefix}Model", layer=f"{prefix}Layer", classes=classes)


def replacements(module: str, *families: Family) -> Callable[[str], type]:
    """A module ``__getattr__`` that makes the patched class of a head or another module when first asked for.

    The class becomes an attribute of `module` under transformers' own class name: this is where pickle finds it.
    """

    def lookup(attribute: str) -> type:
        for family in families:
            roles = family.classes.get(attribute, ())
            if not any(role.makes_class for role in roles):
                continue
            made: type = getattr(importlib.import_module(family.source), attribute)
            for role in roles:
                made = role.make_class(made, module)
            setattr(sys.modules[module], attribute, made)
            return made
        raise AttributeError(f"module {module!r} has no attribute {attribute!r}")

    return lookup
