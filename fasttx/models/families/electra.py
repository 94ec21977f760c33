"""ELECTRA, whose pretraining head tells replaced tokens from original ones."""

from __future__ import annotations

from ..heads.vocabulary import ELECTRA_HEAD
from .family import bert_like, replacements

ELECTRA = bert_like(
    "ELECTRA",
    "electra",
    prefix="Electra",
    source="transformers.models.electra.modeling_electra",
    kinds={
        "ForPreTraining": "replaced_token_detection",
        "ForCausalLM": "causal_lm",
        "ForMaskedLM": "masked_lm",
        "ForSequenceClassification": "sequence_classification",
        "ForMultipleChoice": "multiple_choice",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "question_answering",
    },
    vocabulary=ELECTRA_HEAD,
)
FAMILIES = (ELECTRA,)

__getattr__ = replacements(__name__, *FAMILIES)
