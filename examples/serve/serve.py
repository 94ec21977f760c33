"""Serves embeddings, a reranker or a classifier over HTTP, in batches whose padding fasttx skips."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from types import FrameType

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a text's thread is one of --tokenisers, not all cores

import torch
import uvicorn
from app import Service
from served_model import TASKS, CannotServeError, ServedModel

SECONDS_TO_FINISH = 30
"""For clients that read their last answer slowly."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a saved transformers or sentence-transformers model")
    parser.add_argument("--task", choices=("auto", *TASKS), default="auto", help="auto: by the model's head")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 for other machines; put a proxy with TLS before it"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--int8", action="store_true", help="weights as int8: a quarter of the memory")
    parser.add_argument("--bf16", action="store_true", help="weights and activations as bfloat16")
    parser.add_argument("--capture", action="store_true", help="fewer calls a layer on a CPU, for twice the memory")
    parser.add_argument("--unpatched", action="store_true", help="without fasttx, to compare")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0: as PyTorch chooses")
    parser.add_argument("--tokenisers", type=int, default=2, help="threads that tokenise")
    parser.add_argument("--max-tokens", type=int, default=None, help="of a text; None: as the model has it")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="real tokens of a batch")
    parser.add_argument("--wait-ms", type=float, default=5, help="that a text waits for others while the model is idle")
    parser.add_argument("--queue", type=int, default=4000, help="texts that may wait; more is answered with 503")
    parser.add_argument("--max-texts", type=int, default=2000, help="of a request")
    parser.add_argument("--max-bytes", type=int, default=4_000_000, help="of a request")
    parser.add_argument("--linger", type=float, default=1, help="seconds of answering 503 before it stops, on SIGTERM")
    args = parser.parse_args()
    for name, least in [
        ("threads", 0),
        ("tokenisers", 1),
        ("batch_tokens", 1),
        ("max_texts", 1),
        ("max_bytes", 100),
        ("wait_ms", 0),
        ("linger", 0),
        ("port", 0),
    ]:
        if not getattr(args, name) >= least:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(args, name)}; allowed is {least} or more")
    if args.queue < args.max_texts:
        parser.error(f"--queue: got {args.queue}; allowed is {args.max_texts} or more, as of --max-texts")
    if args.unpatched and args.capture:
        parser.error("--capture: got it with --unpatched; allowed is one of them, as fasttx captures what it patched")
    return args


class Server(uvicorn.Server):
    """On SIGTERM or Ctrl-C what was let in is finished, and the new is refused; a second signal ends it at once."""

    service: Service
    linger = 1.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.batcher.stopping:
            self.should_exit = self.force_exit = True
            return
        self.service.batcher.stopping = True
        self.loop.call_soon_threadsafe(lambda: setattr(self, "draining", asyncio.ensure_future(self._drain())))

    async def _drain(self) -> None:
        print(f"stopping: {len(self.service.batcher.jobs)} requests to finish, new ones get 503", flush=True)
        await asyncio.sleep(self.linger)
        await self.service.batcher.idle()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        model = self.service.model
        print(f"{model.report}\n{model.task} by {model.name} at http://{host}:{port}", flush=True)


def main() -> int:
    args = parse()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    listening = socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((args.host, args.port))  # it listens when the model is there
    except OSError as problem:
        print(f"serve: --host, --port: got {args.host}, {args.port}: {problem}", file=sys.stderr)
        return 2
    try:
        model = ServedModel(
            args.folder,
            args.task,
            patched=not args.unpatched,
            int8=args.int8,
            bf16=args.bf16,
            capture=args.capture,
            max_tokens=args.max_tokens,
        )
    except CannotServeError as problem:
        print(f"serve: {problem}", file=sys.stderr)
        return 2
    service = Service(
        model,
        max_texts=args.max_texts,
        max_bytes=args.max_bytes,
        max_tokens=args.batch_tokens,
        max_wait=args.wait_ms / 1000,
        max_waiting=args.queue,
        tokenisers=args.tokenisers,
    )
    config = uvicorn.Config(
        service.app(), access_log=False, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_FINISH
    )
    server = Server(config)
    server.service, server.linger = service, args.linger
    server.run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
