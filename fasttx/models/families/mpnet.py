"""MPNet: BERT's layers with a bias for each distance of two tokens, which all layers share."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from ..fusions.embeddings import fused_embeddings
from ..fusions.mlp import LINEAR_GELU
from ..fusions.position_bias import ATTENDED_NORM, BIASED_ATTENTION, SHARED_BIAS, key_mask, not_ready, run_layers
from ..fusions.residual_norm import RESIDUAL_NORM
from ..heads.role import heads
from ..heads.vocabulary import ROBERTA_HEAD
from ..padding.encoder import Encoder
from ..padding.model import Model
from .family import Family, replacements


def _positions(module: Any, ids: Tensor, past: int) -> Tensor:
    """Positions from the function of transformers' modelling file, in which padding has none."""
    positions: Tensor = sys.modules[SOURCE].create_position_ids_from_input_ids(ids, module.padding_idx)
    return positions


SOURCE = "transformers.models.mpnet.modeling_mpnet"
HEADS = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForMultipleChoice": "multiple_choice",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "question_answering",
}

MPNET = Family(
    name="MPNet",
    model_type="mpnet",
    source=SOURCE,
    bare="MPNetModel",
    layer="MPNetLayer",
    classes={
        "MPNetModel": (Model(passes_on=False),),
        "MPNetEmbeddings": (fused_embeddings(("word_embeddings", "position_embeddings"), _positions),),
        "MPNetEncoder": (
            Encoder(
                {
                    "layer.*": "MPNetLayer",
                    "layer.*.attention": "MPNetAttention",
                    "layer.*.attention.attn": "MPNetSelfAttention",
                },
                key_mask=key_mask,
                run=run_layers,
                not_ready=not_ready,
                distances=True,
                sets_config=True,
            ),
            SHARED_BIAS,
        ),
        "MPNetAttention": (ATTENDED_NORM,),
        "MPNetSelfAttention": (BIASED_ATTENTION,),
        "MPNetIntermediate": (LINEAR_GELU,),
        "MPNetOutput": (RESIDUAL_NORM,),
        **heads(HEADS, "MPNet", vocabulary=ROBERTA_HEAD, passes_on=False),
    },
)
FAMILIES = (MPNET,)

__getattr__ = replacements(__name__, *FAMILIES)
