"""What a family of models is to the patch engine: names of transformers' classes, as data.

The engine matches modules by (module, name) of their class, so that none of transformers' modelling files is imported
before a model of that family exists.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .embeddings import EMBEDDINGS
from .head_class import replacement_class
from .mlm_head import BERT_HEAD, VocabularyHead
from .mlp import LINEAR_GELU
from .padding_free import Forwards, padding_free_class
from .part import Part
from .qkv import joint_qkv_class
from .residual_norm import RESIDUAL_NORM


@dataclass(frozen=True)
class Family:
    """One family of transformers models.

    Attributes:
        name: as people write it.
        model_type: ``config.model_type``.
        source: transformers' modelling module.
        attention: classes that call transformers' attention interface; the first one is self-attention.
        heads: class with a loss of its own -> kind of loss, a key of :data:`fasttx.models.heads.KINDS`.
        bare: the model without a head.
        encoder: the stack of layers, ``.layer``.
        layer: one of them.
        vocabulary: the parts of a head over the vocabulary.
        parts: class of the embeddings or of a module within a layer -> what takes its place.
    """

    name: str
    model_type: str
    source: str
    attention: tuple[str, ...]
    heads: Mapping[str, str] = field(hash=False)
    bare: str
    encoder: str
    layer: str
    vocabulary: VocabularyHead
    parts: Mapping[str, Part] = field(hash=False)

    def forwards(self) -> Forwards:
        """transformers' own forwards of the parts of a layer."""
        source = importlib.import_module(self.source)
        names = (self.layer, self.layer.removesuffix("Layer") + "Attention", self.attention[0])
        return Forwards(*(getattr(source, name).forward for name in names))


def bert_like(
    name: str,
    model_type: str,
    prefix: str,
    source: str,
    heads: Mapping[str, str],
    vocabulary: VocabularyHead = BERT_HEAD,
) -> Family:
    """A family whose layers are BERT's under another name; `heads` is keyed by the class name without `prefix`."""
    return Family(
        name=name,
        model_type=model_type,
        source=source,
        attention=(f"{prefix}SelfAttention", f"{prefix}CrossAttention"),
        heads={prefix + suffix: kind for suffix, kind in heads.items()},
        bare=f"{prefix}Model",
        encoder=f"{prefix}Encoder",
        layer=f"{prefix}Layer",
        vocabulary=vocabulary,
        parts={
            f"{prefix}Embeddings": EMBEDDINGS,
            f"{prefix}SelfOutput": RESIDUAL_NORM,
            f"{prefix}Intermediate": LINEAR_GELU,
            f"{prefix}Output": RESIDUAL_NORM,
        },
    )


def replacements(module: str, *families: Family) -> Callable[[str], type]:
    """A module ``__getattr__`` that makes the patched class of a head or another module when first asked for.

    The class becomes an attribute of `module` under transformers' own class name: this is where pickle finds it.
    """

    def lookup(attribute: str) -> type:
        for family in families:
            kind, part = family.heads.get(attribute), family.parts.get(attribute)
            if kind is None and part is None and attribute not in (family.encoder, family.attention[0]):
                continue
            source = importlib.import_module(family.source)
            original = getattr(source, attribute)
            if kind is not None:
                made = replacement_class(original, kind, module, family.vocabulary)
            elif part is not None:
                made = part.replace(original, module)
            elif attribute == family.attention[0]:
                made = joint_qkv_class(original, module)
            else:
                made = padding_free_class(original, family.forwards(), module)
            setattr(sys.modules[module], attribute, made)
            return made
        raise AttributeError(f"module {module!r} has no attribute {attribute!r}")

    return lookup
