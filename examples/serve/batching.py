"""Texts of many requests as batches of about as many tokens: the queue is bounded, waiting is bounded, no text is lost.

Everything here runs in the event loop's thread, so nothing needs a lock. Texts are tokenised in a pool of threads, and
the model runs in a thread of its own: while one batch is computed, the next one is tokenised and collected.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

log = logging.getLogger("serve")


class RefusedError(Exception):
    """There is no room for a request, or the server stops; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelError(Exception):
    """The model raised an error for this text, alone in a batch."""


class Job:
    """The texts of one request. The first ``taken`` are in batches, ``left`` have no result yet."""

    def __init__(self, count: int, result: asyncio.Future[list[Any]]) -> None:
        self.count, self.left, self.taken = count, count, 0
        self.since = time.monotonic()
        self.result = result
        self.items: Sequence[Any] = ()
        self.rows: list[Any] = [None] * count


class Batcher:
    """Collects the texts of requests and runs the model on them.

    Args:
        model: takes a list of tokenised texts, whose ``len()`` is their number of tokens, and gives a row for each.
        max_tokens: of a batch; a longer text runs alone.
        max_wait: seconds that a text waits for others while the model has nothing to do.
        max_waiting: texts that may wait; a request that would exceed it is refused.
        tokenisers: threads that tokenise.
        on_batch: called after each batch with its items, the seconds that each waited, and those of the model.
    """

    def __init__(
        self,
        model: Callable[[list[Any]], Sequence[Any]],
        *,
        max_tokens: int,
        max_wait: float,
        max_waiting: int,
        tokenisers: int = 2,
        on_batch: Callable[[list[Any], list[float], float], None] = lambda items, waited, seconds: None,
    ) -> None:
        self.model, self.on_batch = model, on_batch
        self.max_tokens, self.max_wait, self.max_waiting = max_tokens, max_wait, max_waiting
        self.pool = ThreadPoolExecutor(tokenisers, thread_name_prefix="tokenise")
        self.model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.jobs: set[Job] = set()
        """Those that have no answer yet, from the moment they are let in."""
        self.queue: deque[Job] = deque()
        """Those with tokenised texts that are in no batch yet."""
        self.waiting = self.tokens = 0  # texts let in and in no batch yet; tokens of the queue
        self.stopping = False
        self.texts_per_second = 0.0
        self.more = asyncio.Event()

    async def run(self, count: int, tokenise: Callable[[], Sequence[Any]]) -> list[Any]:
        """The model's rows for the `count` texts that `tokenise` gives. Cancel it, and what has not begun is dropped.

        Raises:
            RefusedError: the queue is full, or the server stops.
            ModelError: the model raised an error for one of the texts.
        """
        if self.stopping:
            raise RefusedError("the server is stopping; ask another one, or later", 5)
        if self.waiting + count > self.max_waiting:
            seconds = math.ceil(self.waiting / self.texts_per_second) if self.texts_per_second else 1
            message = f"{self.waiting} texts wait already, and {count} more are over the limit of {self.max_waiting}"
            raise RefusedError(message, min(max(seconds, 1), 60))
        loop = asyncio.get_running_loop()
        job = Job(count, loop.create_future())
        self.jobs.add(job)
        self.waiting += count
        try:
            job.items = await loop.run_in_executor(self.pool, tokenise)
            self.queue.append(job)
            self.tokens += sum(map(len, job.items))
            self.more.set()
            return await job.result
        finally:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        """Forgets a job: it has its answer, failed, or nobody wants it any more."""
        self.jobs.discard(job)
        self.waiting -= job.count - job.taken
        if job in self.queue:
            self.queue.remove(job)
            self.tokens -= sum(map(len, job.items[job.taken :]))

    async def idle(self) -> None:
        """Waits until every job that was let in has its answer."""
        while self.jobs:
            await asyncio.sleep(0.02)

    async def work(self) -> None:
        """Runs one batch after another, for as long as the server lives."""
        while True:
            await self._ripe()
            if batch := self._take():
                await self._compute(batch)

    async def _ripe(self) -> None:
        """Returns when there is a full batch, or a text that has waited for long enough."""
        while self.tokens < self.max_tokens:
            left = min((job.since for job in self.queue), default=math.inf) + self.max_wait - time.monotonic()
            if left <= 0:
                return
            self.more.clear()
            try:
                await asyncio.wait_for(self.more.wait(), left if self.queue else None)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[tuple[Job, int]]:
        """The next batch, first come first served; a request too long for one batch then lets the others go first."""
        batch: list[tuple[Job, int]] = []
        room = self.max_tokens
        while self.queue:
            job, before = self.queue[0], len(batch)
            while job.taken < job.count and (not batch or len(job.items[job.taken]) <= room):
                batch.append((job, job.taken))
                room -= len(job.items[job.taken])
                job.taken += 1
            taken = [len(job.items[index]) for _, index in batch[before:]]
            self.waiting -= len(taken)
            self.tokens -= sum(taken)
            if job.taken < job.count:
                self.queue.rotate(-1 if taken else 0)
                break
            self.queue.popleft()
        return batch

    async def _compute(self, batch: list[tuple[Job, int]]) -> None:
        """Runs a batch. If the model raises an error, halves of it run, so that one text's fault is its request's."""
        batch = [(job, index) for job, index in batch if job in self.jobs and not job.result.done()]
        if not batch:
            return
        items, began = [job.items[index] for job, index in batch], time.monotonic()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self.model_thread, self.model, items)
            if len(rows) != len(items):
                raise RuntimeError(f"the model gave {len(rows)} rows for {len(items)} texts")
        except Exception as problem:
            log.exception("the model failed on a batch of %d texts", len(batch))
            if len(batch) > 1:
                await self._compute(batch[: len(batch) // 2])
                await self._compute(batch[len(batch) // 2 :])
            else:
                ((job, index),) = batch
                if not job.result.done():
                    job.result.set_exception(ModelError(f"text {index}: {type(problem).__name__}: {problem}"))
            return
        seconds = time.monotonic() - began
        self.texts_per_second += (len(batch) / max(seconds, 1e-6) - self.texts_per_second) / 8
        self.on_batch(items, [began - job.since for job, _ in batch], seconds)
        for (job, index), row in zip(batch, rows):
            job.rows[index] = row
            job.left -= 1
            if not job.left and not job.result.done():
                job.result.set_result(job.rows)
