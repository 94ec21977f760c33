"""DistilBERT, whose layers add and norm by themselves; the dropout before the second sum is the MLP's own."""

from __future__ import annotations

from ..fusions.embeddings import UNTYPED_EMBEDDINGS
from ..fusions.mlp import linear_gelu
from ..fusions.qkv import Projections
from ..fusions.residual_norm import SubLayer, layer_norms
from ..heads.vocabulary import DISTILBERT_HEAD
from ..padding.encoder import Encoder
from .family import Family, replacements

LAYER_NORMS = layer_norms(
    (
        SubLayer(
            lambda layer, hidden, mask, kwargs: layer.attention(hidden, attention_mask=mask, **kwargs)[0],
            "sa_layer_norm",
        ),
        SubLayer(lambda layer, hidden, mask, kwargs: layer.ffn(hidden), "output_layer_norm"),
    )
)

DISTILBERT = Family(
    name="DistilBERT",
    model_type="distilbert",
    source="transformers.models.distilbert.modeling_distilbert",
    attention=("DistilBertSelfAttention",),
    heads={
        "DistilBertForMaskedLM": "masked_lm",
        "DistilBertForSequenceClassification": "sequence_classification",
        "DistilBertForMultipleChoice": "multiple_choice",
        "DistilBertForTokenClassification": "token_classification",
        "DistilBertForQuestionAnswering": "question_answering",
    },
    bare="DistilBertModel",
    layer="TransformerBlock",
    fusions={
        "Embeddings": (UNTYPED_EMBEDDINGS,),
        "TransformerBlock": (LAYER_NORMS,),
        "FFN": (linear_gelu("lin1", "activation", "ff_chunk", lambda ffn, wide: ffn.dropout(ffn.lin2(wide))),),
    },
    encoder=Encoder(
        "Transformer",
        {"layer.*": "TransformerBlock", "layer.*.attention": "DistilBertSelfAttention"},
        config=lambda encoder: encoder.layer[0].attention.config,
    ),
    qkv=Projections(
        layers=("q_lin", "k_lin", "v_lin"),
        finish=lambda attention, out: attention.out_lin(out),
    ),
    vocabulary=DISTILBERT_HEAD,
)
FAMILIES = (DISTILBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
