"""fasttx.prune: which weights become zero, the report, int8, errors."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.optim import optimizer as optimizers

import fasttx
from fasttx.models import masks
from fasttx.models.families.family import Family
from fasttx.models.plan import FAMILIES

CLS = "BertForSequenceClassification"


def tiny(cls: str = CLS, **changes: Any) -> Any:
    return zoo.tiny_model(zoo.BERT, cls, **{"intermediate_size": 40} | changes)


def linears(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if type(m) is nn.Linear and ".layer." in f".{n}"}


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight == 0 for name, layer in linears(model).items()}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in FAMILIES])
def test_the_smallest_of_each_layer_of_encoders(family: Family) -> None:
    """The layers that become int8, in every family, and nothing else of the model."""
    kinds = ("sequence_classification", "inferred_classification", "image_classification")
    cls = next(name for name, kind in family.heads.items() if kind in kinds)
    model, other = (zoo.tiny_model(family, cls) for _ in range(2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = fasttx.prune(model, 0.3)
    wanted = {row.module for row in fasttx.quantize(other).replaced}
    assert {row.module for row in report.replaced} == wanted == set(report.sparsity)
    assert model.state_dict().keys() == before.keys()
    for name, after in model.state_dict().items():
        was = before[name]
        if name.removesuffix(".weight") not in wanted:
            assert torch.equal(after, was)
            continue
        gone = after == 0
        assert gone.sum() == round(0.3 * was.numel())
        assert was[gone].abs().max() <= was[~gone].abs().min() and torch.equal(after[~gone], was[~gone])
        assert report.sparsity[name.removesuffix(".weight")] == pytest.approx(0.3, abs=1e-3)
    assert report.zeros == pytest.approx(0.3, abs=1e-3) == report.to_dict()["zeros"]
    head = f"fasttx.prune({cls}): {len(wanted)} layers, 30.0% zeros; {len(report.left_alone)} left alone"
    assert " ".join(str(report).split()).startswith(head)


def test_two_of_each_four_inputs() -> None:
    model = tiny()
    before = {name: layer.weight.detach().clone() for name, layer in linears(model).items()}
    report = fasttx.prune(model, "2:4")
    assert set(report.sparsity.values()) == {0.5}
    for name, gone in zeros(model).items():
        fours, size = gone.view(len(gone), -1, 4), before[name].abs().view(len(gone), -1, 4)
        assert bool((fours.sum(-1) == 2).all())
        assert bool((size.masked_fill(~fours, 0).amax(-1) <= size.masked_fill(fours, 9).amin(-1)).all())
    odd = tiny(intermediate_size=37)
    assert {row.reason for row in fasttx.prune(odd, "2:4").left_alone} >= {"its 37 inputs are no multiple of 4"}


def test_a_larger_amount_keeps_what_was_pruned() -> None:
    model = tiny()
    steps = []
    for amount in (0.2, 0.5, "2:4", 0.75):
        fasttx.prune(model, amount)
        for layer in linears(model).values():  # now others are the smallest
            layer.weight.data += torch.where(layer.weight == 0, 0.0, torch.randn_like(layer.weight))
        steps.append(zeros(model))
    for layer in linears(model).values():  # as small as what was pruned, and free
        layer.weight.data[:16] = 0
    fasttx.prune(model, 0.75)
    assert all(torch.equal(masks.mask_of(layer).pruned, steps[-1][name]) for name, layer in linears(model).items())
    for layer in linears(model).values():
        layer.weight.data += torch.where(masks.mask_of(layer).pruned, 0.0, 1.0)
    for less, more in zip(steps, steps[1:]):
        assert all(bool((more[name] | ~less[name]).all()) for name in less)
    again = zeros(model)
    with pytest.raises(ValueError, match=r"amount: got 0.5; allowed is at least 0.75, by which \S+ is pruned already"):
        fasttx.prune(model, 0.5)
    assert same(zeros(model), again)
    loaded = tiny()
    loaded.load_state_dict(model.state_dict())
    fasttx.prune(loaded, 0.75)  # a saved model's zeros are its smallest weights
    assert same(zeros(loaded), again)


def test_nothing_global_stays() -> None:
    """The optimizers' hook goes with the last mask of the process."""
    gc.collect()  # models of other tests
    before = [hook for hook in optimizers._global_optimizer_post_hooks.values() if hook is not masks._after_step]
    model, other = tiny(), tiny()
    for each in (model, other):
        fasttx.prune(each, 0.5)
    assert list(optimizers._global_optimizer_post_hooks.values()) == [*before, masks._after_step]
    fasttx.prune(model, finish=True)
    assert masks._after_step in optimizers._global_optimizer_post_hooks.values()
    fasttx.prune(other, finish=True)
    assert not masks._live and list(optimizers._global_optimizer_post_hooks.values()) == before


def test_int8() -> None:
    model = tiny()
    fasttx.prune(model, 0.5)
    wanted = zeros(model)
    fasttx.quantize(model)
    for name, gone in wanted.items():
        assert bool((model.get_submodule(name).weight[gone] == 0).all())
    with pytest.raises(ValueError, match=r"model: got a \w+ whose \S+ is int8; allowed is pruning before fasttx.quant"):
        fasttx.prune(model, 0.6)


def test_what_is_left_alone() -> None:
    model = tiny()
    layer = model.bert.encoder.layer[0]
    nn.utils.parametrizations.weight_norm(layer.output.dense)
    torch_prune.l1_unstructured(layer.intermediate.dense, "weight", 0.1)
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = torch.inf
    report = fasttx.prune(model, 0.5, skip=["*.query", "*.1.attention.*"])
    reasons = {row.module.removeprefix("bert.encoder.layer."): row.reason for row in report.left_alone}
    assert "parametrize" in reasons["0.output.dense"] and "torch.nn.utils" in reasons["0.intermediate.dense"]
    assert "infinity" in reasons["1.output.dense"] and reasons["0.attention.self.query"] == "skip names it: '*.query'"
    assert len(report.replaced) == 4
    with pytest.warns(UserWarning, match="fasttx.prune pruned nothing: "):
        assert fasttx.prune(tiny(), 0.5, skip=["*"]).zeros == 0
    assert masks.mask_of(tiny().bert.encoder.layer[0].output.dense) is None


@pytest.mark.parametrize(
    ("error", "said", "arguments"),
    [
        *[(ValueError, f"amount: got {a!r}; allowed are", {"amount": a}) for a in (None, 0, 1, 1.5, "4:8", True)],
        (ValueError, "amount: got 0.5; allowed is finish=True without it", {"amount": 0.5, "finish": True}),
        (ValueError, "model: got a Bert.* without masks; allowed", {"finish": True}),
        (TypeError, "finish: got 1; allowed", {"finish": 1}),
        (TypeError, "skip: got 'x'; allowed", {"amount": 0.5, "skip": "x"}),
        (ValueError, "skip: got .'x'.; allowed", {"amount": 0.5, "skip": ["x"]}),
    ],
)
def test_errors(error: type[Exception], said: str, arguments: dict[str, Any]) -> None:
    model = tiny()
    with pytest.raises(error, match=said):
        fasttx.prune(model, **arguments)
    assert not any(masks.mask_of(layer) for layer in linears(model).values())
    assert not any(bool(gone.any()) for gone in zeros(model).values())
    with pytest.raises(ValueError, match="model: got Linear, without an encoder layer; allowed"):
        fasttx.prune(nn.Linear(2, 2), 0.5)
