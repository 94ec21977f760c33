"""ModernBERT: pre-norm layers with rotary positions, global and local attention, and gated MLPs.

Attention is fasttx's, through transformers' interface; rotary positions and windows are transformers'. The 5.x releases
of transformers no longer unpad by themselves: the model calls its layers on the padded batch, or on one row with
``position_ids`` and the lengths that a flattening collator adds, which then reaches the packed kernels.
"""

from __future__ import annotations

from ..attention.role import InterfaceAttention
from ..heads.role import heads
from ..heads.vocabulary import VocabularyHead
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
            Stays(
                "unpad",
                "padded batch",
                "the model itself calls the layers; batches of one row that a collator has flattened run packed",
            ),
        ),
        "ModernBertAttention": (InterfaceAttention(),),
        "ModernBertMLP": (Stays("mlp", "product, activation, gate", "there is no kernel for a gated MLP"),),
        **heads(HEADS, "ModernBert", vocabulary=VOCABULARY, packs=False),
    },
)
FAMILIES = (MODERNBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
