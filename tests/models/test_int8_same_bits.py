"""An int8 encoder gives a text the same bits whatever shares its batch, its order, its padding, and on any threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor, nn

import fasttx

LENGTHS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 97, 100)
"""Of the texts; PyTorch's attention for CPUs takes 32 rows at a time, or 64 from 192 on."""
TEXTS = [torch.randint(5, zoo.VOCAB, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
OTHERS = {"deberta", "deberta-v2", "albert", "electra"}
"""Not packed; or with a product of floats between the embeddings and the encoder."""
FAMILIES = [family for family in zoo.TEXT_FAMILIES if family.model_type not in OTHERS]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def encoder(family: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = zoo.tiny_model(
        family, family.bare, hidden_size=64, num_attention_heads=2, intermediate_size=150, max_position_embeddings=128
    ).to(dtype)
    fasttx.quantize(model)
    fasttx.patch(model, unpad=True)
    return model


def states(model: Callable[..., Any], texts: Sequence[int], beyond: int = 0) -> list[Tensor]:
    """Hidden states of each text's own tokens and, as another row, their mean, all from one padded batch; `beyond`:
    how many tokens of padding more than needed."""
    lengths = [LENGTHS[i] for i in texts]
    ids = torch.full((len(texts), max(lengths) + beyond), 1)
    for row, i in zip(ids, texts, strict=True):
        row[: LENGTHS[i]] = TEXTS[i]
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
    return [torch.cat((row[:n], of_row)) for row, n, of_row in zip(hidden, lengths, mean, strict=True)]


def differing(model: Callable[..., Any], batches: int, seed: int = 0) -> list[tuple[int, int]]:
    """(length, threads) of texts whose states in random batches are not those of the text alone."""
    draw, found = random.Random(seed), []
    torch.set_num_threads(1)
    alone = [states(model, [i])[0] for i in range(len(LENGTHS))]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(batches):
            texts = draw.choices(range(len(LENGTHS)), k=draw.randint(1, 9))
            for i, state in zip(texts, states(model, texts, draw.choice((0, 0, 1, 7))), strict=True):
                if not torch.equal(state, alone[i]):
                    found.append((LENGTHS[i], threads))
    return found


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family(family: Any, backend: str) -> None:
    with fasttx.backend(backend):
        assert differing(encoder(family), 6) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captured(dtype: torch.dtype) -> None:
    with fasttx.capture(encoder(zoo.BERT, dtype)) as captured:
        assert differing(captured, 6) == []


def test_floats_around_the_layers() -> None:
    assert differing(encoder(zoo.BERT, torch.bfloat16), 6) == []


def test_the_test_would_notice() -> None:
    """A batch that stays padded, with a little padding, is what it is about."""
    model = encoder(zoo.BERT)
    fasttx.unpatch(model)
    fasttx.patch(model, unpad=False)
    assert differing(model, 12)
