"""examples/serve in this process: a server in a thread, whose model a test may hold back, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'fasttx[serve]')")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (pip install 'fasttx[serve]')")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed (pip install 'fasttx[serve]')")

import bodies
import serve
import uvicorn
from app import Service
from load import Client, server
from models.test_pretrained import directory
from prometheus_client.parser import text_string_to_metric_families
from served_model import ServedModel

__all__ = ["Client", "Here", "ServedModel", "bodies", "serve", "server", "text_string_to_metric_families", "until"]
"""What tests take from here, and not from examples/serve, because here they are skipped where it cannot be imported."""

PATIENCE = 120.0
"""Seconds until a test gives up on what a loaded machine does in its own time."""


def classifier(folder: Path, labels: int, **options: Any) -> Path:
    """MiniLM with a random head over its encoder, saved with its tokeniser."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(directory(), num_labels=labels, **options)
    model.classifier.weight.data.normal_()  # so that scores differ
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(directory()).save_pretrained(folder)
    return folder


class Held:
    """A model that computes as many batches as it is let, and remembers what it was given."""

    def __init__(self, model: Any) -> None:
        self.model, self.given, self.free = model, [], True
        self.permits = threading.Semaphore(0)

    def let(self, batches: int | None = None) -> None:
        """So many batches, then it holds the next; all of them from now on for None."""
        self.free = batches is None
        self.permits.release(batches or 1)

    def __call__(self, items: list[Any]) -> Any:
        self.given.append(items)
        if not self.free:
            assert self.permits.acquire(timeout=PATIENCE)
        return self.model(items)


class Here:
    """A running server: its service, its model, and `server` to send signals to."""

    def __init__(self, service: Service, held: Held, server: serve.Server, port: int) -> None:
        self.service, self.held, self.server, self.port = service, held, server, port

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""

        async def once() -> tuple[int, dict[str, str], bytes]:
            client = Client(self.port)
            try:
                return await asyncio.wait_for(client.ask(method, path, body), PATIENCE)
            finally:
                client.close()

        return asyncio.run(once())


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def running(model: Any, **options: Any) -> Iterator[Here]:
    held = Held(model)
    defaults = dict(max_texts=100, max_bytes=200_000, max_tokens=1024, max_wait=0.002, max_waiting=200)
    service = Service(model, **(defaults | options))
    service.batcher.model = held
    listening = socket.create_server(("127.0.0.1", 0))
    server = serve.Server(uvicorn.Config(service.app(), log_level="warning", timeout_graceful_shutdown=60))
    server.service, server.linger = service, 0.5
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        asyncio.run(until(lambda: server.started))
        yield Here(service, held, server, listening.getsockname()[1])
    finally:
        held.let()
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()
