"""Batches of tokens from texts of many requests: bounds, order, what is dropped, and whose a fault is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from batching import Batcher, ModelError, RefusedError


class Model:
    """Its tokenised texts are strings of a character a token; it gives them in upper case, and cannot read "!"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, items: list[str]) -> list[str]:
        self.batches.append(items)
        if any("!" in item for item in items):
            raise ValueError("got '!'")
        return [item.upper() for item in items]


def run(test: Callable[[Batcher, Model], Awaitable[Any]], **options: Any) -> tuple[Any, Model, Batcher]:
    model = Model()

    async def inside() -> tuple[Any, Batcher]:
        batcher = Batcher(model, **(dict(max_tokens=10, max_wait=0.0, max_waiting=1000) | options))
        working = asyncio.create_task(batcher.work())
        result = await asyncio.wait_for(test(batcher, model), 120)
        working.cancel()
        return result, batcher

    result, batcher = asyncio.run(inside())
    assert batcher.waiting == batcher.tokens == 0 and not batcher.jobs and not batcher.queue
    return result, model, batcher


def send(batcher: Batcher, *texts: str) -> asyncio.Task[list[str]]:
    return asyncio.ensure_future(batcher.run(len(texts), lambda: list(texts)))


async def queued(batcher: Batcher, count: int) -> None:
    while len(batcher.queue) < count:
        await asyncio.sleep(0.001)


def test_each_request_gets_its_own_rows_and_no_batch_is_over_the_limit() -> None:
    chosen = random.Random(0)
    requests = [["a" * chosen.randint(1, 12) for _ in range(chosen.randint(1, 9))] for _ in range(60)]
    requests[7][0] = "b" * 40

    async def test(batcher: Batcher, model: Model) -> list[list[str]]:
        return await asyncio.gather(*(send(batcher, *texts) for texts in requests))

    found, model, _ = run(test)
    assert found == [[text.upper() for text in texts] for texts in requests]
    assert all(sum(map(len, batch)) <= 10 or len(batch) == 1 for batch in model.batches)
    assert len(model.batches) < sum(map(len, requests)) / 1.2  # several texts to a batch
    assert ["b" * 40] in model.batches


def test_a_full_batch_does_not_wait() -> None:
    async def test(batcher: Batcher, model: Model) -> list[list[str]]:
        return await asyncio.gather(send(batcher, "aaaaa"), send(batcher, "bbbbb"))

    _, model, _ = run(test, max_wait=3600)
    assert model.batches == [["aaaaa", "bbbbb"]]


def test_a_text_alone_waits_no_longer_than_it_may() -> None:
    async def test(batcher: Batcher, model: Model) -> list[str]:
        return await send(batcher, "a")

    seen: list[float] = []
    assert run(test, max_wait=0.2, on_batch=lambda items, waited, seconds: seen.extend(waited))[0] == ["A"]
    assert seen[0] >= 0.2  # and it came, although no other text did


def test_a_long_request_lets_a_short_one_go_first() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        batcher.max_tokens = 1000  # nothing is ripe yet
        long = send(batcher, *["a" * 10] * 20)
        await queued(batcher, 1)
        short = send(batcher, "bb")
        await queued(batcher, 2)
        batcher.max_tokens, batcher.max_wait = 10, 0.0
        batcher.more.set()
        await asyncio.gather(long, short)

    _, model, _ = run(test, max_wait=3600)
    assert ["bb"] in model.batches[:3] and len(model.batches) == 21


def test_what_nobody_waits_for_is_dropped_and_the_others_are_not() -> None:
    async def test(batcher: Batcher, model: Model) -> list[list[str]]:
        tasks = [send(batcher, *[letter * 3] * 2) for letter in "abc"]
        await queued(batcher, 3)
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 4
        batcher.max_tokens = 1
        batcher.more.set()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        return await asyncio.gather(tasks[0], tasks[2])

    found, model, _ = run(test, max_tokens=1000, max_wait=3600)
    assert found == [["AAA"] * 2, ["CCC"] * 2]
    assert not any("bbb" in batch for batch in model.batches)


def test_a_text_that_the_model_cannot_take_is_its_requests_fault_alone() -> None:
    async def test(batcher: Batcher, model: Model) -> list[Any]:
        tasks = [send(batcher, "aa"), send(batcher, "b", "c!"), send(batcher, "dd"), send(batcher, "e")]
        return await asyncio.gather(*tasks, return_exceptions=True)

    found, _, _ = run(test, max_wait=0.1)
    assert found[0] == ["AA"] and found[2:] == [["DD"], ["E"]]
    assert isinstance(found[1], ModelError) and str(found[1]) == "text 1: ValueError: got '!'"


def test_a_model_that_loses_a_row_is_an_error_and_no_shift() -> None:
    async def test(batcher: Batcher, model: Model) -> list[Any]:
        batcher.model = lambda items: items[:1]
        return await asyncio.gather(send(batcher, "aa"), send(batcher, "bb", "cc"))

    assert run(test, max_wait=0.1)[0] == [["aa"], ["bb", "cc"]]  # one by one there is nothing to confuse


def test_a_full_queue_refuses_and_takes_again_what_there_is_room_for() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        first = send(batcher, "a", "b", "c")
        await queued(batcher, 1)
        with pytest.raises(RefusedError, match="3 texts wait already, and 2 more are over the limit of 4") as refused:
            await send(batcher, "d", "e")
        assert 1 <= refused.value.retry_after <= 60
        second = send(batcher, "d")
        await queued(batcher, 2)
        batcher.max_tokens = 1
        batcher.more.set()
        await asyncio.gather(first, second)
        await send(batcher, "d", "e", "f", "g")

    run(test, max_tokens=1000, max_wait=3600, max_waiting=4)


def test_a_batcher_that_stops_finishes_and_refuses() -> None:
    async def test(batcher: Batcher, model: Model) -> list[str]:
        before = send(batcher, "aaa")
        await queued(batcher, 1)
        batcher.stopping = True
        with pytest.raises(RefusedError, match="stopping"):
            await send(batcher, "b")
        assert batcher.jobs
        batcher.max_tokens = 1
        batcher.more.set()
        await batcher.idle()
        return await before

    assert run(test, max_tokens=1000, max_wait=3600)[0] == ["AAA"]


def test_a_tokeniser_that_fails_leaves_nothing_behind() -> None:
    def fails() -> list[str]:
        raise ValueError("no such word")

    async def test(batcher: Batcher, model: Model) -> None:
        with pytest.raises(ValueError, match="no such word"):
            await batcher.run(5, fails)

    run(test)
