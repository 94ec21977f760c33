"""What a family of models is to the patch engine: names of transformers' classes, as data.

The engine matches modules by (module, name) of their class, so that none of transformers' modelling files is imported
before a model of that family exists.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..fusions.embeddings import EMBEDDINGS
from ..fusions.fusion import Fusion
from ..fusions.mlp import LINEAR_GELU
from ..fusions.qkv import Projections, joint_qkv_class
from ..fusions.residual_norm import RESIDUAL_NORM
from ..heads.patched_head import replacement_class
from ..heads.vocabulary import BERT_HEAD, VocabularyHead
from ..padding.encoder import Encoder, padding_free_class
from ..padding.layers import Forwards
from ..padding.model import model_class


@dataclass(frozen=True)
class Family:
    """One family of transformers models.

    Attributes:
        name: as people write it.
        model_type: ``config.model_type``.
        source: transformers' modelling module.
        attention: classes that call transformers' attention interface; the first one is self-attention. None of them
            where attention is a fusion, or stays as it is.
        heads: class with a loss of its own -> kind of loss, a key of :data:`fasttx.models.heads.kinds.KINDS`.
        bare: the model without a head.
        layer: one layer of its encoder.
        fusions: class of the embeddings, of a layer or of a module within -> what in it is replaced.
        encoder: the module that runs packed; None if batches stay as they are.
        qkv: the products of self-attention; None if they stay separate.
        vocabulary: the parts of a head over the vocabulary; None if there is no such head.
        stays: class of what stays transformers' own -> the argument of :func:`fasttx.patch` that asks for it, what it
            is, and why, for the report.
        passes_on: whether a head's and the bare model's forward hand arguments that they do not know to the encoder.
        other_heads: class of a head whose loss stays transformers' -> why; None if it has no loss.
    """

    name: str
    model_type: str
    source: str
    attention: tuple[str, ...]
    heads: Mapping[str, str] = field(hash=False)
    bare: str
    layer: str
    fusions: Mapping[str, tuple[Fusion, ...]] = field(hash=False)
    encoder: Encoder | None = None
    qkv: Projections | None = None
    vocabulary: VocabularyHead | None = None
    stays: Mapping[str, tuple[str, str, str]] = field(default_factory=dict, hash=False)
    passes_on: bool = True
    other_heads: Mapping[str, str | None] = field(default_factory=dict, hash=False)

    @property
    def replaces_attention(self) -> bool:
        """Whether its attention is fasttx's where it is patched."""
        return bool(self.attention) or any(
            fusion.option == "attention" for each in self.fusions.values() for fusion in each
        )

    @property
    def is_told(self) -> bool:
        """Whether the bare model's own forward is replaced: it tells its encoder about a call, or refuses lengths."""
        return self.encoder is not None or not self.passes_on

    def forwards(self) -> Forwards:
        """transformers' own forwards of what passes on where sequences start."""
        assert self.encoder is not None
        source = importlib.import_module(self.source)
        return tuple((path.split("."), getattr(source, cls).forward) for path, cls in self.encoder.passing.items())


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
        layer=f"{prefix}Layer",
        fusions={
            f"{prefix}Embeddings": (EMBEDDINGS,),
            f"{prefix}SelfOutput": (RESIDUAL_NORM,),
            f"{prefix}Intermediate": (LINEAR_GELU,),
            f"{prefix}Output": (RESIDUAL_NORM,),
        },
        encoder=Encoder(
            f"{prefix}Encoder",
            {
                "layer.*": f"{prefix}Layer",
                "layer.*.attention": f"{prefix}Attention",
                "layer.*.attention.self": f"{prefix}SelfAttention",
            },
        ),
        qkv=Projections(),
        vocabulary=vocabulary,
    )


def replacements(module: str, *families: Family) -> Callable[[str], type]:
    """A module ``__getattr__`` that makes the patched class of a head or another module when first asked for.

    The class becomes an attribute of `module` under transformers' own class name: this is where pickle finds it.
    """

    def lookup(attribute: str) -> type:
        for family in families:
            makers: list[Callable[[type, str], type]] = [fusion.replace for fusion in family.fusions.get(attribute, ())]
            if attribute in family.heads:
                makers.append(
                    functools.partial(
                        replacement_class,
                        kind_name=family.heads[attribute],
                        head=family.vocabulary,
                        packs=family.encoder is not None,
                        passes_on=family.passes_on,
                    )
                )
            if attribute == family.bare and family.is_told:
                packs = family.encoder is not None
                makers.append(functools.partial(model_class, packs=packs, passes_on=family.passes_on))
            if family.qkv is not None and attribute == family.attention[0]:
                makers.append(functools.partial(joint_qkv_class, projections=family.qkv))
            if family.encoder is not None and attribute == family.encoder.cls:
                makers.append(functools.partial(padding_free_class, encoder=family.encoder, forwards=family.forwards()))
            if not makers:
                continue
            made = getattr(importlib.import_module(family.source), attribute)
            for make in makers:
                made = make(made, module)
            setattr(sys.modules[module], attribute, made)
            return made
        raise AttributeError(f"module {module!r} has no attribute {attribute!r}")

    return lookup
