"""The one timer: peers interleaved in one process, medians with their spread, cold and hot inputs.

A call to be timed takes a slot number: slot i uses the i-th copy of its inputs.  A cold measurement rotates over enough
copies that together exceed the last-level cache, a hot one stays on slot 0.  On a GPU a batch of calls is enclosed by
CUDA events behind a sleeping kernel, so that launches queue up and the device time is not the host's; the
host-inclusive time of the same batch stands beside it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[int], object]

L2_BYTES = 128 << 20
"""Assumed size of the last-level cache where the device does not tell: more than any GPU or desktop CPU here has."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call.

    Attributes:
        median, low, high: of the rounds; low and high are the first and third quartile.
        wall: median with the host's share (equal to `median` on a CPU).
        rounds, inner: how many batches, and calls a batch.
    """

    median: float
    low: float
    high: float
    wall: float
    rounds: int
    inner: int


def copies_for(device: torch.device, nbytes: int, limit: int = 64) -> int:
    """How many copies of `nbytes` bytes of inputs are twice the last-level cache; at least 1, at most `limit`."""
    cache = L2_BYTES
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(limit, -(-2 * cache // max(1, nbytes))))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _batch(
    call: Call, slots: list[int], device: torch.device, clock: Callable[[], float] | None = None
) -> tuple[float, float]:
    """(device ms, wall ms) a call over one batch."""
    if device.type != "cuda":
        now = clock or time.perf_counter
        start = now()
        for slot in slots:
            call(slot)
        spent = (now() - start) * 1e3 / len(slots)
        return spent, spent
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for slot in slots:
        call(slot)
    torch.cuda.synchronize(device)
    wall = (time.perf_counter() - start) * 1e3 / len(slots)
    # The sleep must outlast the launches (about 2 cycles a nanosecond); past a second it would only cost time.
    torch.cuda._sleep(min(2_000_000_000, int(wall * len(slots) * 2_000_000)))
    first.record()
    for slot in slots:
        call(slot)
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / len(slots), wall


def interleaved(
    peers: Mapping[str, Call],
    device: torch.device,
    *,
    rounds: int = 15,
    copies: int = 1,
    batch_ms: float = 5.0,
    seconds: float | None = None,
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """Times every peer in turn, round after round, so that drift of clocks and heat meets all of them alike.

    Args:
        peers: name -> call; each is called once before anything is timed.
        device: where the calls run.
        rounds: batches a peer; every round has an order of its own, in which no peer follows itself, as its data
            would still be in the caches.
        copies: slots to rotate over; 1 measures hot.
        batch_ms: a batch repeats a call until it lasts about this long.
        seconds: stop after the round in which this much time is spent (at least 3 rounds are made).
        clock: seconds, on a CPU; None for ``time.perf_counter``. ``time.process_time`` leaves out what other work
            takes, but adds up threads.

    Returns:
        name -> :class:`Timing`, in the order given.

    Raises:
        ValueError: no peers, or fewer than one round.
    """
    if not peers or rounds < 1:
        raise ValueError(
            f"peers and rounds: got {len(peers)} peers and {rounds} rounds; allowed is at least one of each"
        )
    inner: dict[str, int] = {}
    for name, call in peers.items():
        call(0)
        call(copies - 1)
        _, once = _batch(call, [0], device)
        inner[name] = max(1, min(200, round(batch_ms / max(once, 1e-3))))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    names, begun, slot, shuffle = list(peers), time.perf_counter(), 0, random.Random(0).shuffle
    for i in range(rounds):
        last = names[-1]
        shuffle(names)
        if names[0] == last:
            names.append(names.pop(0))
        for name in names:
            slots = [(slot + j) % copies for j in range(inner[name])]
            slot += inner[name]
            found[name].append(_batch(peers[name], slots, device, clock))
        if seconds is not None and i >= 2 and time.perf_counter() - begun > seconds:
            break
    return {name: _summary(found[name], inner[name]) for name in peers}


def _summary(batches: list[tuple[float, float]], inner: int) -> Timing:
    times = sorted(t for t, _ in batches)
    quarter = len(times) // 4
    return Timing(
        median=statistics.median(times),
        low=times[quarter],
        high=times[-1 - quarter],
        wall=statistics.median(w for _, w in batches),
        rounds=len(times),
        inner=inner,
    )
