"""DeBERTa and DeBERTa-v2, whose checkpoints of version 3 have the same classes.

Their attention adds products of content and position to the scores, for which there is no kernel: it stays
transformers' own, and so do padded batches and the embeddings, which are multiplied by the mask between norm and
dropout. The rest of a layer, and the heads, are replaced.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dropout import Layer
from ..fusions.mlp import LINEAR_GELU
from ..fusions.residual_norm import RESIDUAL_NORM, PostNorm, residual_norm
from ..heads.role import heads
from ..heads.vocabulary import Decoder, VocabularyHead
from ..padding.model import Model
from ..role import Stays
from .family import Family, replacements

MODELS = "transformers.models"
OWN_NORM = residual_norm(PostNorm(source=f"{MODELS}.deberta", kind="DebertaLayerNorm", eps="variance_epsilon"))
"""DeBERTa's first version has a layer norm of its own, which rounds once more, before the weight."""
HEADS = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "inferred_classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}


def _features(model: Any, hidden: Tensor) -> Tensor:
    if model.legacy:
        return model.cls.predictions.transform(hidden)
    head = model.lm_predictions.lm_head
    return head.LayerNorm(head.transform_act_fn(head.dense(hidden)))


def _decoder(model: Any) -> Any:
    if model.legacy:
        return model.cls.predictions.decoder
    return Decoder(model.deberta.embeddings.word_embeddings.weight, model.lm_predictions.lm_head.bias)


VOCABULARY = VocabularyHead(
    features=_features,
    decoder=_decoder,
    containers=("cls", "cls.predictions", "lm_predictions", "lm_predictions.lm_head"),
)

FAMILIES = tuple(
    Family(
        name=name,
        model_type=model_type,
        source=f"{MODELS}.{package}.modeling_{package}",
        bare=f"{prefix}Model",
        layer=f"{prefix}Layer",
        classes={
            f"{prefix}Model": (Model(packs=False, passes_on=False),),
            f"{prefix}Embeddings": (
                Stays("norm", "embeddings, norm, dropout", "they are multiplied by the mask between norm and dropout"),
            ),
            f"{prefix}Encoder": (Stays("unpad", "padded batch", "disentangled attention is made for padded rows"),),
            f"{prefix}Layer": (Layer(),),
            "DisentangledSelfAttention": (
                Stays("attention", "attention", "disentangled attention stays transformers' own"),
            ),
            f"{prefix}SelfOutput": (norm,),
            f"{prefix}Intermediate": (LINEAR_GELU,),
            f"{prefix}Output": (norm,),
            **heads(kinds, prefix, vocabulary=VOCABULARY, packs=False, passes_on=False),
        },
    )
    for name, model_type, prefix, package, norm, kinds in (
        ("DeBERTa", "deberta", "Deberta", "deberta", OWN_NORM, HEADS),
        (
            "DeBERTa-v2",
            "deberta-v2",
            "DebertaV2",
            "deberta_v2",
            RESIDUAL_NORM,
            HEADS | {"ForMultipleChoice": "multiple_choice"},
        ),
    )
)

__getattr__ = replacements(__name__, *FAMILIES)
