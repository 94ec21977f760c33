"""The life of models whose layers are not BERT's: one graph, checkpoints, copies, and back to transformers' classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor
from transformers.models.albert import modeling_albert
from transformers.models.distilbert import modeling_distilbert

import fasttx

DISTILBERT, ALBERT, VIT = (zoo.BY_NAME[name] for name in ("DistilBERT", "ALBERT", "ViT"))
LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
EXAMPLES = [(DISTILBERT, "DistilBertForMaskedLM"), (ALBERT, "AlbertForMaskedLM"), (VIT, "ViTForImageClassification")]
EXAMPLES = [(family, cls) for family, cls in EXAMPLES if family in zoo.FAMILIES]
of_every_kind = pytest.mark.parametrize(("family", "cls"), EXAMPLES, ids=[cls for _, cls in EXAMPLES])


@of_every_kind
def test_compiled_in_one_graph(family: Any, cls: str) -> None:
    torch.compiler.reset()
    model, inputs = zoo.tiny_model(family, cls).train(), zoo.inputs_for(family, cls)
    model(**inputs)  # settles config.problem_type
    fasttx.patch(model, mlm_head="full")
    want = model(**inputs)
    want.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    got.loss.backward()
    torch.testing.assert_close(got.loss, want.loss)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, grads[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("family", "cls"), [e for e in EXAMPLES if e[0] is not ALBERT], ids=lambda x: getattr(x, "name", x)
)
def test_gradient_checkpointing(family: Any, cls: str) -> None:
    """transformers offers none for ALBERT."""
    model = zoo.tiny_model(family, cls, attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.1).train()
    inputs = zoo.inputs_for(family, cls)
    fasttx.patch(model)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    want = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls: list[int] = []
    zoo.before(zoo.layers_of(model)[0], lambda args: calls.append(1))
    got = gradients()
    assert got.keys() == want.keys() and len(calls) == 2  # once more in backward
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


@of_every_kind
def test_copies_are_patched_and_unpatched_by_themselves(family: Any, cls: str) -> None:
    model, inputs = zoo.tiny_model(family, cls), zoo.inputs_for(family, cls)
    fasttx.patch(model)
    twin = copy.deepcopy(model)
    assert torch.equal(model(**inputs)[0], twin(**inputs)[0])
    fasttx.unpatch(twin)
    assert fasttx.is_patched(model) and not fasttx.is_patched(twin)
    assert {type(m).__module__.split(".")[0] for m in twin.modules()} <= {"torch", "transformers"}


def test_classes_of_several_parts_go_back_to_transformers() -> None:
    model = zoo.tiny_model(ALBERT, "AlbertModel")
    layer = model.get_submodule(LAYER)
    fasttx.patch(model)
    assert type(layer).__name__ == "AlbertLayer" and type(layer) is not modeling_albert.AlbertLayer
    assert type(layer).ff_chunk is not modeling_albert.AlbertLayer.ff_chunk
    fasttx.unpatch(model)
    assert type(layer) is modeling_albert.AlbertLayer
    model = zoo.tiny_model(DISTILBERT, "DistilBertModel")
    fasttx.patch(model, loss=None)
    fasttx.unpatch(model)
    assert type(model.transformer.layer[0]) is modeling_distilbert.TransformerBlock
