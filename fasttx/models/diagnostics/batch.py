"""What a user may give as a batch: arguments by name, tensors in their order, or texts; and a model's call with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ALLOWED = (
    "a mapping of the model's arguments by name, as a tokenizer or collator gives it; a tensor, or a tuple of the "
    "arguments in their order; or a list of texts, with tokenizer= where the model brings none"
)
Arguments = Mapping[str, Any] | tuple[Any, ...]
"""What a model is called with: by name, or in order."""


def arguments_of(model: Any, root: nn.Module, batch: Any, tokenizer: Any = None) -> Arguments:
    """The arguments of `root` in a batch; texts become tokens on its device, as long as its positions allow.

    Args:
        model: as the user gave it: a pipeline, a SentenceTransformer or a CrossEncoder brings its tokenizer.
        root: the module in it that is called.
        batch: see :data:`ALLOWED`; pairs of texts count as texts.
        tokenizer: of transformers, for texts.

    Raises:
        TypeError: the batch is something else.  ValueError: there are texts and no tokenizer.
    """
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, (list, tuple)) and batch:
        if all(map(_is_text, batch)):
            return _tokens(model, root, list(batch), tokenizer)
        if isinstance(batch, tuple) or all(isinstance(x, Tensor) for x in batch):
            return tuple(batch)
    raise TypeError(f"batch: got {type(batch).__name__}; allowed is {ALLOWED}")


def _is_text(item: Any) -> bool:
    """A text, or a pair of texts."""
    pair = isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(part, str) for part in item)
    return isinstance(item, str) or pair


def _tokens(model: Any, root: nn.Module, texts: list[Any], tokenizer: Any) -> dict[str, Any]:
    found = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if not callable(found):
        raise ValueError(
            f"tokenizer: got {tokenizer!r}, and {type(model).__name__} brings none; allowed is one that takes texts, "
            "tokenizer=AutoTokenizer.from_pretrained(...) for example"
        )
    tensor = next(iter(root.parameters()), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    limit = longest(root, int(getattr(found, "model_max_length", 1 << 62)))
    encoded = found(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return {name: value.to(device) for name, value in encoded.items()}


def longest(root: nn.Module, limit: int) -> int:
    """The longest row of tokens, of at most `limit`, for which a model has positions."""
    room = []
    for name, table in root.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            first = 0 if table.padding_idx is None else table.padding_idx + 1  # where RoBERTa and its like count from
            room.append(table.num_embeddings - first)
    known = [getattr(getattr(m, "config", None), "max_position_embeddings", None) for m in root.modules()]
    room += [n for n in known if isinstance(n, int) and n > 0]
    return max(2, min([limit, *room, 1 << 20]))  # a tokenizer without a limit says 1e30


def call(model: nn.Module, arguments: Arguments) -> Any:
    """The output of the model.

    A subclass of Sequential, which SentenceTransformer and CrossEncoder are, gets a copy of a mapping as its one
    argument.
    """
    if not isinstance(arguments, Mapping):
        return model(*arguments)
    whole = isinstance(model, nn.Sequential) and type(model) is not nn.Sequential
    return model(dict(arguments)) if whole else model(**arguments)
