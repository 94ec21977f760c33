"""Masked language modelling heads that compute the labelled rows only.

In training with labels nobody reads the logits: 85 % of the rows of a masked batch have no label, and each row is as
wide as the vocabulary. A patched head gathers the labelled rows first; transformers' own transform runs on them, and
linear_cross_entropy takes the loss from them, so that no matrix of logits exists. ``logits`` is None then. In eval
mode, without labels or with ``mlm_head="full"`` they are complete.

How many rows are labelled is a value on the device, for which the host waits. A graph that is being compiled or
captured must not depend on it: all rows go to linear_cross_entropy there, with their labels, or as many as a capacity
that the user states (``mlm_head=0.25``: a quarter of all positions), the labelled ones first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...functional._packing import take_rows
from ...nn.bypass import bypass_reason
from ...ops.checks import values_may_be_read
from ..tracing import graph_in_the_making
from .labels import IGNORE, LABEL_COUNTS, counted

NO_LOGITS = 'logits are not computed in training; a loss of your own on them needs mlm_head="full"'


class Decoder(NamedTuple):
    """A product with the vocabulary that is no module: a forward of transformers' uses these tensors by themselves."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class VocabularyHead:
    """How a family gets from hidden states to logits: ``decoder(features(hidden))``.

    Attributes:
        features: of (model, hidden rows); calls the modules under the containers.
        decoder: of a model: the product with the vocabulary, a module or a :class:`Decoder`.
        containers: paths of modules that are passed over, as far as a model has them, which must be transformers' own.
    """

    features: Callable[[Any, Tensor], Tensor]
    decoder: Callable[[Any], Any]
    containers: tuple[str, ...]


def _roberta_features(model: Any, hidden: Tensor) -> Tensor:
    head = model.lm_head
    return head.layer_norm(nn.functional.gelu(head.dense(hidden)))


def _distilbert_features(model: Any, hidden: Tensor) -> Tensor:
    out: Tensor = model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
    return out


def _albert_features(model: Any, hidden: Tensor) -> Tensor:
    head = model.predictions
    out: Tensor = head.LayerNorm(head.activation(head.dense(hidden)))
    return out


BERT_HEAD = VocabularyHead(
    features=lambda model, hidden: model.cls.predictions.transform(hidden),
    decoder=lambda model: model.cls.predictions.decoder,
    containers=("cls", "cls.predictions"),
)
ROBERTA_HEAD = VocabularyHead(
    features=_roberta_features, decoder=lambda model: model.lm_head.decoder, containers=("lm_head",)
)
ELECTRA_HEAD = VocabularyHead(
    features=lambda model, hidden: model.generator_predictions(hidden),
    decoder=lambda model: model.generator_lm_head,
    containers=(),
)


DISTILBERT_HEAD = VocabularyHead(
    features=_distilbert_features, decoder=lambda model: model.vocab_projector, containers=()
)
ALBERT_HEAD = VocabularyHead(
    features=_albert_features, decoder=lambda model: model.predictions.decoder, containers=("predictions",)
)


def full_head_reason(model: Any, head: VocabularyHead) -> str | None:
    """Why the head must be called as it is, so that all rows are computed; None if rows can be selected."""
    for path in head.containers:
        module = model
        for step in path.split("."):
            module = getattr(module, step, None)
        reason = None if module is None else bypass_reason(module, path, source="transformers.models")
        if reason is not None:
            return reason
    return None


def plain_linear(module: Any) -> bool:
    """Whether the decoder's weight and bias say all about it."""
    return isinstance(module, Decoder) or bypass_reason(module, "decoder", cls="Linear") is None


def labelled(
    hidden: Tensor, labels: Tensor, capacity: int | None = None, counts: Any = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows of hidden (batch, seqlen, width) that have a label, their labels (n,), and whether some are missing.

    In a graph these are all rows, or with `capacity` so many of each 1,024: the labelled ones first, then others,
    whose labels are to be ignored. More labels than that are missing, which the third result, a bool on
    the device, tells; it is None where nothing can be missing. Elsewhere, without any label there is one row, whose
    label is to be ignored: a loss over it has a gradient for every weight.

    `counts` is the call's ``label_counts``: with it the host need not wait for the number of rows. Where it is wrong,
    the third result says so; on a CPU, that is an error.
    """
    rows, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1).to(hidden.device)
    if targets.shape[0] != rows.shape[0]:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}; allowed is {tuple(hidden.shape[:-1])}")
    if graph_in_the_making(hidden):
        return (rows, targets, None) if capacity is None else _within(capacity, rows, targets)
    known = counted(counts, labels)
    if known is not None:
        return _known(known, rows, targets)
    indices = (targets != IGNORE).nonzero().view(-1)
    if indices.shape[0] == 0 and rows.shape[0] > 0:
        indices = indices.new_zeros(1)
    return take_rows(rows, indices), targets.index_select(0, indices), None


def _known(n: int, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """labelled() of n rows, which is a number of the host's."""
    has_label, wrong = targets != IGNORE, None
    if values_may_be_read(rows.device):
        found = int(has_label.count_nonzero())
        if found != n:
            allowed = f"{found}, as many as labels has that are not {IGNORE} and stand at tokens"
            raise ValueError(f"{LABEL_COUNTS}: got {n} in all; allowed is {allowed}")
    else:
        wrong = has_label.sum() != n
    if n == 0 and rows.shape[0] > 0:  # one row, as above
        indices = torch.zeros(1, dtype=torch.int64, device=rows.device)
    else:
        indices = torch.nonzero_static(has_label, size=n, fill_value=0).view(n)
    return take_rows(rows, indices), targets.index_select(0, indices), wrong


def _within(capacity: int, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """labelled() with a number of rows that depends on the shapes alone."""
    n = rows.shape[0]
    size = (n * capacity + 1023) // 1024
    has_label = targets != IGNORE
    before = has_label.cumsum(0)
    position = torch.arange(n, device=rows.device)
    slot = torch.where(has_label, before - 1, before[-1:] + position - before)  # a permutation: every row has its own
    indices = torch.empty_like(position).scatter_(0, slot, position)[:size]
    return take_rows(rows, indices), targets.index_select(0, indices), has_label.sum() > size
