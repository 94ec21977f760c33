"""What each endpoint answers with real weights, beside transformers' own forward, and what it says of a bad request."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import torch
from models.test_pretrained import SENTENCES, directory
from serving import Here, ServedModel, bodies, text_string_to_metric_families
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

TEXTS = [*SENTENCES, "x " * 400, "\x00 nul", "日本語 🙂"]


@pytest.fixture(scope="module")
def embed() -> Iterator[Here]:
    with serving.running(ServedModel(directory())) as here:
        yield here


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    options = {"rerank": {"labels": 1}, "classify": {"labels": 3}}
    options["several"] = {"labels": 3, "problem_type": "multi_label_classification"}
    return {name: serving.classifier(tmp_path_factory.mktemp(name), **each) for name, each in options.items()}


def good(found: tuple[int, dict[str, str], bytes]) -> Any:
    assert found[0] == 200, found
    return json.loads(found[2])


def plain(folder: Path, texts: list[Any], limit: int) -> torch.Tensor:
    """Logits by transformers alone, one text at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        parts = text if isinstance(text, tuple) else (text,)
        with torch.no_grad():
            found.append(
                model.eval()(**tokenizer(*parts, truncation=True, max_length=limit, return_tensors="pt")).logits
            )
    return torch.cat(found)


def test_embeddings_are_the_models_own(embed: Here) -> None:
    model, tokenizer = AutoModel.from_pretrained(directory()).eval(), AutoTokenizer.from_pretrained(directory())
    with torch.no_grad():
        want = []
        for text in TEXTS:
            batch = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            want.append(torch.nn.functional.normalize(model(**batch).last_hidden_state.mean(1), dim=-1)[0])
    found = good(embed.ask("POST", "/embed", {"texts": TEXTS}))
    np.testing.assert_allclose(found["embeddings"], torch.stack(want), atol=2e-5)
    assert found["truncated"] == [5] and found["tokens"] > 256 and found["model"] == directory().name
    alone = [good(embed.ask("POST", "/embed", {"texts": text}))["embeddings"][0] for text in TEXTS[:3]]
    np.testing.assert_allclose(alone, found["embeddings"][:3], atol=2e-5)


def test_openais_form_in_numbers_and_in_base64(embed: Here) -> None:
    asked = {"model": "any", "input": TEXTS[:3], "user": "me", "dimensions": 384}
    found = good(embed.ask("POST", "/v1/embeddings", asked))
    packed = good(embed.ask("POST", "/v1/embeddings", asked | {"encoding_format": "base64"}))
    assert found["object"] == "list" and found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 20
    assert [each["index"] for each in found["data"]] == [0, 1, 2] and found["data"][0]["object"] == "embedding"
    for one, other in zip(found["data"], packed["data"]):
        vector = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        np.testing.assert_allclose(vector, np.array(one["embedding"], "f4"), atol=1e-6)
    one = good(embed.ask("POST", "/v1/embeddings", {"input": TEXTS[0]}))
    np.testing.assert_allclose(one["data"][0]["embedding"], found["data"][0]["embedding"], atol=2e-5)


def test_a_reranker_sorts_by_the_models_scores(scorers: dict[str, Path]) -> None:
    with serving.running(ServedModel(scorers["rerank"])) as here:
        found = good(here.ask("POST", "/rerank", {"query": TEXTS[1], "texts": TEXTS[:5]}))
        want = plain(scorers["rerank"], [(TEXTS[1], text) for text in TEXTS[:5]], 512).sigmoid()[:, 0]
        assert [each["index"] for each in found["results"]] == want.argsort(descending=True).tolist()
        np.testing.assert_allclose(
            [each["score"] for each in found["results"]], want.sort(descending=True)[0], atol=1e-4
        )
        best = good(here.ask("POST", "/rerank", {"query": TEXTS[1], "texts": TEXTS[:5], "top_n": 2}))
        assert [each["index"] for each in best["results"]] == [each["index"] for each in found["results"][:2]]
        assert here.ask("POST", "/rerank", {"query": "a", "texts": ["b"], "top_n": 0})[0] == 422
        status, _, body = here.ask("POST", "/rerank", {"texts": ["b"]})
        assert status == 422 and json.loads(body)["error"]["message"] == "query: got nothing; allowed is a text"
        status, _, body = here.ask("POST", "/embed", {"texts": "a"})
        assert status == 404 and "for rerank; allowed is one of an encoder" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(("name", "activation"), [("classify", torch.softmax), ("several", lambda x, dim: x.sigmoid())])
def test_a_classifier_gives_each_label_its_score(scorers: dict[str, Path], name: str, activation: Any) -> None:
    with serving.running(ServedModel(scorers[name])) as here:
        found = good(here.ask("POST", "/classify", {"texts": TEXTS[:5]}))["predictions"]
    want = activation(plain(scorers[name], TEXTS[:5], 512), dim=-1)
    np.testing.assert_allclose([list(each["scores"].values()) for each in found], want, atol=1e-4)
    assert [each["label"] for each in found] == [f"LABEL_{i}" for i in want.argmax(-1).tolist()]


@pytest.mark.parametrize("form", ["int8", "bf16", "capture", "int8 capture", "unpatched"])
def test_its_other_forms_stay_near(form: str) -> None:
    options = {"patched": False} if form == "unpatched" else dict.fromkeys(form.split(), True)
    model, other = ServedModel(directory()), ServedModel(directory(), **options)
    vectors = [each(each.tokenise(TEXTS)) for each in (model, other)]
    cosines = (vectors[0] * vectors[1]).sum(-1)
    exact = form in ("capture", "unpatched")
    assert cosines.min() > (0.99999 if exact else 0.97)
    assert (cosines.min() < 0.999999) != exact  # it is another form
    assert other.report.endswith("captured") == ("capture" in form)
    if "capture" in form:
        assert other.captured.stats["calls"] >= 2 and not other.captured.stats["fallbacks"]
    assert ("fasttx replaced 32 parts, left 0 alone" in other.report) == (form != "unpatched")


MILLION = "a" * 1_000_000
BAD = [
    ("nothing", b"", 400, "body: got nothing; allowed is a JSON object of texts, truncate"),
    ("no-json", b"{texts: 1}", 400, "body: got no JSON (Expecting property name"),
    ("no-unicode", b'{"texts": "\xff"}', 400, "body: got no JSON ('utf-8' codec"),
    ("deep", b"[" * 100_000, 400, "body: got no JSON (maximum recursion depth"),
    ("long-number", b"1" * 10_000, 400, "body: got no JSON (Exceeds the limit"),
    ("a-list", [1], 422, "body: got a list; allowed is a JSON object of texts, truncate"),
    ("null", None, 422, "body: got null"),
    ("no-texts", {}, 422, "texts: got nothing; allowed is a text, or a list of texts"),
    ("empty-list", {"texts": []}, 422, "texts: got an empty list; allowed is 1 to 100 texts"),
    ("empty-text", {"texts": ["a", ""]}, 422, "texts[1]: got an empty text"),
    ("a-number", {"texts": 3}, 422, "texts: got a number; allowed is a text, or a list of texts"),
    ("numbers", {"texts": ["a", 3]}, 422, "texts[1]: got a number; allowed is a text"),
    ("nan", b'{"texts": NaN}', 422, "texts: got a number"),
    ("nulls", {"texts": [None]}, 422, "texts[0]: got null; allowed is a text"),
    ("truth", {"texts": [True]}, 422, "texts[0]: got true or false"),
    ("token-ids", {"texts": [[1, 2], [3]]}, 422, "texts: got lists or numbers, as of token ids; allowed is texts"),
    (
        "misspelt",
        {"texts": "a", "normalise": 1},
        422,
        "field 'normalise': got a value for it; allowed is texts, truncate",
    ),
    ("a-strange-name", {"\ud800": 1}, 422, "field '\\ud800': got a value for it"),
    ("no-truth", {"texts": "a", "truncate": 1}, 422, "truncate: got 1; allowed is true or false"),
    ("cut", {"texts": ["a", "b " * 400], "truncate": False}, 422, "texts[1]: got more tokens; allowed is 256"),
    ("surrogate", b'{"texts": ["ab\\ud83d"]}', 422, "texts[0]: got the lone surrogate '\\ud83d' at character 2"),
    ("a-long-text", {"texts": "a" * 150_000}, 422, "texts[0]: got 150000 characters; allowed is at most 100000"),
    ("a-megabyte", {"texts": MILLION}, 413, "body: got more than 200000 bytes; allowed is at most 200000"),
    ("far-too-long", {"texts": MILLION * 5}, 413, "body: got more than 200000 bytes"),
    ("ten-thousand", {"texts": ["a"] * 10_000}, 413, "texts: got 10000 texts; allowed is 1 to 100 a request"),
]


@pytest.mark.parametrize(("body", "status", "message"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
def test_a_bad_request_is_told_why(embed: Here, body: Any, status: int, message: str) -> None:
    found, headers, answer = embed.ask("POST", "/embed", body)
    error = json.loads(answer)["error"]
    assert (found, error["message"][: len(message)]) == (status, message)
    assert error["type"] == "invalid_request_error" and headers["content-type"] == "application/json"
    assert embed.service.batcher.waiting == 0 and not embed.service.batcher.jobs
    good(embed.ask("POST", "/embed", {"texts": "and the next one is served"}))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        ("GET", "/embed", "", 405, "request: got GET '/embed'; allowed is POST to /embed"),
        ("POST", "/nowhere", "", 404, "request: got POST '/nowhere'"),
        ("POST", "/classify", "", 404, "/classify: got a server of"),
        ("POST", "/embed", "Content-Encoding: gzip\r\n", 415, "Content-Encoding: got gzip"),
    ],
)
def test_a_request_that_is_none_of_this_server(
    embed: Here, method: str, path: str, headers: str, status: int, message: str
) -> None:
    async def once() -> tuple[int, dict[str, str], bytes]:
        client = serving.Client(embed.port)
        await client.send(method, path, b"{}", f"Content-Length: 2\r\n{headers}")
        return await asyncio.wait_for(client.receive(), serving.PATIENCE)

    found, _, answer = asyncio.run(once())
    assert found == status and json.loads(answer)["error"]["message"].startswith(message)


def test_a_body_that_does_not_come_is_not_waited_for(embed: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SECONDS_FOR_A_BODY", 0.2)

    async def half() -> tuple[int, bytes]:
        client = serving.Client(embed.port)
        await client.send("POST", "/embed", b'{"te', "Content-Length: 100\r\n")
        status, _, body = await asyncio.wait_for(client.receive(), serving.PATIENCE)
        client.close()
        return status, body

    status, body = asyncio.run(half())
    assert status == 408 and b"no end of it in" in body


def test_health_and_metrics_tell_what_happened(embed: Here) -> None:
    about = good(embed.ask("GET", "/health"))
    assert about == {"status": "ok", "task": "embed", "model": directory().name, "max_tokens": 256}

    def counted() -> dict[tuple[str, str], float]:
        status, headers, text = embed.ask("GET", "/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(text.decode())
        return {(s.name, ",".join(s.labels.values())): s.value for family in families for s in family.samples}

    before = counted()
    good(embed.ask("POST", "/embed", {"texts": ["one two three", "x " * 300]}))
    assert embed.ask("POST", "/embed", b"")[0] == 400
    after = counted()
    changes = {key: after[key] - before.get(key, 0) for key in after}
    assert changes["serve_requests_total", "/embed,200"] == changes["serve_requests_total", "/embed,400"] == 1
    assert changes["serve_tokens_total", "real"] == 256 + 5 and changes["serve_tokens_total", "padded"] == 512
    assert changes["serve_batch_texts_sum", ""] == 2 and changes["serve_truncated_texts_total", ""] == 1
    assert after["serve_waiting_texts", ""] == 0 and after["process_cpu_seconds_total", ""] > 0
