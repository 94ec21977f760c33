"""ViT and DeiT, which copies it class by class: images, so no padding; norms before each half, so no sum to fuse."""

from __future__ import annotations

from collections.abc import Sequence

from ..attention.role import InterfaceAttention
from ..fusions.mlp import linear_gelu
from ..fusions.qkv import Projections
from ..heads.role import OtherHead, heads
from .family import Family, replacements

PIXELS = "is a mean of differences between pixels, for which fasttx has no function; transformers' own runs"


def vit_like(name: str, model_type: str, prefix: str, without_loss: Sequence[str] = ()) -> Family:
    """A family whose layers are ViT's under another name; `without_loss` are its heads that have none."""
    return Family(
        name=name,
        model_type=model_type,
        source=f"transformers.models.{model_type}.modeling_{model_type}",
        bare=f"{prefix}Model",
        layer=f"{prefix}Layer",
        classes={
            f"{prefix}Model": (),
            f"{prefix}Attention": (
                InterfaceAttention(),
                Projections(
                    layers=("q_proj", "k_proj", "v_proj"),
                    head_dim="head_dim",
                    dropout=lambda attention: attention.attention_dropout,
                    finish=lambda attention, out: attention.o_proj(out),
                ),
            ),
            f"{prefix}MLP": (linear_gelu("fc1", "activation_fn", finish=lambda mlp, wide: mlp.fc2(wide)),),
            **heads({"ForImageClassification": "image_classification"}, prefix, packs=False),
            f"{prefix}ForMaskedImageModeling": (OtherHead(PIXELS),),
            **{prefix + head: (OtherHead(),) for head in without_loss},
        },
        norms={
            "layernorm_before": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "layernorm_after": ("mlp.fc1",),
        },
    )


FAMILIES = (
    vit_like("ViT", "vit", "ViT"),
    vit_like("DeiT", "deit", "DeiT", ("ForImageClassificationWithTeacher",)),
)

__getattr__ = replacements(__name__, *FAMILIES)
