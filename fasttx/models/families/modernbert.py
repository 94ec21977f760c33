"""ModernBERT: pre-norm layers with rotary positions, global and local attention, and gated MLPs.

Attention is fasttx's, through transformers' interface; rotary positions and windows are transformers'. The 5.x releases
of transformers no longer unpad by themselves: the model calls its layers on the padded batch, or on one row with
``position_ids`` and the lengths that a flattening collator adds, which then reaches the packed kernels.
"""

from __future__ import annotations

from ..heads.vocabulary import VocabularyHead
from .family import Family, replacements

MODERNBERT = Family(
    name="ModernBERT",
    model_type="modernbert",
    source="transformers.models.modernbert.modeling_modernbert",
    attention=("ModernBertAttention",),
    heads={
        "ModernBertForMaskedLM": "counted_masked_lm",
        "ModernBertForSequenceClassification": "sequence_classification",
        "ModernBertForTokenClassification": "token_classification",
        "ModernBertForQuestionAnswering": "counted_question_answering",
        "ModernBertForMultipleChoice": "multiple_choice",
    },
    bare="ModernBertModel",
    layer="ModernBertEncoderLayer",
    fusions={},
    stays={
        "ModernBertModel": (
            "unpad",
            "padded batch",
            "the model itself calls the layers; batches of one row that a collator has flattened run packed",
        ),
        "ModernBertMLP": ("mlp", "product, activation, gate", "there is no kernel for a gated MLP"),
    },
    vocabulary=VocabularyHead(
        features=lambda model, hidden: model.head(hidden), decoder=lambda model: model.decoder, containers=()
    ),
)
FAMILIES = (MODERNBERT,)

__getattr__ = replacements(__name__, *FAMILIES)
