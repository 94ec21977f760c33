"""BERT."""

from __future__ import annotations

from .family import bert_like, replacements

BERT = bert_like(
    "BERT",
    "bert",
    prefix="Bert",
    source="transformers.models.bert.modeling_bert",
    kinds={
        "ForPreTraining": "pretraining",
        "LMHeadModel": "causal_lm",
        "ForMaskedLM": "masked_lm",
        "ForNextSentencePrediction": "next_sentence",
        "ForSequenceClassification": "sequence_classification",
        "ForMultipleChoice": "multiple_choice",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "question_answering",
    },
)
FAMILIES = (BERT,)

__getattr__ = replacements(__name__, *FAMILIES)
