"""What bench.serving compares: requests with real lengths, and the arms that make embeddings of them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttx
from fasttx.bench import corpus

from .arms import ARMS, Arm
from .captured import captured
from .contenders import make_arm
from .lengths import draw
from .serving_cases import ServingCase
from .settings import Settings, one_line
from .timer import Call

LIBRARY, LIBRARY_PATCHED = "sentence-transformers", "sentence-transformers + fasttx"
GRAPHS = "fasttx as CUDA graphs"
BUCKET = 32
"""Tokens by which a graph's rows are longer than those of the next shorter graph."""

Embed = Callable[[list[Any]], Tensor]
"""Requests (texts, or token ids where a case has no text) -> embeddings (n, hidden) in float32 on the CPU."""


@dataclass
class Requests:
    """What is asked, how long each request is in tokens, and what makes tokens of it (None: they are ids)."""

    items: list[Any]
    lengths: list[int]
    tokenizer: Any = None
    weights: Path | None = None


def _installed() -> Path | None:
    """The directory of MiniLM's weights and vocabulary, where its package is installed."""
    try:
        return corpus.model_directory(None)
    except corpus.InputError:
        return None


def _passages() -> list[str]:
    """The passages of both corpora, train and dev."""
    files = (corpus.TEXTS / "train.txt", corpus.TEXTS / "dev.txt")
    return [text for path in files for _, text in corpus.read_corpus(path)]


def make_requests(case: ServingCase, vocab: int, count: int, seed: int = 0) -> Requests:
    """`count` requests, the same for the same seed."""
    rng = random.Random(seed)
    if not case.text:
        ids = [[rng.randrange(5, vocab) for _ in range(case.limit)] for _ in range(count)]
        return Requests(ids, [case.limit] * count)
    directory, texts = _installed(), _passages()
    if directory is not None and len(texts) >= count and vocab >= 30522:
        tokenizer = corpus.load_tokenizer(directory)
        items: list[Any] = rng.sample(texts, count)
    else:
        directory = None
        words = [f"w{i}" for i in range(vocab - 5)]
        tokenizer = _made_up_tokenizer(words)
        wanted = draw("passages", count, case.limit, seed).clamp(min=3).tolist()
        items = [" ".join(rng.choices(words, k=n - 2)) for n in wanted]
    encoded = tokenizer(items, truncation=True, max_length=case.limit)["input_ids"]
    return Requests(items, [len(ids) for ids in encoded], tokenizer, directory)


def _made_up_tokenizer(words: list[str]) -> Any:
    from transformers import BertTokenizerFast

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "vocab.txt"
        path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n", encoding="utf-8")
        return BertTokenizerFast(vocab=str(path), do_lower_case=True)


def _encoded(requests: Requests, items: list[Any], limit: int) -> dict[str, Tensor]:
    """A padded batch on the host."""
    if requests.tokenizer is None:
        ids = torch.tensor(items)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return dict(requests.tokenizer(items, padding=True, truncation=True, max_length=limit, return_tensors="pt"))


def _answer(model: nn.Module, batch: dict[str, Tensor], **extra: Any) -> Tensor:
    """The normalised mean of the hidden states, on the device."""
    hidden = model(**batch, **extra).last_hidden_state
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def embedder(model: nn.Module, requests: Requests, limit: int, device: torch.device, known: bool = False) -> Embed:
    """Answers by a transformers encoder; with `known` the lengths, which the host has at that point, go along."""

    def embed(items: list[Any]) -> Tensor:
        batch = _encoded(requests, items, limit)
        extra = {"seq_lens": tuple(batch["attention_mask"].sum(1).tolist())} if known else {}
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.inference_mode():
            return _answer(model, batch, **extra).cpu()

    return embed


def graph_embedder(model: nn.Module, requests: Requests, limit: int, device: torch.device) -> Embed:
    """Answers by replaying a CUDA graph: one for each number of rows and each :data:`BUCKET` of lengths."""
    made: dict[tuple[int, int], tuple[dict[str, Tensor], Call, list[Tensor]]] = {}

    def capture(batch: dict[str, Tensor], length: int) -> tuple[dict[str, Tensor], Call, list[Tensor]]:
        rows = next(iter(batch.values())).shape[0]
        inputs = {name: torch.zeros(rows, length, dtype=x.dtype, device=device) for name, x in batch.items()}
        inputs["attention_mask"].fill_(1)
        found: list[Tensor] = []

        def step() -> None:
            with torch.no_grad():
                found[:] = [_answer(model, inputs)]

        return inputs, captured(step, device), found

    def embed(items: list[Any]) -> Tensor:
        batch = _encoded(requests, items, limit)
        rows, length = batch["input_ids"].shape
        bucket = min(limit, -(-length // BUCKET) * BUCKET)
        if (rows, bucket) not in made:
            made[rows, bucket] = capture(batch, bucket)
        inputs, replay, found = made[rows, bucket]
        for name, into in inputs.items():
            into[:, :length].copy_(batch[name], non_blocking=True)
            into[:, length:].zero_()
        replay(0)
        return found[0].cpu()

    return embed


def _library(base: nn.Module, requests: Requests, limit: int, device: torch.device, unpad: bool | str | None) -> Embed:
    """Answers by sentence-transformers' own encode(); `unpad` None leaves it unpatched."""
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as place:
        base.save_pretrained(place)  # type: ignore[operator]
        requests.tokenizer.save_pretrained(place)
        model: Any = SentenceTransformer(place, device=str(device))
    model.to(next(base.parameters()).dtype)
    model.max_seq_length = limit
    if unpad is not None:
        fasttx.patch(model, unpad=unpad)

    def embed(items: list[Any]) -> Tensor:
        options = {"batch_size": len(items), "convert_to_tensor": True, "normalize_embeddings": True}
        return model.encode(items, show_progress_bar=False, **options).float().cpu()

    return embed


def embedders(case: ServingCase, base: nn.Module, requests: Requests, settings: Settings) -> dict[str, Embed | str]:
    """Arm -> how it answers, or why it cannot."""
    device, unpad = settings.device, settings.unpad
    names = ("fasttx", "sdpa", "fasttx, lengths known") + (() if case.text else ("eager", "sdpa + torch.compile"))
    found: dict[str, Embed | str] = {}

    def add(name: str, make: Callable[[], Embed], compiled: bool = False) -> None:
        try:
            found[name] = "not run: time budget" if settings.late(compiled) else make()
        except ModuleNotFoundError as problem:
            found[name] = f"not installed: {problem.name}"
        except Exception as problem:  # one arm that cannot be made is a row
            found[name] = one_line(problem)

    def transformers(arm: Arm) -> Embed:
        model = make_arm(arm, base, unpad, settings.backend).eval()
        return embedder(model, requests, case.limit, device, arm.lengths_known)

    def graphs() -> Embed:
        model = make_arm(next(arm for arm in ARMS if arm.name == "fasttx"), base, unpad, settings.backend).eval()
        return graph_embedder(model, requests, case.limit, device)

    for arm in ARMS:
        if arm.name in names:
            add(arm.name, partial(transformers, arm), bool(arm.mode))
    if device.type == "cuda" or settings.where == "rehearsal":
        add(GRAPHS, graphs)
    else:
        found[GRAPHS] = f"not run: a CUDA graph needs a GPU, and this is {device.type}"
    if case.text:
        add(LIBRARY, lambda: _library(base, requests, case.limit, device, None))
        add(LIBRARY_PATCHED, lambda: _library(base, requests, case.limit, device, unpad))
    return found
