"""No request is lost: by clients that go away, by too many of them, by a signal, or by the fault of one text."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
from models.test_pretrained import directory
from serving import Client, Here, ServedModel, server, until

import fasttx


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return ServedModel(directory())


@pytest.fixture
def here(model: ServedModel) -> Iterator[Here]:
    with serving.running(model, max_waiting=20, max_texts=20, max_wait=0.0) as found:
        yield found


def run(test: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(test(), 2 * serving.PATIENCE)

    return asyncio.run(bounded())


async def asked(here: Here, *texts: str) -> Client:
    """A client that has sent a request, which the server has let in."""
    client, before = Client(here.port), len(here.service.batcher.jobs)
    await client.send("POST", "/embed", json.dumps({"texts": list(texts)}).encode())
    await until(lambda: len(here.service.batcher.jobs) == before + 1)
    return client


async def busy(here: Here) -> Client:
    """A client whose text holds the model, so that what comes after it waits."""
    here.held.free = False
    client = await asked(here, "the first")
    await until(lambda: len(here.held.given) == 1)
    return client


async def embedded(*clients: Client) -> list[int]:
    """How many embeddings each client got."""
    found = []
    for client in clients:
        status, _, body = await client.receive()
        assert status == 200, body
        found.append(len(json.loads(body)["embeddings"]))
        client.close()
    return found


def test_what_clients_that_went_away_had_asked_is_not_computed(here: Here) -> None:
    async def test() -> None:
        first = await busy(here)
        kept, gone, last = [await asked(here, *[word] * 3) for word in ("kept", "gone", "last")]
        batcher = here.service.batcher
        await until(lambda: batcher.waiting == 9)
        gone.close()
        await until(lambda: batcher.waiting == 6)
        here.held.let()
        assert await embedded(first, kept, last) == [1, 3, 3]
        assert sum(map(len, here.held.given)) == 7
        first.close()
        await until(lambda: not batcher.jobs)

    run(test)
    assert 'serve_requests_total{endpoint="/embed",status="499"} 1.0' in here.ask("GET", "/metrics")[2].decode()


def test_a_client_that_goes_away_in_the_middle_of_a_batch_harms_nobody(here: Here) -> None:
    async def test() -> None:
        first = await busy(here)
        gone, kept = await asked(here, "gone"), await asked(here, "kept")
        await until(lambda: here.service.batcher.waiting == len(here.service.batcher.queue) == 2)
        here.held.let(1)
        assert await embedded(first) == [1]
        await until(lambda: len(here.held.given) == 2)
        assert len(here.held.given[1]) == 2
        gone.close()
        await until(lambda: len(here.service.batcher.jobs) == 1)
        here.held.let()
        assert await embedded(kept) == [1]

    run(test)


def test_half_a_request_is_none(here: Here) -> None:
    async def test() -> None:
        client = Client(here.port)
        await client.send("POST", "/embed", b'{"texts": ["a', "Content-Length: 100\r\n")
        client.close()
        assert await embedded(await asked(here, "another")) == [1]

    run(test)
    assert not here.service.batcher.jobs


def test_too_many_are_told_when_to_come_back_and_the_others_are_served(here: Here) -> None:
    async def test() -> None:
        first = await busy(here)
        waiting = [await asked(here, *["wait"] * 5) for _ in range(4)]
        await until(lambda: here.service.batcher.waiting == 20)
        for _ in range(5):
            client = Client(here.port)
            status, headers, body = await client.ask("POST", "/embed", {"texts": ["too", "many"]})
            assert status == 503 and 1 <= int(headers["retry-after"]) <= 60
            error = json.loads(body)["error"]
            assert error["message"] == "20 texts wait already, and 2 more are over the limit of 20"
            assert error["type"] == "server_error"
            status, _, _ = await client.ask("GET", "/health")
            assert status == 200
            client.close()
        here.held.let()
        assert await embedded(first, *waiting) == [1, 5, 5, 5, 5]
        assert (await Client(here.port).ask("POST", "/embed", {"texts": ["room"] * 20}))[0] == 200

    run(test)


def test_a_text_that_the_model_fails_on_is_an_answer_of_500_for_its_request_alone(here: Here) -> None:
    real, bad = here.held.model, here.service.model.tokenise(["a zebra"])[0].ids

    def model(items: list[Any]) -> Any:
        if any(item.ids == bad for item in items):
            raise RuntimeError("no zebras")
        return real(items)

    async def test() -> None:
        first = await busy(here)
        good, wrong, after = [await asked(here, "a horse", word) for word in ("a cow", "a zebra", "a dog")]
        await until(lambda: here.service.batcher.waiting == 6)
        here.held.model = model
        here.held.let()
        assert await embedded(first, good, after) == [1, 2, 2]
        status, _, body = await wrong.receive()
        error = json.loads(body)["error"]
        assert (status, error["message"]) == (500, "the model failed on text 1: RuntimeError: no zebras")

    run(test)


def test_a_signal_finishes_what_was_let_in_and_refuses_the_new(here: Here) -> None:
    async def test() -> None:
        first = await busy(here)
        waiting = [await asked(here, "wait", "too") for _ in range(3)]
        here.server.handle_exit(signal.SIGTERM, None)
        late = Client(here.port)
        status, headers, body = await late.ask("POST", "/embed", {"texts": "late"})
        assert status == 503 and headers["retry-after"] and b"the server is stopping" in body
        status, _, body = await late.ask("GET", "/health")
        assert status == 503 and json.loads(body)["status"] == "stopping"
        await asyncio.sleep(here.server.linger + 0.5)
        assert not here.server.should_exit  # the model is still held
        here.held.let()
        assert await embedded(first, *waiting) == [1, 2, 2, 2]
        await until(lambda: here.server.should_exit)

    run(test)


def test_a_second_signal_ends_it_at_once(here: Here) -> None:
    async def test() -> None:
        first = await busy(here)
        for _ in range(2):
            here.server.handle_exit(signal.SIGINT, None)
        assert here.server.should_exit and here.server.force_exit
        first.close()

    run(test)


def test_sigterm_under_load_leaves_no_request_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program itself, and clients that do not stop before it does: each answer is whole, or was never begun."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fasttx.__file__).parents[1]))
    counts: dict[Any, int] = {200: 0, 503: 0, "closed": 0}

    async def client(port: int, until_done: asyncio.Event) -> None:
        mine = Client(port)
        while not until_done.is_set():
            try:
                status, _, body = await mine.ask("POST", "/embed", {"texts": ["some words", "and some more " * 9]})
                assert status == 503 or len(json.loads(body)["embeddings"]) == 2
                counts[status] += 1
            except asyncio.IncompleteReadError as cut:
                assert not cut.partial  # an answer that began ends
                counts["closed"] += 1
                mine.close()
            except OSError:  # nobody listens any more
                counts["closed"] += 1
                mine.close()
                await asyncio.sleep(0.01)

    async def test() -> None:
        async with server(directory(), "--linger", "0.3") as running:
            ended = asyncio.Event()
            tasks = [asyncio.ensure_future(client(running.port, ended)) for _ in range(6)]
            await until(lambda: counts[200] >= 12)
            running.process.send_signal(signal.SIGTERM)
            assert await running.process.wait() == 0
            ended.set()
            await asyncio.gather(*tasks)

    run(test)
    assert counts[200] >= 12 and counts[503] >= 1 and counts["closed"] >= 1
