"""ERNIE: BERT with task type embeddings."""

from __future__ import annotations

from .family import bert_like, replacements

ERNIE = bert_like(
    "ERNIE",
    "ernie",
    prefix="Ernie",
    source="transformers.models.ernie.modeling_ernie",
    kinds={
        "ForPreTraining": "pretraining",
        "ForCausalLM": "causal_lm",
        "ForMaskedLM": "masked_lm",
        "ForNextSentencePrediction": "next_sentence",
        "ForSequenceClassification": "sequence_classification",
        "ForMultipleChoice": "multiple_choice",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "question_answering",
    },
)
FAMILIES = (ERNIE,)

__getattr__ = replacements(__name__, *FAMILIES)
