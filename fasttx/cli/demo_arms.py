"""The demo's work without its display: embedding with two models, fine-tuning of two models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.timer import interleaved, synchronize

Batch = dict[str, Tensor]


@dataclass
class Settings:
    """Sizes of a demo run; `tiny` is what the tests and CI run."""

    seed: int = 0
    steps: int = 60
    batch_size: int = 8
    max_length: int = 128
    n_sentences: int = 32
    rounds: int = 5
    n_dev: int = 160
    learning_rate: float = 1e-4

    @classmethod
    def tiny(cls, seed: int = 0, steps: int | None = None) -> Settings:
        return cls(seed, steps or 3, batch_size=4, max_length=48, n_sentences=8, rounds=3, n_dev=12)


# ------------------------------------------------------------------------------------------------------ batches


def batches_of(tokenizer: Any, texts: list[str], size: int, max_length: int, device: torch.device) -> list[Batch]:
    """Padded batches in the order given, as a server or a plain DataLoader would make them."""
    found = []
    for i in range(0, len(texts), size):
        batch = tokenizer(
            texts[i : i + size], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        found.append({name: tensor.to(device) for name, tensor in batch.items()})
    return found


def real_share(batches: list[Batch]) -> float:
    """Real tokens over padded tokens."""
    masks = [b["attention_mask"] for b in batches]
    return float(sum(int(m.sum()) for m in masks)) / sum(m.numel() for m in masks)


# -------------------------------------------------------------------------------------------------------- arms


@dataclass
class Embedding:
    """Result of the first part. Times are milliseconds for all sentences; the other figures compare the two arms."""

    n_sentences: int
    real_share: float
    max_error: float
    min_cosine: float
    milliseconds: dict[str, float]
    speedup: float


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Mean of the last hidden states over real tokens, normalised: what all-MiniLM-L6-v2 was trained to give."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def compare_embedding(arms: dict[str, nn.Module], batches: list[Batch], device: torch.device, rounds: int) -> Embedding:
    """Embeds everything with both arms: parity of the results, then interleaved times."""
    plain, patched = (torch.cat([embed(model, batch) for batch in batches]) for model in arms.values())
    timings = interleaved(
        {name: lambda _, m=model: [embed(m, b) for b in batches] for name, model in arms.items()}, device, rounds=rounds
    )
    milliseconds = {name: t.median for name, t in timings.items()}
    first, second = milliseconds.values()
    return Embedding(
        n_sentences=len(plain),
        real_share=real_share(batches),
        max_error=float((plain - patched).abs().max()),
        min_cosine=float((plain * patched).sum(-1).min()),
        milliseconds=milliseconds,
        speedup=first / second,
    )


@dataclass
class Training:
    """Result of the second part, by arm; `step_ms` is the median, the speed-up the median of the steps' own ratios."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    step_ms: dict[str, float] = field(default_factory=dict)
    dev_accuracy: dict[str, float] = field(default_factory=dict)
    max_loss_gap: float = 0.0
    real_share: float = 0.0
    speedup: float = 0.0


def fine_tune(
    arms: dict[str, nn.Module],
    batches: list[Batch],
    dev: list[Batch],
    learning_rate: float,
    device: torch.device,
    advance: Callable[[], None],
) -> Training:
    """Trains both arms on the same batches, a step of each in turn, and evaluates them on `dev`.

    The step times are wall-clock times up to a synchronisation; the first step (compilation, warm-up) is left out.
    """
    result = Training(losses={name: [] for name in arms}, real_share=real_share(batches))
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=learning_rate) for name, model in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i, batch in enumerate(batches):
        for name in list(arms) if i % 2 == 0 else reversed(list(arms)):
            model, optimizer = arms[name].train(), optimizers[name]
            synchronize(device)
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e3)
            result.losses[name].append(float(loss.detach()))
        advance()
    for name, model in arms.items():
        kept = times[name][1:] or times[name]
        result.step_ms[name] = statistics.median(kept)
        result.dev_accuracy[name] = accuracy(model.eval(), dev)
    first, second = times.values()
    result.speedup = statistics.median(
        [a / b for a, b in zip(first, second, strict=True)][1:] or [first[0] / second[0]]
    )
    result.max_loss_gap = max(abs(a - b) for a, b in zip(*result.losses.values(), strict=True))
    return result


def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    right = total = 0
    with torch.inference_mode():
        for batch in batches:
            logits = model(**{name: t for name, t in batch.items() if name != "labels"}).logits
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            total += len(logits)
    return right / total
