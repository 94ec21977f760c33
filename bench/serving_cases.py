"""The requests that bench.serving sends: to which model, how long, in which batches, and which target they answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingCase:
    """Requests to one model. Without `text` they are token ids of exactly `limit`, and more arms take part."""

    model: str
    limit: int
    sizes: tuple[int, ...]
    requests: int
    target: str = ""
    text: bool = True


CASES = (
    ServingCase("bert-base", 128, (1,), 64, "E3", text=False),
    ServingCase("minilm", 256, (1, 8, 64), 256),
    ServingCase("bert-base", 512, (1, 8, 64), 256),
)
QUICK_CASES = (ServingCase("minilm", 256, (1, 8), 24),)
REHEARSAL_CASES = (ServingCase("tiny", 48, (1, 4), 8), ServingCase("tiny", 16, (1,), 2, text=False))
