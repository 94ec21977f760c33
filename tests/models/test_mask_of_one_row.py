"""A mask of one row holds for every row of a batch, in each family and head, packed and padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor

import fasttx
from fasttx.models.families.family import Family

SHOWN = 7
"""Real tokens of each row."""


def one_row(inputs: dict[str, Tensor]) -> Tensor:
    """The mask; the padding token comes where it is 0."""
    mask = torch.ones_like(inputs["attention_mask"][:1])
    mask[..., SHOWN:] = 0
    inputs["input_ids"][..., SHOWN:] = 1
    return mask


def outputs(model: Any, inputs: dict[str, Any], mask: Tensor) -> dict[str, Tensor]:
    found = model(**(inputs | {"attention_mask": mask}))
    return {name: t.detach() for name, t in found.items() if isinstance(t, Tensor)}


@pytest.mark.parametrize("options", [{}, {"unpad": False, "loss": "hf"}], ids=["packed", "padded, hf"])
@pytest.mark.parametrize(("family", "cls"), zoo.TEXT_CLASSES, ids=zoo.TEXT_IDS)
def test_every_head(family: Family, cls: str, options: dict[str, Any]) -> None:
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    fasttx.patch(model, **options)
    mask = one_row(inputs)
    every = mask.repeat(len(zoo.LENGTHS), *[1] * (mask.dim() - 1))
    want = outputs(model, inputs, every)
    torch.testing.assert_close(outputs(model, inputs, mask), want)
    hidden = outputs(model, inputs, torch.ones_like(every))
    assert any(not torch.allclose(t, hidden[name]) for name, t in want.items()), "the mask hides nothing"


@pytest.mark.parametrize(
    "family", [f for f in zoo.TEXT_FAMILIES if f.name != "ModernBERT"], ids=lambda family: family.name
)
def test_a_mask_of_ones_as_in_transformers(family: Family) -> None:
    """The one that its own functions take, but for windows of attention."""
    model, inputs = zoo.tiny_model(family, family.bare), zoo.inputs_for(family, family.bare)
    ones = torch.ones_like(inputs["attention_mask"][:1])
    want = outputs(model, inputs, ones)
    fasttx.patch(model)
    found = outputs(model, inputs, ones)
    for name, t in want.items():
        torch.testing.assert_close(found[name], t, rtol=1e-4, atol=1e-4)


def test_beside_lengths() -> None:
    """They say the same as the mask, or are refused."""
    model, inputs = zoo.tiny_model(zoo.BERT, "BertModel"), zoo.inputs_for(zoo.BERT, "BertModel")
    fasttx.patch(model)
    mask, lengths = one_row(inputs), (SHOWN,) * len(zoo.LENGTHS)
    want = outputs(model, inputs, mask.repeat(len(zoo.LENGTHS), 1))
    torch.testing.assert_close(outputs(model, inputs | {"seq_lens": lengths}, mask), want)
    with pytest.raises(ValueError, match="^seq_lens: got other tokens than attention_mask marks; allowed are"):
        model(**(inputs | {"attention_mask": mask}), seq_lens=zoo.LENGTHS)


def test_the_encoder_alone() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertModel"), zoo.inputs_for(zoo.BERT, "BertModel")
    fasttx.patch(model)
    mask, hidden = one_row(inputs).bool(), torch.randn(3, 11, 32)
    shapes: list[torch.Size] = []
    zoo.before(model.encoder.layer[0], lambda args: shapes.append(args[0].shape))
    found, want = (model.encoder(hidden, m).last_hidden_state for m in (mask, mask.repeat(3, 1)))
    torch.testing.assert_close(found, want)
    assert shapes == [(1, 3 * SHOWN, 32)] * 2


@pytest.mark.parametrize("rows", [1, 3])
def test_the_attention_function(rows: int) -> None:
    q = torch.randn(3, 4, 11, 8)
    mask = (torch.arange(11) < SHOWN)[None].repeat(rows, 1)
    out, _ = fasttx.models.fasttx_attention(torch.nn.Module(), q, q, q, mask, is_causal=False)
    want = torch.nn.functional.scaled_dot_product_attention(q, q[:, :, :SHOWN], q[:, :, :SHOWN])
    torch.testing.assert_close(out, want.transpose(1, 2))


def test_two_rows_for_three_stay_an_error() -> None:
    model, inputs = zoo.tiny_model(zoo.BERT, "BertModel"), zoo.inputs_for(zoo.BERT, "BertModel")
    fasttx.patch(model)
    with pytest.raises(ValueError, match=r"attention_mask: got shape \(2, 11\); .* or one row for all, \(1, 11\)"):
        model(**(inputs | {"attention_mask": inputs["attention_mask"][:2]}))
