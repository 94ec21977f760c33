"""The batches that bench.cpu compares: which model, which kind of batch, and what is done with it."""

from __future__ import annotations

from dataclasses import dataclass

RAGGED, ALIKE, ONE = "ragged", "of like length", "one sentence"
KINDS = (RAGGED, ALIKE, ONE)
INFERENCE, TRAINING = "inference", "training"


@dataclass(frozen=True)
class CpuCase:
    """Batches of one kind for one model.

    Attributes:
        model: by name, as in bench/arms.py.
        kind: `RAGGED`, sentences as they come; `ALIKE`, sorted by length before they are cut into batches; `ONE`, one
            sentence at a time.
        task: `INFERENCE`, embeddings; `TRAINING`, forward, loss and backward of a masked language model's encoder.
        layers: in place of the model's own number.
        size: sentences a batch, but for `ONE`.
        batches: timed in turn.
    """

    model: str
    kind: str
    task: str
    layers: int | None = None
    size: int = 32
    batches: int = 3

    @property
    def name(self) -> str:
        return f"{self.model}, {self.task}, {self.kind}"


CASES = (
    *(CpuCase("minilm", kind, INFERENCE) for kind in KINDS),
    *(CpuCase("minilm", kind, TRAINING, batches=2) for kind in (RAGGED, ALIKE)),
    *(CpuCase("bert-base", kind, INFERENCE, layers=3, size=16) for kind in KINDS),
    *(CpuCase("bert-base", kind, TRAINING, layers=3, size=16, batches=1) for kind in (RAGGED, ALIKE)),
)
QUICK_CASES = tuple(CpuCase("minilm", kind, INFERENCE, batches=1) for kind in KINDS)
REHEARSAL_CASES = tuple(
    CpuCase("tiny", kind, task, size=4, batches=1) for task in (INFERENCE, TRAINING) for kind in (RAGGED, ONE)
)
