"""DistilBERT, whose layers add and norm by themselves; the dropout before the second sum is the MLP's own."""

from __future__ import annotations

from ..attention.role import InterfaceAttention
from ..capture.parts import LayerParts
from ..dropout import Layer
from ..fusions.embeddings import UNTYPED_EMBEDDINGS
from ..fusions.mlp import linear_gelu
from ..fusions.qkv import Projections
from ..fusions.residual_norm import SubLayer, layer_norms
from ..heads.role import heads
from ..heads.vocabulary import DISTILBERT_HEAD
from ..padding.encoder import Encoder
from ..padding.model import Model
from .family import Family, replacements

PARTS = LayerParts(
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attended="attention.out_lin",
    attended_norm="sa_layer_norm",
    wide="ffn.lin1",
    activation="ffn.activation",
    narrow="ffn.lin2",
    norm="output_layer_norm",
)
LAYER_NORMS = layer_norms(
    (
        SubLayer(
            lambda layer, hidden, mask, kwargs: layer.attention(hidden, attention_mask=mask, **kwargs)[0],
            "sa_layer_norm",
        ),
        SubLayer(lambda layer, hidden, mask, kwargs: layer.ffn(hidden), "output_layer_norm"),
    )
)

HEADS = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForMultipleChoice": "multiple_choice",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}

DISTILBERT = Family(
    name="DistilBERT",
    model_type="distilbert",
    source="transformers.models.distilbert.modeling_distilbert",
    bare="DistilBertModel",
    layer="TransformerBlock",
    classes={
        "DistilBertModel": (Model(),),
        "Embeddings": (UNTYPED_EMBEDDINGS,),
        "Transformer": (
            Encoder(
                {"layer.*": "TransformerBlock", "layer.*.attention": "DistilBertSelfAttention"},
                config=lambda encoder: encoder.layer[0].attention.config,
                parts=PARTS,
            ),
        ),
        "TransformerBlock": (LAYER_NORMS, Layer()),
        "DistilBertSelfAttention": (
            InterfaceAttention(),
            Projections(
                layers=("q_lin", "k_lin", "v_lin"),
                finish=lambda attention, out: attention.out_lin(out),
            ),
        ),
        "FFN": (linear_gelu("lin1", "activation", "ff_chunk", lambda ffn, wide: ffn.dropout(ffn.lin2(wide))),),
        **heads(HEADS, "DistilBert", vocabulary=DISTILBERT_HEAD),
    },
)
FAMILIES = (DISTILBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
