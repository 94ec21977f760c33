"""What the tests of a fusion (fasttx/models/fusions/fusion.py) share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from models import model_zoo as zoo
from torch import Tensor

import fasttx


def hidden_and_gradients(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden states of real tokens, and the gradients of a random combination of them."""
    hidden = model(**inputs).last_hidden_state
    if "attention_mask" in inputs:
        hidden = hidden[inputs["attention_mask"].bool()]
    hidden.backward(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3)).to(hidden))
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_like(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-4, msg=name)


def assert_stays_unfused(
    mutate: Callable[[Any], Any],
    reason: str,
    before: str,
    where: str,
    fused: list[Any],
    all_fused: int,
    family: Any = zoo.BERT,
    fewer: int = 1,
) -> None:
    """A module that `mutate` changed stays unfused, whether before the patch or after it; the result is transformers'.

    Args:
        mutate, reason: the change, and a pattern of what the report says of it.
        before: what the report calls the fusion.
        where: the module, by its name in the family's bare model.
        fused: gets an entry for each fused call.
        all_fused: how many fused calls a model makes.
        fewer: how many of them the change prevents.
    """
    inputs, real = zoo.inputs_for(zoo.BERT, "BertModel"), zoo.padding_mask().bool()
    early, late = (zoo.tiny_model(family, family.bare) for _ in range(2))
    mutate(early.get_submodule(where))
    report = fasttx.patch(early, unpad=False)
    left = [row for row in report.left_alone if row.before == before]
    assert [row.module for row in left] == [where] and re.search(reason, left[0].reason)
    fasttx.patch(late, unpad=False)
    mutate(late.get_submodule(where))
    found = []
    for model in (early, late):
        fused.clear()
        found.append(model(**inputs).last_hidden_state[real])
        assert len(fused) == all_fused - fewer
    fasttx.unpatch(late)
    want = late(**inputs).last_hidden_state[real]
    for hidden in found:
        torch.testing.assert_close(hidden, want, rtol=1e-4, atol=1e-5)
