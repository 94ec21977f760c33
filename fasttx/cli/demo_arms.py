"""The demo's work without its display: embedding with two models, fine-tuning of two models, within a bound of time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.timer import synchronize

Batch = dict[str, Tensor]
Arms = dict[str, nn.Module]


@dataclass
class Settings:
    """Sizes of a demo run; `tiny` is what the tests and CI run.

    Attributes:
        seconds: about how long both parts may take; then there are fewer rounds, steps and texts. None: no bound.
    """

    seed: int = 0
    steps: int = 60
    batch_size: int = 8
    max_length: int = 128
    n_sentences: int = 32
    rounds: int = 9
    n_dev: int = 160
    learning_rate: float = 1e-4
    seconds: float | None = 180.0

    @classmethod
    def tiny(cls, seed: int = 0) -> Settings:
        return cls(seed, steps=3, batch_size=4, max_length=48, n_sentences=8, rounds=3, n_dev=12)

    def clock(self, share: float) -> Clock:
        return Clock(None if self.seconds is None else share * self.seconds)


class Clock:
    """Tells when a part's share of the time is spent."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


# ------------------------------------------------------------------------------------------------------ batches


def batches_of(tokenizer: Any, texts: list[str], size: int, max_length: int, device: torch.device) -> list[Batch]:
    """Padded batches in the order given, as a server or a plain DataLoader would make them."""
    found = []
    for i in range(0, len(texts), size):
        some = texts[i : i + size]
        batch = tokenizer(some, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        found.append({name: tensor.to(device) for name, tensor in batch.items()})
    return found


def real_share(batches: list[Batch]) -> float:
    """Real tokens over padded tokens."""
    masks = [b["attention_mask"] for b in batches]
    return float(sum(int(m.sum()) for m in masks)) / sum(m.numel() for m in masks)


# -------------------------------------------------------------------------------------------------------- times


@dataclass
class Times:
    """What two arms took, turn by turn, in milliseconds, and how much faster the second was.

    Attributes:
        median, low, high: by arm; low and high hold the middle half of the turns.
        speedup, speedup_low, speedup_high: the same of the turns' own ratios, first arm over second.
        clear: whether there are at least three turns, and the middle half of the ratios, and the medians of every other
            turn, lie on one side of 1. Else the measurement disagrees with itself, and says nothing.
        turns: how many there were.
    """

    median: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    speedup: float
    speedup_low: float
    speedup_high: float
    clear: bool
    turns: int

    @classmethod
    def of(cls, turns: dict[str, list[float]]) -> Times:
        first, second = turns.values()
        ratios = [a / b for a, b in zip(first, second, strict=True)]
        low, high = _middle_half(ratios)
        judges = (low, high, statistics.median(ratios[::2]), statistics.median(ratios[1::2] or ratios))
        spreads = {name: _middle_half(each) for name, each in turns.items()}
        return cls(
            median={name: statistics.median(each) for name, each in turns.items()},
            low={name: spread[0] for name, spread in spreads.items()},
            high={name: spread[1] for name, spread in spreads.items()},
            speedup=statistics.median(ratios),
            speedup_low=low,
            speedup_high=high,
            clear=len(ratios) > 2 and (min(judges) > 1 or max(judges) < 1),
            turns=len(ratios),
        )


def _middle_half(values: list[float]) -> tuple[float, float]:
    """The first and third quartile; of fewer than four values the least and the largest."""
    ordered, quarter = sorted(values), len(values) // 4
    return ordered[quarter], ordered[-1 - quarter]


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time up to a synchronisation: what a user waits."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def _in_turn(arms: Arms, number: int) -> list[str]:
    """The names of the arms; every other turn begins with the other arm."""
    return list(arms) if number % 2 == 0 else list(reversed(list(arms)))


# -------------------------------------------------------------------------------------------------------- arms


@dataclass
class Embedding:
    """Result of the first part. Times are for all texts; the other figures compare the two arms."""

    n_sentences: int
    real_share: float
    max_error: float
    min_cosine: float
    times: Times


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Mean of the last hidden states over real tokens, normalised: what all-MiniLM-L6-v2 was trained to give."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).float()
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def compare_embedding(
    arms: Arms,
    batches: list[Batch],
    device: torch.device,
    rounds: int,
    first: Clock,
    clock: Clock,
    advance: Callable[[], None],
) -> Embedding:
    """Embeds everything with both arms: parity of the results, then times, batch by batch in turn.

    The first pass is not timed. Where its time, `first`, is short it takes fewer batches; and then there are fewer
    rounds, but at least three.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in arms}
    for batch in batches:
        for name, model in arms.items():
            found[name].append(embed(model, batch))
        if first.over():
            break
    batches = batches[: len(next(iter(found.values())))]
    advance()
    turns: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        spent = dict.fromkeys(arms, 0.0)
        for i, batch in enumerate(batches):
            for name in _in_turn(arms, number + i):
                spent[name] += _milliseconds(lambda m=arms[name], b=batch: embed(m, b), device)  # type: ignore[misc]
        for name, milliseconds in spent.items():
            turns[name].append(milliseconds)
        advance()
        if clock.over() and number >= 2:
            break
    plain, patched = (torch.cat(each) for each in found.values())
    return Embedding(
        n_sentences=len(plain),
        real_share=real_share(batches),
        max_error=float((plain - patched).abs().max()),
        min_cosine=float((plain * patched).sum(-1).min()),
        times=Times.of(turns),
    )


@dataclass
class Training:
    """Result of the second part, by arm; `times` leaves the first step (compilation, warm-up) out."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    times: Times | None = None
    max_loss_gap: float = 0.0
    real_share: float = 0.0
    dev_accuracy: dict[str, float] = field(default_factory=dict)
    n_dev: int = 0


def fine_tune(
    arms: Arms,
    batches: list[Batch],
    learning_rate: float,
    device: torch.device,
    clock: Clock,
    advance: Callable[[], None],
) -> Training:
    """Trains both arms on the same batches, a step of each in turn; where time is short fewer, but at least four."""
    losses: dict[str, list[float]] = {name: [] for name in arms}
    turns: dict[str, list[float]] = {name: [] for name in arms}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=learning_rate) for name, model in arms.items()}

    def step(name: str, batch: Batch) -> None:
        model = arms[name].train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers[name].step()
        optimizers[name].zero_grad()
        losses[name].append(float(loss.detach()))

    for i, batch in enumerate(batches):
        for name in _in_turn(arms, i):
            turns[name].append(_milliseconds(lambda n=name, b=batch: step(n, b), device))  # type: ignore[misc]
        advance()
        if clock.over() and i >= 3:
            break
    first, second = losses.values()
    return Training(
        losses=losses,
        times=Times.of({name: each[1:] or each for name, each in turns.items()}),
        max_loss_gap=max(abs(a - b) for a, b in zip(first, second, strict=True)),
        real_share=real_share(batches[: len(first)]),
    )


def judge(training: Training, arms: Arms, batches: list[Batch], clock: Clock, advance: Callable[[], None]) -> None:
    """Puts the accuracies of both arms on the same texts into `training`; fewer batches where time is short."""
    right = dict.fromkeys(arms, 0)
    for batch in batches:
        for name, model in arms.items():
            right[name] += n_right(model.eval(), batch)
        training.n_dev += len(batch["labels"])
        advance()
        if clock.over():
            break
    training.dev_accuracy = {name: n / training.n_dev for name, n in right.items()}


def n_right(model: nn.Module, batch: Batch) -> int:
    """How many labels of a batch the model guesses."""
    with torch.inference_mode():
        logits = model(**{name: t for name, t in batch.items() if name != "labels"}).logits
        return int((logits.argmax(-1) == batch["labels"]).sum())
