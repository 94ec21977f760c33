"""Measures the server beside itself unpatched, on this machine: the same requests in turn, throughput, p50 and p99."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import math
import random
import re
import signal
import sys
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parent / "data" / "dev.txt"
ARMS = {
    "fasttx": [],
    "fasttx, captured": ["--capture"],
    "unpatched": ["--unpatched"],
    "unpatched, each text alone": ["--unpatched", "--batch-tokens", "1"],
}
"""Name -> options of serve.py. A text alone has no padding, and is what a patched server has to beat on a CPU."""


class Client:
    """One connection that is kept, as a client's pool has many of them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, body: bytes = b"", headers: str | None = None) -> None:
        """Sends a request; `headers` are in place of the length of the body."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = f"Content-Length: {len(body)}\r\n" if headers is None else headers
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def receive(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, body."""
        assert self.reader is not None
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return int(head[0].split()[1]), headers, body

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], bytes]:
        """The answer to JSON, or to bytes as they are."""
        await self.send(method, path, body if isinstance(body, bytes) else json.dumps(body).encode())
        return await self.receive()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None


@dataclass
class Running:
    """A server that was started here."""

    process: asyncio.subprocess.Process
    port: int
    said: str

    async def metrics(self) -> dict[str, float]:
        client = Client(self.port)
        _, _, text = await client.ask("GET", "/metrics")
        client.close()
        return {name: float(value) for name, value in re.findall(r"^(\S+) ([\d.e+-]+)$", text.decode(), re.M)}


@contextlib.asynccontextmanager
async def server(folder: Path, *options: str) -> AsyncIterator[Running]:
    """serve.py on a free port, stopped by SIGTERM at the end, when it must end well."""
    command = [str(HERE / "serve.py"), str(folder), "--port", "0", *options]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        said = ""
        while not (found := re.search(r" at http://\S+:(\d+)", said)):
            line = (await process.stdout.readline()).decode()
            if not line:
                raise SystemExit(f"serve.py ended with code {await process.wait()}")
            said += line
        yield Running(process, int(found[1]), said)
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.communicate()
        if process.returncode:
            raise SystemExit(f"serve.py ended with code {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@dataclass
class Measured:
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    texts: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    cpu: float = 0.0
    real: float = 0.0
    padded: float = 0.0

    def row(self) -> list[str]:
        ordered = sorted(self.latencies)
        p50, p99 = (ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1e3 for part in (0.5, 0.99))
        texts = max(self.texts, 1)
        return [
            f"{self.texts / self.seconds:.1f}",
            f"{p50:.0f}",
            f"{p99:.0f}",
            f"{self.cpu / texts * 1e3:.1f}",
            f"{self.real / max(self.padded, 1):.0%}",
        ]


async def round_of(running: Running, requests: list[list[str]], clients: int, into: Measured) -> None:
    """All requests once, by so many clients that each wait for an answer before they ask again."""
    left = list(reversed(requests))

    async def one() -> None:
        client = Client(running.port)
        while left:
            texts, began = left.pop(), time.perf_counter()
            status, _, _ = await client.ask("POST", "/v1/embeddings", {"input": texts, "encoding_format": "base64"})
            into.latencies.append(time.perf_counter() - began)
            into.statuses[status] = into.statuses.get(status, 0) + 1
            into.texts += len(texts) * (status == 200)
        client.close()

    before, began = await running.metrics(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    into.seconds += time.perf_counter() - began
    after = await running.metrics()
    into.cpu += after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    for kind in ("real", "padded"):
        name = f'serve_tokens_total{{kind="{kind}"}}'
        setattr(into, kind, getattr(into, kind) + after[name] - before[name])


async def vectors(running: Running, texts: list[str]) -> list[array[float]]:
    client = Client(running.port)
    _, _, body = await client.ask("POST", "/v1/embeddings", {"input": texts, "encoding_format": "base64"})
    client.close()
    return [array("f", base64.b64decode(each["embedding"])) for each in json.loads(body)["data"]]


def cosine(one: array[float], other: array[float]) -> float:
    norms = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(y * y for y in other))
    return sum(x * y for x, y in zip(one, other)) / norms


async def compare(folder: Path, requests: list[list[str]], clients: int, rounds: int, options: list[str]) -> int:
    async with contextlib.AsyncExitStack() as stack:
        servers = {
            name: await stack.enter_async_context(server(folder, "--linger", "0", *options, *own))
            for name, own in ARMS.items()
        }
        for running in servers.values():
            await round_of(running, requests[: 2 * clients], clients, Measured())  # to warm up
        found = {name: Measured() for name in servers}
        for _ in range(rounds):
            for name, running in servers.items():
                await round_of(running, requests, clients, found[name])
        texts = [text for request in requests for text in request][:32]
        alike = [await vectors(running, texts) for running in servers.values()]
    print(f"{sum(map(len, requests))} texts in {len(requests)} requests, {clients} clients, {rounds} rounds in turn")
    print("| server | texts/s | p50 ms | p99 ms | CPU ms a text | real tokens |\n|---|---|---|---|---|---|")
    for name, each in found.items():
        print("| " + " | ".join([name, *each.row()]) + " |")
    asked = sum(sum(each.statuses.values()) for each in found.values())
    answered = sum(each.statuses.get(200, 0) for each in found.values())
    least = min(cosine(one, other) for arm in alike for one, other in zip(alike[0], arm))
    print(f"smallest cosine between vectors of the first server and another: {least:.6f}")
    print(f"{asked} requests, {answered} answered")
    return 0 if asked == answered == len(requests) * rounds * len(found) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a saved model that embeds")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="a text on each line, or a label, a tab and a text")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--request-texts", type=int, default=1, help="texts of a request")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="24 requests, 1 round")
    args, options = parser.parse_known_args()  # the others are for serve.py
    lines = [line.split("\t", 1)[-1] for line in args.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = random.Random(0)
    count = 24 if args.tiny else args.requests
    requests = [chosen.choices(lines, k=args.request_texts) for _ in range(count)]
    return asyncio.run(compare(args.folder, requests, args.clients, 1 if args.tiny else args.rounds, options))


if __name__ == "__main__":
    sys.exit(main())
