"""What is wrong with the labels of a patched head, in words that name the argument."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, prod
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ...functional._packing import first_tokens
from ...ops.checks import is_number
from ..attention.masks import for_batch

IGNORE = -100
"""The label that transformers' data collators and Trainer's item count leave out."""

LABEL_COUNTS = "label_counts"
"""The argument that says how many tokens of each row have a label, so that nobody waits for a GPU to count them."""


def counted(counts: Any, labels: Tensor) -> int | None:
    """How many labels there are by the caller's ``label_counts``, ints for each row of labels (batch, seqlen); None if
    the call has none.

    Raises:
        TypeError, ValueError: they are not that.
    """
    if counts is None:
        return None
    if not isinstance(counts, (list, tuple)) or any(type(n) is not int for n in counts):
        found = type(counts).__name__ if not isinstance(counts, (list, tuple)) else repr(counts)
        raise TypeError(f"{LABEL_COUNTS}: got {found}; allowed are ints, one for each row of labels")
    if len(counts) != labels.shape[0]:
        allowed = f"one for each of {labels.shape[0]} rows"
        raise ValueError(f"{LABEL_COUNTS}: got {len(counts)} of them; allowed is {allowed}")
    if min(counts, default=0) < 0 or max(counts, default=0) > labels[0:1].numel():
        allowed = f"numbers of labels, from 0 to {labels[0:1].numel()}"
        raise ValueError(f"{LABEL_COUNTS}: got {counts!r}; allowed are {allowed}")
    return sum(counts)


def tokens(arguments: Mapping[str, Any], shape: torch.Size, device: torch.device) -> Tensor | None:
    """Which of (batch, seqlen) = `shape` are no padding, in bool, if the arguments of a call say so.

    Lengths of the host's go to `device`, without a wait for what that is doing.
    """
    mask, seq_lens = arguments.get("attention_mask"), arguments.get("seq_lens")
    if mask is not None:
        real = for_batch(mask, shape[0]) != 0
        return real if real.shape == shape else None
    return None if seq_lens is None or len(shape) != 2 else first_tokens(seq_lens, shape[1], device)


def without_padding(labels: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """The labels, with :data:`IGNORE` at padding."""
    shown = tokens(arguments, labels.shape, labels.device)
    if shown is None:
        return labels
    if labels.dtype == torch.uint8:  # has no -100
        labels = labels.long()
    return labels.masked_fill(~shown.to(labels.device), IGNORE)


def any_at_padding(labels: Tensor, arguments: Mapping[str, Any]) -> bool:
    """Whether padding has a label; read from the tensors, for which the host waits on a GPU."""
    return bool((without_padding(labels, arguments) != labels).any())


def check_given(model: Any, labels: Mapping[str, Any], num_items: Any) -> None:
    """Raises TypeError or ValueError for what cannot be labels, or a number of items, of any head.

    Args:
        model: the head; on the meta device, so may they be.
        labels: by the caller's names.
        num_items: the caller's ``num_items_in_batch``, or None.
    """
    for name, value in labels.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}; allowed is a torch.Tensor")
        if value.is_meta and model.device.type != "meta":
            raise ValueError(f"{name}: got a tensor on meta; allowed is one on the model's device, {model.device}")
    if num_items is None:
        return
    name = "num_items_in_batch"
    if isinstance(num_items, Tensor):
        if num_items.numel() != 1 or (num_items.is_meta and model.device.type != "meta"):
            found = f"shape {tuple(num_items.shape)} on {num_items.device}"
            raise ValueError(f"{name}: got {found}; allowed is a tensor of one number, on the model's device")
    elif not is_number(num_items):
        raise TypeError(f"{name}: got {num_items!r}; allowed is a number")
    elif not 0 <= num_items < inf:
        raise ValueError(f"{name}: got {num_items!r}; allowed is a finite number, not negative")


_CLASS_DTYPES = (torch.int64, torch.uint8)


def shape_error(name: str, labels: Tensor, allowed: torch.Size) -> ValueError:
    return ValueError(f"{name}: got shape {tuple(labels.shape)}; allowed is {tuple(allowed)}")


class Named:
    """Around a loss: its error becomes a ValueError that names the argument, if the labels are the cause.

    Nothing is looked at unless an error was raised, so a right call costs nothing; values are read only after an
    IndexError, which comes from CPU tensors, or with FASTTX_CHECK=1 from a GPU.

    Args:
        name: what the caller calls the labels.
        labels: what was given.
        shape: the shape that the logits ask for.
        classes: the number of classes where labels are class indices, which may have any shape of as many elements.
        ignore_index: the index besides [0, classes) that is allowed.
        floating: whether labels must be floating, where they are no class indices.
    """

    __slots__ = ("name", "labels", "shape", "classes", "ignore_index", "floating")

    def __init__(
        self,
        name: str,
        labels: Tensor,
        shape: torch.Size,
        classes: int | None = None,
        ignore_index: int = IGNORE,
        floating: bool = False,
    ) -> None:
        self.name, self.labels, self.shape = name, labels, shape
        self.classes, self.ignore_index, self.floating = classes, ignore_index, floating

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(problem, (IndexError, ValueError, RuntimeError)):
            wrong = self._wrong(isinstance(problem, IndexError))
            if wrong is not None:
                raise ValueError(f"{self.name}: {wrong}") from problem

    def _wrong(self, out_of_range: bool) -> str | None:
        labels, shape, classes = self.labels, self.shape, self.classes
        if labels.shape != shape and (classes is None or labels.numel() != prod(shape)):
            text = f"got shape {tuple(labels.shape)}; allowed is {tuple(shape)}"
            return text + (" (floating labels are one score a class)" if self.floating else "")
        if classes is None:
            if self.floating and not labels.is_floating_point():
                return f"got {labels.dtype}; allowed are floating dtypes: a score between 0 and 1 for each class"
            return None
        if labels.dtype not in _CLASS_DTYPES:
            return f"got {labels.dtype}; allowed are {' and '.join(map(str, _CLASS_DTYPES))}: a class index each"
        if not out_of_range:
            return None
        indices = labels[labels != self.ignore_index]
        if indices.numel() == 0:
            return None
        low, high = (int(bound) for bound in indices.aminmax())
        if low >= 0 and high < classes:
            return None
        return (
            f"got class indices from {low} to {high}; allowed are 0 to {classes - 1} (the head has {classes} classes) "
            f"and {self.ignore_index} (ignored)"
        )
