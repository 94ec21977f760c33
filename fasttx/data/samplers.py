"""Batches of examples of similar length, limited by their number or by their tokens."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

POOL = 50
"""Batches a rank in a pool, within which examples are sorted: as many as transformers' LengthGroupedSampler takes."""

LIMIT = 2**62
"""Ints stay below it, so that the sum of two fits into int64."""


class LengthBucketSampler(Sampler[list[int]]):
    """Samples batches of examples of similar length, for ``DataLoader(batch_sampler=...)``.

    Each epoch has every example exactly once. There are two exceptions: `drop_last` leaves some out, and batches repeat
    if there are too few examples to give every rank one. A batch has at most `batch_size` examples, and at most
    `max_tokens` tokens once it is padded to its longest. Every epoch and every rank has the same number of batches. The
    ranks' batches of one step are of similar length, so no rank waits for another. Shuffled, the step with the most
    tokens comes first: what does not fit into memory fails at once.

    By `batch_size` alone and shuffled, examples are drawn at random into pools of 50 batches a rank, or a quarter of
    the examples where these are few, and sorted within their pool. With `max_tokens` they are sorted as a whole,
    because pools would give another number of batches in every epoch: only examples of the same length change places,
    and batches their order.

    Args:
        lengths: the number of tokens of each example, from 1: ints, or an integer tensor or array (n,).
        batch_size: most examples of a batch, or None.
        max_tokens: most tokens of a padded batch, or None. Give one of the two, or both.
        shuffle: False gives the longest examples first, the same in every epoch. (Of batches limited by `max_tokens`,
            the first is not the one with the most tokens.)
        seed: decides on the order, with the epoch (:meth:`set_epoch`) and nothing else: their sum seeds it, as in
            torch's DistributedSampler.
        drop_last: drop, at random if shuffled, what does not fill a batch of `batch_size` on each rank (without
            `max_tokens`), and batches that do not fill a step of all ranks. If False, batches are halved until there
            are as many on each rank.
        num_replicas: the ranks that train on disjoint batches.
        rank: this process's, from 0 to num_replicas - 1. None gives the batches of all ranks in turn, as accelerate and
            Trainer expect, which deal the batches out themselves.

    Raises:
        ValueError: an argument is not as above; an example is longer than `max_tokens`; `drop_last` leaves nothing. The
            message names what is wrong.
    """

    def __init__(
        self,
        lengths: Iterable[int] | Tensor,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        num_replicas: int = 1,
        rank: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value is not None:
                _check_int(name, value, 1)
        if batch_size is None and max_tokens is None:
            raise ValueError("batch_size, max_tokens: got None for both; allowed is an int from 1 for one or both")
        for name, flag in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name}: got {flag!r}; allowed are True and False")
        _check_int("seed", seed, 0)
        _check_int("num_replicas", num_replicas, 1)
        if rank is not None:
            _check_int("rank", rank, 0)
            if rank >= num_replicas:
                raise ValueError(f"rank: got {rank}; allowed are None and 0 to num_replicas - 1 = {num_replicas - 1}")
        self._lengths = _checked_lengths(lengths, max_tokens)
        # Not `batch_size`: accelerate drops a whole step whose last batch is smaller than such an attribute says.
        self._most = batch_size
        self._max_tokens = max_tokens
        self._shuffle = shuffle
        self._seed = seed
        self._drop_last = drop_last
        self._num_replicas = num_replicas
        self._rank = rank
        self._epoch = 0
        self._planned: tuple[int, list[list[Tensor]]] | None = None
        if not self._steps():
            raise ValueError(
                f"drop_last: got True, which leaves nothing of {len(self._lengths)} examples for {num_replicas} ranks; "
                "allowed is it with at least one full batch for each rank"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, an int from 0, before each pass; Trainer and accelerate do so."""
        _check_int("epoch", epoch, 0)
        self._epoch = epoch

    def __len__(self) -> int:
        """The number of batches that a pass gives."""
        return len(self._steps()) * (self._num_replicas if self._rank is None else 1)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps():
            for batch in step if self._rank is None else step[self._rank : self._rank + 1]:
                yield batch.tolist()

    def _steps(self) -> list[list[Tensor]]:
        """The epoch's batches, num_replicas at a time."""
        if self._planned is None or self._planned[0] != self._epoch:
            self._planned = self._epoch, self._plan()
        return self._planned[1]

    def _plan(self) -> list[list[Tensor]]:
        count, ranks = len(self._lengths), self._num_replicas
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(count, generator=generator) if self._shuffle else torch.arange(count)
        pool = count
        if self._max_tokens is None and self._most is not None:
            step = self._most * ranks
            if self._drop_last:
                order = order[: count - count % step]
            if self._shuffle:
                pool = step * max(1, min(POOL, count // (4 * step)))
        batches = [batch for part in order.split(pool) for batch in self._cut(part)]
        surplus = len(batches) % ranks
        if surplus and self._drop_last:
            kept = torch.ones(len(batches), dtype=torch.bool)
            left_out = (
                torch.randperm(len(batches), generator=generator) if self._shuffle else torch.arange(len(batches))
            )
            kept[left_out[len(batches) - surplus :]] = False
            batches = [batch for batch, keep in zip(batches, kept.tolist()) if keep]
        elif surplus:
            self._even(batches, ranks - surplus)
        batches.sort(key=self._longest, reverse=True)
        steps = [batches[i : i + ranks] for i in range(0, len(batches), ranks)]
        if self._shuffle and steps:
            steps = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
            largest = max(range(len(steps)), key=lambda i: max(map(self._tokens, steps[i])))
            steps[0], steps[largest] = steps[largest], steps[0]
        return steps

    def _cut(self, pool: Tensor) -> Iterator[Tensor]:
        """Batches of a pool, longest first; a batch's first example is its longest."""
        lengths, ranking = self._lengths[pool].sort(descending=True, stable=True)
        pool = pool[ranking]
        start = 0
        while start < len(pool):
            size = len(pool) if self._most is None else self._most
            if self._max_tokens is not None:
                size = min(size, self._max_tokens // int(lengths[start]))
            yield pool[start : start + size]
            start += size

    def _even(self, batches: list[Tensor], missing: int) -> None:
        """Add `missing` batches: halves of the largest, or repetitions where every batch is of one example."""
        complete = len(batches)
        for i in range(missing):
            largest = max(range(len(batches)), key=lambda i: (len(batches[i]) > 1, self._tokens(batches[i])))
            batch = batches[largest]
            if len(batch) > 1:
                half = (len(batch) + 1) // 2
                batches[largest : largest + 1] = batch[:half], batch[half:]
            else:
                batches.append(batches[i % complete])

    def _longest(self, batch: Tensor) -> int:
        return int(self._lengths[batch[0]])

    def _tokens(self, batch: Tensor) -> int:
        return len(batch) * self._longest(batch)


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LIMIT:
        raise ValueError(f"{name}: got {value!r}; allowed are ints from {least}, below 2**62")


def _checked_lengths(lengths: Any, max_tokens: int | None) -> Tensor:
    """int64 (n,).

    Raises:
        ValueError: none, not ints from 1, or one above max_tokens.
    """
    if isinstance(lengths, Tensor) and lengths.is_meta:
        raise ValueError("lengths: got a tensor on meta, which holds no values; allowed is one on any other device")
    listed = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    if not isinstance(listed, Iterable) or isinstance(listed, (str, bytes)):
        raise ValueError(f"lengths: got {type(lengths).__name__}; allowed are ints, or an integer tensor or array (n,)")
    numbers = []
    for index, value in enumerate(listed):
        try:
            number = operator.index(value)
        except TypeError:
            number = 0
        if not 1 <= number < LIMIT or isinstance(value, bool):
            raise ValueError(f"lengths: got {value!r} for example {index}; allowed are ints from 1")
        if max_tokens is not None and number > max_tokens:
            raise ValueError(
                f"lengths: got {number} for example {index}; allowed are ints from 1 to max_tokens = {max_tokens}: "
                "truncate the example, leave it out, or raise max_tokens"
            )
        numbers.append(number)
    if not numbers:
        raise ValueError("lengths: got none; allowed is the length of at least one example")
    return torch.tensor(numbers, dtype=torch.int64)
