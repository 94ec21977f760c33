"""ViT and DeiT, which copies it class by class: images, so no padding; norms before each half, so no sum to fuse."""

from __future__ import annotations

from collections.abc import Mapping

from ..fusions.mlp import linear_gelu
from ..fusions.qkv import Projections
from .family import Family, replacements

PIXELS = "is a mean of differences between pixels, for which fasttx has no function; transformers' own runs"


def vit_like(name: str, model_type: str, prefix: str, others: Mapping[str, None]) -> Family:
    """A family whose layers are ViT's under another name; `others` are its heads without a loss."""
    return Family(
        name=name,
        model_type=model_type,
        source=f"transformers.models.{model_type}.modeling_{model_type}",
        attention=(f"{prefix}Attention",),
        heads={f"{prefix}ForImageClassification": "image_classification"},
        bare=f"{prefix}Model",
        layer=f"{prefix}Layer",
        fusions={f"{prefix}MLP": (linear_gelu("fc1", "activation_fn", finish=lambda mlp, wide: mlp.fc2(wide)),)},
        qkv=Projections(
            layers=("q_proj", "k_proj", "v_proj"),
            head_dim="head_dim",
            dropout=lambda attention: attention.attention_dropout,
            finish=lambda attention, out: attention.o_proj(out),
        ),
        other_heads={f"{prefix}ForMaskedImageModeling": PIXELS} | dict(others),
    )


FAMILIES = (
    vit_like("ViT", "vit", "ViT", {}),
    vit_like("DeiT", "deit", "DeiT", {"DeiTForImageClassificationWithTeacher": None}),
)

__getattr__ = replacements(__name__, *FAMILIES)
