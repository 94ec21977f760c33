"""The losses of transformers' heads, by kind.

A patched head calls transformers' own forward without labels, computes the loss from the logits with fasttx's
functions and returns the same output type. What differs between heads is a row of :data:`KINDS`.

``loss="correct"``: the head's own mean over what is labelled, times (labels != -100).sum() / num_items_in_batch when
the caller passes that number (Trainer does; without this factor the loss of transformers 5's encoders grows with the
accumulation steps and the number of processes), and 0 with zero gradients where nothing is labelled. A label of -100 is
ignored in the binary losses too. ``loss="hf"``: transformers' own value, NaN where nothing is labelled, and -100 a
target like any other in the binary losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .kind import Kind
from .losses import (
    Pair,
    causal_lm,
    classification,
    counted_masked_lm,
    counted_masked_lm_rows,
    cross_entropy_of_items,
    image_classification,
    inferred_classification,
    masked_lm_rows,
    question_answering,
    replaced_token_detection,
    sequence_classification,
)


def _another_loss(usual: str) -> Callable[[Any], bool]:
    """Whether a model was given a loss function that is not transformers' `usual` one."""

    def own(model: Any) -> bool:
        from transformers.loss import loss_utils

        return model.loss_function is not getattr(loss_utils, usual)

    return own


_ANY_TARGET = ("cross_entropy", "binary_cross_entropy", "torch mse_loss")
_UNLABELLED = "nothing is labelled (regression has no such label)"

KINDS: dict[str, Kind] = {
    "masked_lm": Kind(classification, vocabulary=masked_lm_rows, per_token=True),
    "counted_masked_lm": Kind(
        counted_masked_lm,
        vocabulary=counted_masked_lm_rows,
        per_token=True,
        own=lambda model: model.sparse_prediction or _another_loss("ForMaskedLMLoss")(model),
        honours=True,
    ),
    "pretraining": Pair(
        "next_sentence_label", "seq_relationship_logits", lambda model: model.cls.seq_relationship
    ).kind(),
    "sentence_order_pretraining": Pair("sentence_order_label", "sop_logits", lambda model: model.sop_classifier).kind(),
    "next_sentence": Kind(classification),
    "multiple_choice": Kind(classification),
    "token_classification": Kind(classification, per_token=True),
    "sequence_classification": Kind(sequence_classification, ops=_ANY_TARGET, zero=_UNLABELLED),
    "image_classification": Kind(
        image_classification,
        ops=_ANY_TARGET,
        zero=_UNLABELLED,
        own=_another_loss("ForSequenceClassificationLoss"),
    ),
    "inferred_classification": Kind(inferred_classification, ops=_ANY_TARGET, zero=_UNLABELLED),
    "question_answering": Kind(
        question_answering,
        labels=("start_positions", "end_positions"),
        counted=None,
        zero="no answer lies within the tokens",
        reads_padding=True,
    ),
    "counted_question_answering": Kind(
        functools.partial(question_answering, mean=cross_entropy_of_items),
        labels=("start_positions", "end_positions"),
        counted=None,
        zero="no answer lies within the tokens",
        reads_padding=True,
        own=_another_loss("ForQuestionAnsweringLoss"),
        honours=True,
    ),
    "replaced_token_detection": Kind(
        replaced_token_detection,
        ops=("binary_cross_entropy",),
        zero="no token is both labelled and shown by attention_mask",
    ),
    "causal_lm": Kind(
        causal_lm, counted=None, without_labels={"use_cache": False}, own=_another_loss("ForCausalLMLoss")
    ),
}
