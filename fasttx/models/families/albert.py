"""ALBERT, whose layers share their weights, and whose self-attention adds and norms by itself."""

from __future__ import annotations

from typing import Any

from ..attention.role import InterfaceAttention
from ..capture.parts import LayerParts
from ..fusions.embeddings import EMBEDDINGS
from ..fusions.mlp import linear_gelu
from ..fusions.qkv import Projections
from ..fusions.residual_norm import PostNorm, SubLayer, attention_norm, layer_norms
from ..heads.role import heads
from ..heads.vocabulary import ALBERT_HEAD
from ..padding.encoder import Encoder
from ..padding.model import Model
from .family import Family, replacements


def _layers(encoder: Any) -> list[Any]:
    """A layer for each of the steps that the encoder makes: its groups, each for its share of them."""
    config, found = encoder.config, []
    for i in range(config.num_hidden_layers):
        group = int(i / (config.num_hidden_layers / config.num_hidden_groups))
        found += list(encoder.albert_layer_groups[group].albert_layers)
    return found


PARTS = LayerParts(
    attention="attention",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attended="attention.dense",
    attended_norm="attention.LayerNorm",
    wide="ffn",
    activation="activation",
    narrow="ffn_output",
    norm="full_layer_layer_norm",
    layers=_layers,
    first="embedding_hidden_mapping_in",
)
ATTENTION_NORM = PostNorm("LayerNorm", "output_dropout")
MLP_NORM = layer_norms(
    (
        SubLayer(lambda layer, hidden, mask, kwargs: layer.attention(hidden, mask, **kwargs)[0], None),
        SubLayer(lambda layer, hidden, mask, kwargs: layer.ff_chunk(hidden), "full_layer_layer_norm"),
    ),
    lambda layer: "the MLP runs in chunks" if layer.chunk_size_feed_forward else None,
)

HEADS = {
    "ForPreTraining": "sentence_order_pretraining",
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForMultipleChoice": "multiple_choice",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}

ALBERT = Family(
    name="ALBERT",
    model_type="albert",
    source="transformers.models.albert.modeling_albert",
    bare="AlbertModel",
    layer="AlbertLayer",
    classes={
        "AlbertModel": (Model(),),
        "AlbertEmbeddings": (EMBEDDINGS,),
        "AlbertTransformer": (
            Encoder(
                {
                    "albert_layer_groups.*": "AlbertLayerGroup",
                    "albert_layer_groups.*.albert_layers.*": "AlbertLayer",
                    "albert_layer_groups.*.albert_layers.*.attention": "AlbertAttention",
                },
                parts=PARTS,
            ),
        ),
        "AlbertLayer": (
            MLP_NORM,
            linear_gelu("ffn", "activation", "ff_chunk", lambda layer, wide: layer.ffn_output(wide)),
        ),
        "AlbertAttention": (
            InterfaceAttention(),
            Projections(
                dropout=lambda attention: attention.attention_dropout.p,
                finish=lambda attention, out: attention.dense(out),
                post_norm=ATTENTION_NORM,
            ),
            attention_norm(ATTENTION_NORM),
        ),
        **heads(HEADS, "Albert", vocabulary=ALBERT_HEAD),
    },
)
FAMILIES = (ALBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
