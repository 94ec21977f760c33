"""EmbeddingLayerNorm: the embeddings that a BERT begins with, with parts named as in transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional._checks import check_dropout_p
from ..functional._embedding_layer_norm import embedding_layer_norm


class EmbeddingLayerNorm(torch.nn.Module):
    """Adds word, position and token-type embeddings, then layer norm and dropout.

    See :func:`fasttx.functional.embedding_layer_norm`. The parts have the names of those in transformers'
    BertEmbeddings, so state dictionaries fit either. The parts are read and not called: hooks on them do not run.

    Args:
        num_embeddings: rows of the word table.
        embedding_dim: columns of every table.
        max_position_embeddings: rows of the position table. None leaves positions out.
        type_vocab_size: rows of the token-type table. None leaves token types out.
        padding_idx: the row of the word table that begins as zeros and gets no gradient.
        p: probability of zeroing an element of the output in training, in [0, 1).
        eps: added to the variance.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: p is not a number in [0, 1).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_position_embeddings: int | None = 512,
        type_vocab_size: int | None = 2,
        padding_idx: int | None = None,
        p: float = 0.1,
        eps: float = 1e-12,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_dropout_p(p, "p")
        super().__init__()

        def table(rows: int | None) -> torch.nn.Embedding | None:
            if rows is None:
                return None
            return torch.nn.Embedding(rows, embedding_dim, device=device, dtype=dtype)

        words = torch.nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        self.word_embeddings = words
        self.position_embeddings = table(max_position_embeddings)
        self.token_type_embeddings = table(type_vocab_size)
        self.LayerNorm = torch.nn.LayerNorm(embedding_dim, eps, device=device, dtype=dtype)
        self.p = p

    def forward(
        self,
        input: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        row_index: Tensor | None = None,
    ) -> Tensor:
        """Token ids of any shape -> (*shape, embedding_dim). Equal numbers in `row_index` drop the same columns."""
        position, token_type = self.position_embeddings, self.token_type_embeddings
        return embedding_layer_norm(
            input,
            self.word_embeddings.weight,
            self.LayerNorm.weight,
            self.LayerNorm.bias,
            position_embeddings=None if position is None else position.weight,
            position_ids=position_ids,
            token_type_embeddings=None if token_type is None else token_type.weight,
            token_type_ids=token_type_ids,
            padding_idx=self.word_embeddings.padding_idx,
            dropout_p=self.p,
            eps=self.LayerNorm.eps,
            training=self.training,
            row_index=row_index,
        )

    def extra_repr(self) -> str:
        return f"p={self.p}"
