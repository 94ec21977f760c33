"""ALBERT, whose layers share their weights, and whose self-attention adds and norms by itself."""

from __future__ import annotations

from ..fusions.embeddings import EMBEDDINGS
from ..fusions.mlp import linear_gelu
from ..fusions.qkv import Projections
from ..fusions.residual_norm import PostNorm, SubLayer, attention_norm, layer_norms
from ..heads.vocabulary import ALBERT_HEAD
from ..padding.encoder import Encoder
from .family import Family, replacements

ATTENTION_NORM = PostNorm("LayerNorm", "output_dropout")
MLP_NORM = layer_norms(
    (
        SubLayer(lambda layer, hidden, mask, kwargs: layer.attention(hidden, mask, **kwargs)[0], None),
        SubLayer(lambda layer, hidden, mask, kwargs: layer.ff_chunk(hidden), "full_layer_layer_norm"),
    ),
    lambda layer: "the MLP runs in chunks" if layer.chunk_size_feed_forward else None,
)

ALBERT = Family(
    name="ALBERT",
    model_type="albert",
    source="transformers.models.albert.modeling_albert",
    attention=("AlbertAttention",),
    heads={
        "AlbertForPreTraining": "sentence_order_pretraining",
        "AlbertForMaskedLM": "masked_lm",
        "AlbertForSequenceClassification": "sequence_classification",
        "AlbertForMultipleChoice": "multiple_choice",
        "AlbertForTokenClassification": "token_classification",
        "AlbertForQuestionAnswering": "question_answering",
    },
    bare="AlbertModel",
    layer="AlbertLayer",
    fusions={
        "AlbertEmbeddings": (EMBEDDINGS,),
        "AlbertAttention": (attention_norm(ATTENTION_NORM),),
        "AlbertLayer": (
            MLP_NORM,
            linear_gelu("ffn", "activation", "ff_chunk", lambda layer, wide: layer.ffn_output(wide)),
        ),
    },
    encoder=Encoder(
        "AlbertTransformer",
        {
            "albert_layer_groups.*": "AlbertLayerGroup",
            "albert_layer_groups.*.albert_layers.*": "AlbertLayer",
            "albert_layer_groups.*.albert_layers.*.attention": "AlbertAttention",
        },
    ),
    qkv=Projections(
        dropout=lambda attention: attention.attention_dropout.p,
        finish=lambda attention, out: attention.dense(out),
        post_norm=ATTENTION_NORM,
    ),
    vocabulary=ALBERT_HEAD,
)
FAMILIES = (ALBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
