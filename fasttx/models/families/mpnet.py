"""MPNet: BERT's layers with a bias for each distance of two tokens, which all layers share."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from ..fusions.embeddings import fused_embeddings
from ..fusions.mlp import LINEAR_GELU
from ..fusions.position_bias import ATTENDED_NORM, BIASED_ATTENTION, SHARED_BIAS, key_mask, not_ready, run_layers
from ..fusions.residual_norm import RESIDUAL_NORM
from ..heads.vocabulary import ROBERTA_HEAD
from ..padding.encoder import Encoder
from .family import Family, replacements


def _positions(module: Any, ids: Tensor, past: int) -> Tensor:
    """Positions from the function of transformers' modelling file, in which padding has none."""
    positions: Tensor = sys.modules[SOURCE].create_position_ids_from_input_ids(ids, module.padding_idx)
    return positions


SOURCE = "transformers.models.mpnet.modeling_mpnet"
MPNET = Family(
    name="MPNet",
    model_type="mpnet",
    source=SOURCE,
    attention=(),
    heads={
        "MPNetForMaskedLM": "masked_lm",
        "MPNetForSequenceClassification": "sequence_classification",
        "MPNetForMultipleChoice": "multiple_choice",
        "MPNetForTokenClassification": "token_classification",
        "MPNetForQuestionAnswering": "question_answering",
    },
    bare="MPNetModel",
    layer="MPNetLayer",
    fusions={
        "MPNetEmbeddings": (fused_embeddings(("word_embeddings", "position_embeddings"), _positions),),
        "MPNetEncoder": (SHARED_BIAS,),
        "MPNetAttention": (ATTENDED_NORM,),
        "MPNetSelfAttention": (BIASED_ATTENTION,),
        "MPNetIntermediate": (LINEAR_GELU,),
        "MPNetOutput": (RESIDUAL_NORM,),
    },
    encoder=Encoder(
        "MPNetEncoder",
        {
            "layer.*": "MPNetLayer",
            "layer.*.attention": "MPNetAttention",
            "layer.*.attention.attn": "MPNetSelfAttention",
        },
        key_mask=key_mask,
        run=run_layers,
        not_ready=not_ready,
        distances=True,
    ),
    vocabulary=ROBERTA_HEAD,
    passes_on=False,
)
FAMILIES = (MPNET,)

__getattr__ = replacements(__name__, *FAMILIES)
