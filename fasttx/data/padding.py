"""Examples of different lengths in one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
FILL = {"labels": IGNORED, "special_tokens_mask": 1}
"""What a per-token column holds at padding, where it is not 0; the collator adds its own pad_token_id."""

RENAMED = {"label": "labels", "label_ids": "labels"}


def _column(features: Sequence[Mapping[str, Any]], name: str) -> list[Tensor]:
    values = []
    for row, feature in enumerate(features):
        if name not in feature:
            raise ValueError(
                f"features: got {name!r} in some examples and not in example {row}; allowed is it in all or none"
            )
        value = feature[name]
        try:
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{name}: got {type(value).__name__} in example {row}; allowed are numbers, rectangular lists or "
                "arrays of them, and tensors; remove the column, or collate it yourself"
            ) from None
        # Models look up and compare int64; a bool or uint8 has no -100. torch makes an empty list a floating tensor.
        floating = tensor.is_floating_point() and tensor.numel() > 0
        values.append(tensor if floating else tensor.to(torch.int64))
    return values


def _per_token(values: Sequence[Tensor], lengths: Sequence[int]) -> bool:
    """A floating column is one value or vector a sequence (of several labels), even where its length happens to fit."""
    return all(not v.is_floating_point() and v.dim() > 0 and len(v) == length for v, length in zip(values, lengths))


def pad(features: Sequence[Mapping[str, Any]], pad_token_id: int, pad_to_multiple_of: int | None) -> dict[str, Tensor]:
    """One padded batch, on the right, of unpadded examples; see :class:`fasttx.data.PackingCollator`."""
    ids = _column(features, "input_ids")
    for row, value in enumerate(ids):
        if value.dim() != 1 or value.is_floating_point():
            found = f"{value.dtype} of shape {tuple(value.shape)}"
            raise ValueError(f"input_ids: got {found} in example {row}; allowed are integers (length,)")
    lengths = [len(value) for value in ids]
    longest = max(lengths)
    if longest == 0:
        raise ValueError(f"input_ids: got no token in any of the {len(ids)} examples; allowed is at least one")
    if pad_to_multiple_of is not None:
        longest = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    names = dict.fromkeys(name for feature in features for name in feature)  # in order, of all examples
    columns = {name: _column(features, name) for name in names}
    columns.setdefault("attention_mask", [torch.ones(length, dtype=torch.int64) for length in lengths])
    batch: dict[str, Tensor] = {}
    for given, values in columns.items():
        name = RENAMED.get(given, given)
        if name in batch:
            clash = [repr(other) for other in columns if RENAMED.get(other, other) == name]
            raise ValueError(f"features: got two columns for {name!r}; allowed is one of {', '.join(clash)}")
        if _per_token(values, lengths):
            fill = pad_token_id if name == "input_ids" else FILL.get(name, 0)
            batch[name] = values[0].new_full((len(values), longest, *values[0].shape[1:]), fill)
            for row, value in zip(batch[name], values):
                row[: len(value)] = value
            continue
        misfits = [i for i, (v, n) in enumerate(zip(values, lengths)) if v.dim() == 0 or len(v) != n]
        if len({value.shape for value in values}) == 1 and not (name == "attention_mask" and misfits):
            batch[name] = torch.stack(list(values))
        else:  # a floating column, which is not padded, may have no misfit
            row = misfits[0] if misfits else next(i for i, v in enumerate(values) if v.shape != values[0].shape)
            raise ValueError(
                f"{given}: got shape {tuple(values[row].shape)} in example {row}, whose input_ids have {lengths[row]} "
                "tokens; allowed is one integer a token in every example, or the same shape in every example"
            )
    return batch
