"""The loss of a head: which kind of head a class is, and which heads keep transformers' own loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..report import expected_backend
from ..role import Found, Role
from .kind import Kind
from .kinds import KINDS
from .patched_head import replacement_class
from .vocabulary import NO_LOGITS, VocabularyHead, full_head_reason

OWN_LOSS = "transformers' forward selects labelled rows by itself, or the model has a loss function of its own"


@dataclass(frozen=True)
class Head(Role):
    """A head with a loss of a known kind.

    Attributes:
        kind: a key of :data:`fasttx.models.heads.kinds.KINDS`.
        vocabulary: the parts of the family's head over the vocabulary, if it has one.
        packs: whether the encoder under it may run on real tokens only.
        passes_on: whether arguments that the head does not know reach the encoder.
    """

    kind: str
    vocabulary: VocabularyHead | None = None
    packs: bool = True
    passes_on: bool = True
    option = "loss"

    def before_in(self, module: nn.Module) -> str:
        return f"loss of {type(module).__name__}"

    def plan(self, found: Found) -> bool:
        kind, before = KINDS[self.kind], self.before_in(found.module)
        if found.fixed_reason is not None:
            found.leave(before, found.fixed_reason)
            return False
        if kind.own(found.module):
            found.leave(before, OWN_LOSS)
            return True
        backend = expected_backend(kind.ops[0], found.options.backend, found.module)
        found.replace(before, ", ".join(kind.ops), backend, _value(kind, found.options.loss == "hf"), ops=kind.ops)
        if kind.vocabulary is not None and self.vocabulary is not None and found.options.labelled_rows:
            _plan_labelled_rows(found, self.vocabulary)
        return True

    def make_class(self, original: type, module: str) -> type:
        return replacement_class(original, module, self.kind, self.vocabulary, self.packs, self.passes_on)


def _value(kind: Kind, as_transformers: bool) -> str:
    """What the loss is, for the report."""
    if kind.counted is None:
        but = ", but padding takes no part in the softmax" if kind.reads_padding else ""
        return "as in transformers" if as_transformers else f"as in transformers{but}; 0 where {kind.zero}"
    if as_transformers:
        return "loss='hf': transformers' value" + ("" if kind.honours else ", which ignores num_items_in_batch")
    return f"loss='correct': honours num_items_in_batch; 0 where {kind.zero}"


def _plan_labelled_rows(found: Found, vocabulary: VocabularyHead) -> None:
    before, options = "logits of all rows", found.options
    full = full_head_reason(found.module, vocabulary)
    if full is not None:
        found.leave(before, full)
        return
    reason = f"linear_cross_entropy; {NO_LOGITS}"
    if options.capacity is not None:
        reason += f"; in graphs {options.mlm_head} of all rows, and NaN where more are labelled"
    backend = expected_backend("linear_cross_entropy", options.backend, found.module)
    found.replace(before, "labelled rows only", backend, reason, ops=("linear_cross_entropy",))


@dataclass(frozen=True)
class OtherHead(Role):
    """A head without a loss, or with one that stays transformers'.

    Attributes:
        reason: why its loss stays; None if there is none.
    """

    reason: str | None = None
    option = "loss"

    def plan(self, found: Found) -> bool:
        if self.reason is not None:
            found.leave(f"loss of {type(found.module).__name__}", self.reason)
        return False


def heads(kinds: Mapping[str, str], prefix: str = "", **shared: Any) -> dict[str, tuple[Role, ...]]:
    """The heads of a family: class, less `prefix`, -> kind; `shared` are the other attributes of :class:`Head`."""
    return {prefix + name: (Head(kind, **shared),) for name, kind in kinds.items()}
