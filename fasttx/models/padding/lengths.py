"""Lengths that the caller of a padded batch knows: ``seq_lens=``, checked, and the mask that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...functional._packing import first_tokens
from ...ops.checks import values_may_be_read
from ..attention.interface import IMPLEMENTATION, refuse_lengths_alone
from ..tracing import captured, graph_in_the_making


def checked_lengths(seq_lens: Any, hidden: Tensor) -> Sequence[int] | Tensor:
    """`seq_lens` as Python ints, or as it is where its values must not be read: a tensor in a graph in the making.

    Raises:
        ValueError: not one length from 0 to seqlen a row.
    """
    batch, seqlen = hidden.shape[:2]
    given: Any = seq_lens
    if isinstance(seq_lens, Tensor):
        if seq_lens.device.type != "cpu":
            raise ValueError(f"seq_lens: got a tensor on {seq_lens.device}; allowed are ints or a tensor on the CPU")
        if torch.compiler.is_compiling() and seq_lens.dim() == 1 and seq_lens.shape[0] == batch:
            return seq_lens
        given = seq_lens.tolist()
    if not isinstance(given, (list, tuple)) or len(given) != batch:
        size = f"{len(given)} of them" if isinstance(given, (list, tuple)) else type(given).__name__
        raise ValueError(f"seq_lens: got {size}; allowed is one length for each of the {batch} rows of the batch")
    for length in given:
        if isinstance(length, bool) or not isinstance(length, (int, torch.SymInt)) or not 0 <= length <= seqlen:
            raise ValueError(f"seq_lens: got {length!r}; allowed are ints from 0 to {seqlen}, the padded length")
    return given


def mask_with_lengths(config: Any, mask: Tensor | None, lengths: Sequence[int] | Tensor, hidden: Tensor) -> Any:
    """The mask of a call with lengths: the one given, or one that says the same as they do.

    Raises:
        ValueError: the mask says something else (looked at on a CPU, and on a GPU with FASTTX_CHECK=1); there is no
            mask, and it is not ours to make.
    """
    if mask is not None:
        readable = values_may_be_read(mask.device) and not graph_in_the_making(mask)
        if (
            readable
            and mask.shape == hidden.shape[:2]
            and not torch.equal(mask != 0, first_tokens(lengths, hidden.shape[1], mask.device))
        ):
            raise ValueError(
                "seq_lens: got other tokens than attention_mask marks; allowed are the numbers of real tokens of rows "
                "that are padded on the right"
            )
        return mask
    if getattr(config, "is_decoder", False) or config._attn_implementation != IMPLEMENTATION or captured(hidden):
        refuse_lengths_alone(lengths, hidden.shape[1])
        return None
    return first_tokens(lengths, hidden.shape[1], hidden.device)
