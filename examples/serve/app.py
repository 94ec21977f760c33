"""The endpoints and their metrics, on a model and a batcher."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from batching import Batcher, ModelError, RefusedError
from bodies import WrongRequestError, choice, read, text, texts, whole_number, wrong
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from served_model import ServedModel, Tokens
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

log = logging.getLogger("serve")
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
GONE = 499
"""What the log and the metrics call a request whose client went away; nobody is left to read an answer."""


class Metrics:
    """What /metrics shows, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        named = {"registry": registry, "namespace": "serve"}
        self.requests = Counter("requests", "Requests by their answers", ["endpoint", "status"], **named)
        self.seconds = Histogram(
            "request_seconds", "From the head of a request to its answer", ["endpoint"], buckets=SECONDS, **named
        )
        self.waiting = Gauge("waiting_texts", "Texts that are in no batch yet", **named)
        self.tokens = Counter("tokens", "Tokens of the batches: real ones, and with padding", ["kind"], **named)
        for kind in ("real", "padded"):
            self.tokens.labels(kind)  # 0, and not nothing, before the first batch
        self.batch_texts = Histogram("batch_texts", "Texts of a batch", buckets=SIZES, **named)
        self.batch_tokens = Histogram("batch_tokens", "Real tokens of a batch", buckets=SIZES, **named)
        self.batch_seconds = Histogram("batch_seconds", "The model on a batch", buckets=SECONDS, **named)
        self.waited = Histogram(
            "waited_seconds", "From a text's arrival to the start of its batch", buckets=SECONDS, **named
        )
        self.truncated = Counter("truncated_texts", "Texts that were longer than the model reads", **named)

    def on_batch(self, items: list[Tokens], waited: list[float], seconds: float) -> None:
        lengths = [len(item) for item in items]
        self.tokens.labels("real").inc(sum(lengths))
        self.tokens.labels("padded").inc(max(lengths) * len(lengths))
        self.batch_texts.observe(len(items))
        self.batch_tokens.observe(sum(lengths))
        self.batch_seconds.observe(seconds)
        for each in waited:
            self.waited.observe(each)


def error(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """An answer in the form that OpenAI's clients read."""
    about = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": about, "param": field, "code": None}}
    return JSONResponse(body, status, headers)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Service:
    """One model behind its endpoints.

    Args:
        model: what computes.
        batcher_options: of Batcher.
        max_texts, max_bytes: of a request.
    """

    def __init__(self, model: ServedModel, *, max_texts: int, max_bytes: int, **batcher_options: Any) -> None:
        self.model, self.max_texts, self.max_bytes = model, max_texts, max_bytes
        self.metrics = Metrics()
        self.batcher = Batcher(model, on_batch=self.metrics.on_batch, **batcher_options)
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)

    def app(self) -> Starlette:
        tasks = {
            "/embed": ("embed", self.embed),
            "/v1/embeddings": ("embed", self.openai),
            "/rerank": ("rerank", self.rerank),
            "/classify": ("classify", self.classify),
        }
        routes = [Route(path, self._endpoint(path, *of), methods=["POST"]) for path, of in tasks.items()]
        routes += [Route("/health", self.health), Route("/metrics", self.show_metrics)]

        async def not_found(request: Request, problem: HTTPException) -> Response:
            got = f"{request.method} {ascii(request.url.path)}"
            message = f"request: got {got}; allowed is POST to {', '.join(tasks)}, GET of /health, /metrics"
            return error(problem.status_code, message, None, problem.headers)

        handlers: Any = {404: not_found, 405: not_found}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(self.batcher.work())
        yield
        working.cancel()
        self.batcher.pool.shutdown(cancel_futures=True)
        self.batcher.model_thread.shutdown(cancel_futures=True)

    def _endpoint(
        self, path: str, task: str, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Answers, counts, and drops the work of a client that goes away."""

        async def endpoint(request: Request) -> Response:
            began = time.monotonic()
            try:
                response = await answer(request) if task == self.model.task else self._other_task(path, task)
            except WrongRequestError as problem:
                response = error(problem.status, str(problem), problem.field)
            except RefusedError as problem:
                response = error(503, str(problem), None, {"Retry-After": str(problem.retry_after)})
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except ModelError as problem:
                response = error(500, f"the model failed on {problem}")
            except Exception as problem:  # a fault of this program is an answer too, and in the log
                log.exception("%s failed", path)
                response = error(500, f"{type(problem).__name__}: {problem}")
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)
            return response

        return endpoint

    def _other_task(self, path: str, task: str) -> Response:
        needs = {"embed": "an encoder", "rerank": "a cross-encoder, of one label", "classify": "a classifier"}[task]
        return error(
            404, f"{path}: got a server of {self.model.name}, for {self.model.task}; allowed is one of {needs}"
        )

    async def _rows(self, request: Request, given: Sequence[Any], truncate: bool) -> tuple[list[Any], list[Tokens]]:
        """The model's rows; where the client goes away meanwhile, what has not begun is dropped."""
        kept: list[Tokens] = []

        def tokenise() -> list[Tokens]:
            kept.extend(self.model.tokenise(list(given)))
            cut = [index for index, each in enumerate(kept) if each.truncated]
            if cut and not truncate:
                raise wrong(f"texts[{cut[0]}]", "more tokens", f"{self.model.max_tokens}, or truncate: true")
            return kept

        work = asyncio.ensure_future(self.batcher.run(len(given), tokenise))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            rows = work.result()
        finally:
            work.cancel()
            gone.cancel()
        self.metrics.truncated.inc(sum(each.truncated for each in kept))
        return rows, kept

    async def _send(
        self, rows: Sequence[Any], show: Callable[[Any], str], before: str, after: dict[str, Any]
    ) -> Response:
        """`{before: [rows], **after}`, written in the pool, row by row, so that long answers hold nobody up."""

        def write() -> str:
            return f'{{"{before}": [{", ".join(map(show, rows))}], {json.dumps(after, allow_nan=False)[1:]}'

        body = await asyncio.get_running_loop().run_in_executor(self.batcher.pool, write)
        return Response(body, media_type="application/json")

    def _about(self, kept: list[Tokens]) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "tokens": sum(map(len, kept)),
            "truncated": [index for index, each in enumerate(kept) if each.truncated],
        }

    async def embed(self, request: Request) -> Response:
        body = await read(request, self.max_bytes, ("texts", "truncate"))
        given, truncate = texts(body, "texts", self.max_texts), choice(body, "truncate", (True, False))
        rows, kept = await self._rows(request, given, truncate)
        return await self._send(rows, lambda row: json.dumps(row.tolist()), "embeddings", self._about(kept))

    async def openai(self, request: Request) -> Response:
        fields = ("input", "model", "encoding_format", "dimensions", "user")
        body = await read(request, self.max_bytes, fields)
        given, form = texts(body, "input", self.max_texts), choice(body, "encoding_format", ("float", "base64"))
        width = self.model.config.hidden_size
        choice({"dimensions": body.get("dimensions", width)}, "dimensions", (width,))
        rows, kept = await self._rows(request, given, True)

        def show(numbered: tuple[int, Any]) -> str:
            index, row = numbered
            vector = base64.b64encode(row.astype("<f4").tobytes()).decode() if form == "base64" else row.tolist()
            return json.dumps({"object": "embedding", "index": index, "embedding": vector})

        about = self._about(kept)
        after = {
            "object": "list",
            **about,
            "usage": {"prompt_tokens": about["tokens"], "total_tokens": about["tokens"]},
        }
        return await self._send(list(enumerate(rows)), show, "data", after)

    async def rerank(self, request: Request) -> Response:
        body = await read(request, self.max_bytes, ("query", "texts", "top_n", "truncate"))
        query, given = text(body, "query"), texts(body, "texts", self.max_texts)
        most, truncate = whole_number(body, "top_n", len(given)), choice(body, "truncate", (True, False))
        rows, kept = await self._rows(request, [(query, each) for each in given], truncate)
        ranked = sorted(enumerate(float(row[0]) for row in rows), key=lambda found: -found[1])[:most]
        return await self._send(
            ranked, lambda found: json.dumps({"index": found[0], "score": found[1]}), "results", self._about(kept)
        )

    async def classify(self, request: Request) -> Response:
        body = await read(request, self.max_bytes, ("texts", "truncate"))
        given, truncate = texts(body, "texts", self.max_texts), choice(body, "truncate", (True, False))
        labels = self.model.config.id2label
        rows, kept = await self._rows(request, given, truncate)

        def show(row: Any) -> str:
            scores = {labels[index]: float(score) for index, score in enumerate(row)}
            return json.dumps({"label": labels[int(row.argmax())], "scores": scores})

        return await self._send(rows, show, "predictions", self._about(kept))

    async def health(self, request: Request) -> Response:
        state = "stopping" if self.batcher.stopping else "ok"
        about = {
            "status": state,
            "task": self.model.task,
            "model": self.model.name,
            "max_tokens": self.model.max_tokens,
        }
        return JSONResponse(about, 503 if self.batcher.stopping else 200)

    async def show_metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)
