"""Bare models that call their layers themselves run on real tokens only, and compute what transformers computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_padding_free import LENS, assert_like_transformers, batch, layer_inputs, masked
from torch import Tensor, nn

import fasttx
from fasttx.models.families.family import Family
from fasttx.models.padding.whole import WholeModel

FAMILIES = [family for family in zoo.FAMILIES if family.roles(WholeModel)]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
pytestmark = pytest.mark.skipif(not FAMILIES, reason=zoo.BUILT_OTHERWISE)
REAL = batch(*LENS)["attention_mask"].bool()


def patched(family: Family, unpad: bool | str = "auto", **changes: Any) -> Any:
    model = zoo.tiny_model(family, family.bare, **changes)
    fasttx.patch(model, unpad=unpad)
    return model


@every_family
@pytest.mark.parametrize("given", ["ids", "embeddings", "positions", "lengths"])
def test_layers_see_real_tokens_only(family: Family, given: str) -> None:
    """Whatever says what the tokens are, where they stand, and how many there are."""
    model, inputs = patched(family), batch(*LENS)
    if given == "embeddings":
        inputs["inputs_embeds"] = torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(2))
        del inputs["input_ids"]
    if given == "positions":
        inputs["position_ids"] = torch.arange(11)[None] * 3 % 17
    if given == "lengths":
        model(**inputs, seq_lens=list(LENS))
    seen = layer_inputs(model)
    assert_like_transformers(model, inputs, REAL)
    assert seen.count((1, 22, 32)) == 1  # the others are of models that are not patched
    assert model(**inputs, return_dict=False)[0][1, 4:].eq(0).all()


@every_family
@pytest.mark.parametrize("rows", ["11111111111 00000001111 00001111111", "11111111111 00011110000 11111110000"])
def test_tokens_keep_their_positions_behind_padding(family: Family, rows: str) -> None:
    mask = torch.tensor([[int(c) for c in row] for row in rows.split()])
    model = patched(family, unpad=True)
    seen = layer_inputs(model)
    assert_like_transformers(model, masked(mask), mask.bool())
    assert (1, int(mask.sum()), 32) in seen


@every_family
def test_padding_between_tokens_keeps_windows_and_stays(family: Family) -> None:
    mask = torch.tensor([[int(c) for c in row] for row in "11110111101 10000000001 11010110000".split()])
    model = patched(family, unpad=True)
    seen = layer_inputs(model)
    assert_like_transformers(model, masked(mask), mask.bool())
    windows = any(encoder.distances for encoder in family.roles(WholeModel).values())
    assert ((1, int(mask.sum()), 32) in seen) is not windows


@every_family
def test_checkpoints_drop_the_same(family: Family) -> None:
    model = patched(family, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    seen = layer_inputs(model)

    def gradients() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        model(**batch(*LENS)).last_hidden_state.square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    want = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for got, wanted in zip(gradients(), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert set(seen) == {(1, 22, 32)}


@every_family
def test_a_hook_and_what_is_asked_for_see_padded_shapes(family: Family) -> None:
    model, inputs = patched(family), batch(*LENS)
    assert model(**inputs, output_hidden_states=True).hidden_states[1].shape == (3, 11, 32)
    shapes: list[Any] = []
    part: nn.Module = model.embeddings
    part.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    seen = layer_inputs(model)
    model(**inputs)
    assert shapes == seen == [(3, 11, 32)]


def test_positions_are_those_of_the_padded_rows() -> None:
    """Rotary embeddings see the length of a batch by them, and lose digits at large ones."""
    model = patched(zoo.BY_NAME["ModernBERT"])
    positions: list[Tensor] = []
    zoo.before(model.rotary_emb, lambda args: positions.append(args[1]))
    model(**batch(*LENS))
    assert torch.equal(positions[0], torch.arange(11).expand(3, 11)[REAL][None])
