"""ModernBERT: pre-norm layers with rotary positions, global and local attention, and gated MLPs.

Attention is fasttx's, through transformers' interface, with the windows of local layers; rotary positions are
transformers'. The 5.x releases of transformers no longer unpad by themselves, and the model calls its layers itself, so
that the whole model runs on one row of real tokens.
"""

from __future__ import annotations

from ..attention.role import InterfaceAttention
from ..dropout import Layer
from ..heads.role import heads
from ..heads.vocabulary import VocabularyHead
from ..padding.model import Model
from ..padding.whole import WholeModel
from ..role import Stays
from .family import Family, replacements

HEADS = {
    "ForMaskedLM": "counted_masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "counted_question_answering",
    "ForMultipleChoice": "multiple_choice",
}
VOCABULARY = VocabularyHead(
    features=lambda model, hidden: model.head(hidden), decoder=lambda model: model.decoder, containers=()
)

MODERNBERT = Family(
    name="ModernBERT",
    model_type="modernbert",
    source="transformers.models.modernbert.modeling_modernbert",
    bare="ModernBertModel",
    layer="ModernBertEncoderLayer",
    classes={
        "ModernBertModel": (
            WholeModel(
                {"layers.*": "ModernBertEncoderLayer", "layers.*.attn": "ModernBertAttention"},
                distances=True,
                beside=("embeddings", "final_norm"),
            ),
            Model(),
        ),
        "ModernBertEncoderLayer": (Layer(),),
        "ModernBertAttention": (InterfaceAttention(),),
        "ModernBertMLP": (Stays("mlp", "product, activation, gate", "there is no kernel for a gated MLP"),),
        **heads(HEADS, "ModernBert", vocabulary=VOCABULARY),
    },
    norms={"attn_norm": ("attn.Wqkv",), "mlp_norm": ("mlp.Wi",)},
)
FAMILIES = (MODERNBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
