"""The batches that bench.model compares: which model, which lengths, which task, and which target they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .lengths import draw

if TYPE_CHECKING:
    import torch

    from .contenders import Batch

TRAINING, INFERENCE, BOTH_WAYS = "training", "inference", "forward and backward"
TASKS = (TRAINING, INFERENCE, BOTH_WAYS)
TOKENS, CPU_TOKENS = 16384, 2048
"""Padded tokens of a batch where no size is given."""


@dataclass(frozen=True)
class ModelCase:
    """One batch of one model; `target` names the rows of the project's targets that it answers, `layers` cuts it."""

    model: str
    batch: int
    seqlen: int
    lengths: str
    tasks: tuple[str, ...]
    target: str = ""
    layers: int | None = None


CASES = (
    ModelCase("bert-base", 32, 512, "wikipedia", (TRAINING,)),
    ModelCase("bert-large", 32, 512, "wikipedia", (TRAINING,), "D1 D2"),
    ModelCase("bert-base", 128, 128, "full", (INFERENCE,), "E2"),
    ModelCase("bert-large", 64, 384, "squad", (INFERENCE,), "E1"),
    *(
        ModelCase(model, TOKENS // seqlen, seqlen, "full", (TRAINING,), "D3")
        for model in ("bert-base", "bert-large")
        for seqlen in (128, 512)
    ),
    ModelCase("bert-base", 32, 512, "wikipedia", (INFERENCE,)),
    ModelCase("minilm", 128, 128, "passages", (INFERENCE, TRAINING)),
    ModelCase("minilm", 32, 512, "passages", (INFERENCE, TRAINING)),
    ModelCase("bert-base", 128, 128, "passages", (INFERENCE, TRAINING)),
    ModelCase("bert-large", 128, 128, "passages", (INFERENCE, TRAINING)),
    ModelCase("minilm", 128, 128, "full", (INFERENCE, TRAINING)),
    ModelCase("minilm", 32, 512, "full", (INFERENCE, TRAINING)),
)
"""On a GPU, the most telling ones first."""

CPU_CASES = tuple(
    ModelCase("bert-base", batch, seqlen, lengths, (INFERENCE, BOTH_WAYS, TRAINING), "G1")
    for batch, seqlen, lengths in ((16, 128, "passages"), (4, 512, "wikipedia"), (16, 128, "full"))
)
QUICK_CASES = tuple(
    ModelCase("bert-base", 8, 128, lengths, (INFERENCE, BOTH_WAYS, TRAINING), "G1", layers=2)
    for lengths in ("passages", "full")
)
REHEARSAL_CASES = (ModelCase("tiny", 2, 12, "even", (TRAINING, INFERENCE)),)


def make_batch(
    case: ModelCase, task: str, vocab: int, device: torch.device, seed: int = 0
) -> tuple[Batch, tuple[int, ...]]:
    """Random tokens and their lengths; for training labels on 15 % of the real tokens, in each row at least one."""
    import torch

    lengths = draw(case.lengths, case.batch, case.seqlen, seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, int(lengths.max()))
    ids = torch.randint(5, vocab, shape, generator=generator)
    mask = torch.arange(shape[1]) < lengths[:, None]
    found = {"input_ids": ids * mask, "attention_mask": mask.long()}
    if task == TRAINING:
        chosen = (torch.rand(shape, generator=generator) < 0.15) & mask
        chosen[:, 0] = True
        found["labels"] = torch.where(chosen, ids, torch.full_like(ids, -100))
    return {name: tensor.to(device) for name, tensor in found.items()}, tuple(lengths.tolist())


def select(
    device: torch.device,
    *,
    targets: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    seqlens: Sequence[int] | None = None,
    lengths: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    batch: int | None = None,
) -> list[ModelCase] | None:
    """The cases that answer `targets`; else all combinations of what is named; None where nothing is.

    Raises:
        ValueError: no case answers these targets.
    """
    if targets:
        found = [case for case in (*CASES, *CPU_CASES) if set(targets) & set(case.target.split())]
        if not found:
            known = sorted({name for case in (*CASES, *CPU_CASES) for name in case.target.split()})
            raise ValueError(f"target: got {' '.join(targets)}; allowed are {', '.join(known)}")
        return found
    if not any((models, seqlens, lengths, tasks, batch)):
        return None
    tokens = TOKENS if device.type == "cuda" else CPU_TOKENS
    return [
        ModelCase(model, batch or max(1, tokens // seqlen), seqlen, name, tuple(tasks or (TRAINING, INFERENCE)))
        for model in models or ("bert-base",)
        for seqlen in seqlens or (128, 512)
        for name in lengths or ("wikipedia", "full")
    ]
