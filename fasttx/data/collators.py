"""A collator for padding-free models: it knows the lengths before the batch leaves the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .padding import IGNORED, pad

FORMS = ("padded", "flat")


class PackingCollator:
    """Collates batches that say how long their rows are, so that no model has to read it from the GPU.

    ``form="padded"`` leaves the padded batch as it is and adds ``seq_lens``, one int a row. A patched model runs on the
    real tokens, without waiting for the GPU to count them, and every head works. ``form="flat"`` drops the padding here
    and makes one row of all tokens, for heads that look at each token alone (masked language modelling, token
    classification).

    Lengths are a tuple of ints, because that stays on the host: DataLoader, accelerate and Trainer move every tensor to
    the device. With pinned memory the DataLoader makes a list of it.

    Args:
        collator: makes the batch. It may be any of transformers' (DataCollatorWithPadding,
            DataCollatorForLanguageModeling, DataCollatorForTokenClassification, ...), or any callable from a list of
            examples to a mapping of tensors, with ``attention_mask`` (batch, seqlen) or, for multiple choice, (batch,
            choices, seqlen) among them. None pads here. Examples are then mappings with ``input_ids``, integers
            (length,). Other integers with one value a token are padded with them (``labels`` with -100); anything else
            of one shape is stacked; ``label`` and ``label_ids`` become ``labels``. Give several labels a sequence as
            floats, which are never taken for one value a token.
        form: ``"padded"`` or ``"flat"``.
        pad_token_id: fills ``input_ids`` where `collator` is None; the mask hides it.
        pad_to_multiple_of: rounds the padded length up, where `collator` is None.
        position_ids_start: the position of a sequence's first token, which ``"flat"`` asks for: 0 in BERT, ELECTRA and
            ERNIE, ``config.pad_token_id + 1`` in RoBERTa, XLM-RoBERTa, CamemBERT and Data2VecText.

    Returns:
        A callable from a list of examples. With ``"padded"`` it gives the batch, of the collator's own type, and after
        its own items ``seq_lens``, a tuple of Python ints; multiple choice has batch * choices of them. With ``"flat"``
        it gives a dict of ``input_ids``, and whatever else has one value a token, (1, total, ...); ``position_ids``
        int64 (1, total), unless the batch has its own; ``cu_seq_lens_q``, ``cu_seq_lens_k`` int32 (batch + 1,) from 0;
        ``max_length_q``, ``max_length_k`` Python ints. There is no ``attention_mask``. Labels are those of the
        collator: none is set to -100 at a sequence's start, and without labels there are none. (transformers'
        DataCollatorWithFlattening, made for decoders, does both.) Where each token has a label or -100, either gives
        ``label_counts`` last: how many of each row have one, so that no head has to read that from the GPU.

    Raises:
        ValueError: there are no examples; an option or a column is not as above; padding is not on the right for
            ``"padded"``; a tensor has no value for each token for ``"flat"``. The message names what is wrong.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any] | None = None,
        *,
        form: str = "padded",
        pad_token_id: int = 0,
        pad_to_multiple_of: int | None = None,
        position_ids_start: int | None = None,
    ) -> None:
        if collator is not None and not callable(collator):
            raise ValueError(f"collator: got {type(collator).__name__}; allowed are None and a callable")
        if form not in FORMS:
            raise ValueError(f"form: got {form!r}; allowed are {', '.join(map(repr, FORMS))}")
        if pad_to_multiple_of is not None and (collator is not None or not _at_least(pad_to_multiple_of, 1)):
            raise ValueError(
                f"pad_to_multiple_of: got {pad_to_multiple_of!r}; allowed are ints from 1, and None with a "
                "collator, which has such an option of its own"
            )
        if not _at_least(pad_token_id, 0):
            raise ValueError(f"pad_token_id: got {pad_token_id!r}; allowed are ints from 0")
        if form == "flat" and not _at_least(position_ids_start, 0):
            raise ValueError(
                f"position_ids_start: got {position_ids_start!r}; allowed is an int under form='flat': 0 for BERT, "
                "ELECTRA and ERNIE, config.pad_token_id + 1 for RoBERTa, XLM-RoBERTa, CamemBERT and Data2VecText"
            )
        if form != "flat" and position_ids_start is not None:
            raise ValueError(f"position_ids_start: got {position_ids_start!r}; allowed is None unless form='flat'")
        self.collator = collator
        self.form = form
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of
        self.position_ids_start = position_ids_start

    def __call__(self, features: Sequence[Any]) -> Any:
        if not isinstance(features, Iterable):
            raise ValueError(f"features: got {type(features).__name__}; allowed is a list of at least one example")
        features = list(features)
        if not features:
            raise ValueError("features: got none; allowed is a list of at least one example")
        if self.collator is not None:
            batch = self.collator(features)
        else:
            for row, feature in enumerate(features):
                if not isinstance(feature, Mapping) or "input_ids" not in feature:
                    raise ValueError(
                        f"features: got {_named(feature)} as example {row}; allowed are mappings with 'input_ids'"
                    )
            batch = pad(features, self.pad_token_id, self.pad_to_multiple_of)
        mask = _mask_of(batch)
        if self.form == "flat":
            assert self.position_ids_start is not None
            return _flat(batch, mask, self.position_ids_start)
        # Last, because accelerate takes the first item of a batch for a tensor, whose size it reads.
        batch["seq_lens"] = _lengths(mask.reshape(-1, mask.shape[-1]))
        counts = _label_counts(batch.get("labels"), mask)
        if counts is not None:
            batch["label_counts"] = counts
        return batch


def _at_least(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _named(value: Any) -> str:
    return f"a mapping of {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__


def _mask_of(batch: Any) -> Tensor:
    """bool: the tokens that are not padding."""
    mask = batch.get("attention_mask") if isinstance(batch, MutableMapping) else None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 3) or mask.numel() == 0 or mask.device.type != "cpu":
        found = _named(batch) if mask is None else f"an attention_mask of {_named(mask)}"
        if isinstance(mask, Tensor):
            found = f"an attention_mask of shape {tuple(mask.shape)} on {mask.device}"
        raise ValueError(
            f"collator: got {found} from it; allowed are batches with 'attention_mask', a CPU tensor (batch, seqlen) "
            "or (batch, choices, seqlen) of at least one token, without which padding cannot be told from tokens"
        )
    return mask != 0


def _lengths(mask: Tensor) -> tuple[int, ...]:
    counts = mask.sum(-1)
    wrong = (mask != (torch.arange(mask.shape[1]) < counts[:, None])).any(-1)
    if wrong.any():
        raise ValueError(
            f"attention_mask: got row {int(wrong.int().argmax())}, which is not padded on the right; allowed are ones, "
            "then zeros under form='padded': set tokenizer.padding_side = 'right'"
        )
    return tuple(counts.tolist())


def _label_counts(labels: Any, mask: Tensor) -> tuple[int, ...] | None:
    """How many tokens of each row have a label; None unless each token has one, or -100."""
    if not isinstance(labels, Tensor) or labels.shape != mask.shape or mask.dim() != 2 or labels.is_floating_point():
        return None
    return tuple(((labels != IGNORED) & mask).sum(-1).tolist())


def _flat(batch: Mapping[str, Any], mask: Tensor, position_ids_start: int) -> dict[str, Any]:
    if mask.dim() != 2:
        raise ValueError(f"attention_mask: got shape {tuple(mask.shape)}; allowed is (batch, seqlen) under form='flat'")
    flat: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.shape[:2] != mask.shape:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name}: got {found}; allowed are tensors with a value for each token, {tuple(mask.shape)} here, as "
                "the one row of form='flat' has no place for one a sequence: use form='padded'"
            )
        if name != "attention_mask":
            flat[name] = value[mask][None]
    counts = mask.sum(-1)
    if "position_ids" not in flat:
        flat["position_ids"] = (mask.cumsum(-1) - 1 + position_ids_start)[mask][None]
    starts = torch.zeros(len(counts) + 1, dtype=torch.int32)
    starts[1:] = counts.cumsum(0)
    flat["cu_seq_lens_q"] = flat["cu_seq_lens_k"] = starts
    flat["max_length_q"] = flat["max_length_k"] = int(counts.max())
    labelled = _label_counts(batch.get("labels"), mask)
    if labelled is not None:
        flat["label_counts"] = (sum(labelled),)
    return flat
