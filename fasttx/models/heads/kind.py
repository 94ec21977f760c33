"""A call of a patched head, as its loss sees it, and what the engine knows of a kind of head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .vocabulary import VocabularyHead


@dataclass(frozen=True)
class Call:
    """What a loss may look at.

    Attributes:
        model: the head module.
        output: what transformers' forward returned without labels.
        arguments: the arguments of the call, by name.
        correct: True for ``loss="correct"``, False for ``"hf"``.
        backend: what the patch forces the ops to, or None.
    """

    model: Any
    output: Any
    arguments: Mapping[str, Any]
    correct: bool
    backend: str | None


@dataclass(frozen=True)
class LabelledCall(Call):
    """A call of a head over the vocabulary whose output is that of the model under the head.

    Attributes:
        head: where the family keeps the parts of its head.
        capacity: how many rows of 1,024 a graph computes, or None for all.
    """

    head: VocabularyHead
    capacity: int | None


@dataclass(frozen=True)
class Kind:
    """One kind of loss.

    Attributes:
        loss: computes it.
        labels: names of the label arguments; the loss is computed when all of them are given.
        ops: which ops compute it, for the report; which of them, the labels decide.
        counted: the labels that num_items_in_batch counts, or None if Trainer does not count them.
        zero: when the loss is 0 under ``loss="correct"``, in the report's words.
        without_labels: arguments that transformers' forward changes by itself when it gets labels.
        reads_padding: transformers' loss depends on what a model computes at padding, so that ``loss="hf"`` needs a
            padded batch.
        per_token: there is a label for each token; one at padding is not counted under ``loss="correct"``, and under
            ``"hf"`` needs a padded batch.
        vocabulary: for heads over the vocabulary: the output and the loss from the labelled rows alone.
        own: a condition under which transformers' forward computes the loss itself.
        honours: transformers' own loss honours num_items_in_batch, which ``loss="hf"`` then does too.
    """

    loss: Callable[[Call], Tensor]
    labels: tuple[str, ...] = ("labels",)
    ops: tuple[str, ...] = ("cross_entropy",)
    counted: str | None = "labels"
    zero: str = "nothing is labelled"
    without_labels: Mapping[str, Any] = field(default_factory=dict, hash=False)
    reads_padding: bool = False
    per_token: bool = False
    vocabulary: Callable[[LabelledCall], tuple[Any, Tensor]] | None = None
    own: Callable[[Any], bool] = lambda model: False
    honours: bool = False
