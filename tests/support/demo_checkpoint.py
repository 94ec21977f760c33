"""A checkpoint and a corpus so small that the demo takes a second."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "text", "another", "the"]


def small_checkpoint(directory: Path) -> Path:
    """A BERT of a few thousand weights that the demo takes."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return directory


def small_corpus(path: Path) -> Path:
    path.write_text("a\tone text\nb\tanother text\n", encoding="utf-8")
    return path
