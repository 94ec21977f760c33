"""What bench.model and bench.serving compare: models by name, and the ways to run one of them."""

from __future__ import annotations

from dataclasses import dataclass

SHAPES: dict[str, dict[str, int]] = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    },
}


@dataclass(frozen=True)
class Arm:
    """One way to run a model.

    Attributes:
        name: in the table.
        attention: transformers' attn_implementation before a patch.
        patched: by fasttx.
        lengths_known: the call says ``seq_lens=``.
        mode: of torch.compile; "" runs eagerly.
    """

    name: str
    attention: str = "sdpa"
    patched: bool = False
    lengths_known: bool = False
    mode: str = ""


ARMS = (
    Arm("fasttx", patched=True),
    Arm("sdpa"),
    Arm("fasttx, lengths known", patched=True, lengths_known=True),
    Arm("eager", "eager"),
    Arm("flash_attention_2", "flash_attention_2"),
    Arm("sdpa + torch.compile", mode="default"),
    Arm("fasttx + torch.compile", patched=True, lengths_known=True, mode="default"),
    Arm("sdpa + max-autotune", mode="max-autotune"),
)
"""The first is the one that others are compared with; the second says how accurate an arm has to be."""
