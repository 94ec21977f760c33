"""Data2VecText: RoBERTa's layers and heads."""

from __future__ import annotations

from ..heads.vocabulary import ROBERTA_HEAD
from .family import bert_like, replacements
from .roberta import HEADS

DATA2VEC_TEXT = bert_like(
    "Data2VecText",
    "data2vec-text",
    prefix="Data2VecText",
    source="transformers.models.data2vec.modeling_data2vec_text",
    kinds=HEADS,
    vocabulary=ROBERTA_HEAD,
)
FAMILIES = (DATA2VEC_TEXT,)

__getattr__ = replacements(__name__, *FAMILIES)
