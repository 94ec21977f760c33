"""embedding_layer_norm at given shapes, and its peers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..op_case import BF16, OpCase, Workload, randn
from ..peers import written_out


def embedding_layer_norm(
    name: str,
    batch: int,
    seqlen: int,
    n_cols: int,
    vocab: int = 30522,
    dtype: torch.dtype = BF16,
    *,
    types: int = 2,
    dropout_p: float = 0.0,
) -> Workload:
    """What a BERT begins with. The peers differentiate what the op does: the sum, the types, weight and bias. Adding up
    the rows of the word and position tables is PyTorch's kernel with the op too, and measured with neither.
    """

    def build(device: torch.device, size: str, seed: int) -> OpCase:
        b, n, cols, rows = {
            "full": (batch, seqlen, n_cols, vocab),
            "check": (2, 32, n_cols, 999),
            "tiny": (2, 5, min(n_cols, 100), 50),
        }[size]
        word, position = randn(device, dtype, seed, rows, cols), randn(device, dtype, seed + 1, n, cols)
        leaves = tuple(randn(device, dtype, seed + 2 + i, *s) for i, s in enumerate([(types, cols), (cols,), (cols,)]))
        generator = torch.Generator(device=device).manual_seed(seed)
        ids = torch.randint(0, rows, (b * n,), generator=generator, device=device)
        kinds, places = ids % types, torch.arange(n, device=device)
        rng = torch.tensor([seed + 7, 3], device=device) if dropout_p else None

        def embeddings(token_type: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            z = F.embedding(ids.view(b, n), word) + F.embedding(kinds.view(b, n), token_type)
            out = F.layer_norm(z + F.embedding(places, position), (cols,), weight, bias, 1e-12)
            return (F.dropout(out, dropout_p) if dropout_p else out).view(b * n, cols)

        peers = written_out(embeddings, leaves, judged=False)  # the tables, which stay as they are, are no inputs
        token_type, weight, bias = leaves
        args = [ids, word, places, position, kinds, token_type, weight, bias, None, rng, dropout_p, 1e-12, dtype]
        return OpCase(args, peers)

    return Workload(name, "embedding_layer_norm", build, dropout_p > 0)
