"""RoBERTa and the two families that copy it class by class: XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from ..heads.vocabulary import ROBERTA_HEAD
from .family import bert_like, replacements

HEADS = {
    "ForCausalLM": "causal_lm",
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForMultipleChoice": "multiple_choice",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}

FAMILIES = tuple(
    bert_like(name, model_type, prefix, f"transformers.models.{package}.modeling_{package}", HEADS, ROBERTA_HEAD)
    for name, model_type, prefix, package in (
        ("RoBERTa", "roberta", "Roberta", "roberta"),
        ("XLM-RoBERTa", "xlm-roberta", "XLMRoberta", "xlm_roberta"),
        ("CamemBERT", "camembert", "Camembert", "camembert"),
    )
)

__getattr__ = replacements(__name__, *FAMILIES)
