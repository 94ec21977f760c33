"""Query, key and value as one product: where it runs, and where the three layers run separately."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from torch import Tensor, nn
from torch.nn.modules import module as modules

import fasttx
from fasttx.models.fusions import fusion, qkv
from fasttx.models.fusions.joint_linear import joint_linear
from fasttx.models.fusions.qkv import Projections

JOINED: list[int] = []


@pytest.fixture(autouse=True)
def _count(monkeypatch: pytest.MonkeyPatch) -> None:
    """JOINED gets the number of rows of each joint product."""
    JOINED.clear()

    def counted(input: Tensor, *rest: Any) -> Any:
        JOINED.append(input.shape[:-1].numel())
        return joint_linear(input, *rest)

    monkeypatch.setattr(qkv, "joint_linear", counted)


def run(model: Any, **inputs: Any) -> Any:
    JOINED.clear()
    return model(**(inputs or zoo.inputs_for(zoo.BERT, "BertModel")))


# --------------------------------------------------------------------------------------------------- the product itself


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("frozen", [(), (0,), (2,), (1, 5)], ids=str)
def test_against_separate_layers(biased: bool, frozen: tuple[int, ...]) -> None:
    """Values and gradients, with outputs of different widths; what needs no gradient gets none."""
    x = torch.randn(3, 5, 8, requires_grad=True)
    weights = [torch.randn(n, 8, requires_grad=True) for n in (4, 6, 2)]
    biases = [torch.randn(n, requires_grad=True) for n in (4, 6, 2)] if biased else None
    inputs = [x, *weights, *(biases or ())]
    for i in frozen:
        if i < len(inputs):
            inputs[i].requires_grad_(False)
    found = joint_linear(x, weights, biases)
    wanted = [nn.functional.linear(x, w, b) for w, b in zip(weights, biases or (None,) * 3, strict=True)]
    douts = [torch.randn_like(y) for y in wanted]
    asked = [t for t in inputs if t.requires_grad]
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)
    grads = torch.autograd.grad(found, asked, douts)
    for got, want in zip(grads, torch.autograd.grad(wanted, asked, douts), strict=True):
        torch.testing.assert_close(got, want)


def test_second_derivatives() -> None:
    x, *rest = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (2, 4), (3, 4), (2,), (3,)))
    assert torch.autograd.gradgradcheck(lambda x, *rest: joint_linear(x, rest[:2], rest[2:]), (x, *rest))


def test_one_output_alone_is_used() -> None:
    x, *weights = (torch.randn(*s, requires_grad=True) for s in ((3, 4), (2, 4), (5, 4)))
    joint_linear(x, weights, None)[1].sum().backward()
    torch.testing.assert_close(x.grad, weights[1].detach().sum(0).expand(3, 4))
    assert weights[0].grad is None or not bool(weights[0].grad.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    x = torch.randn(3, 8, requires_grad=True)
    weights, biases = [torch.randn(4, 8, requires_grad=True) for _ in range(3)], [torch.randn(4) for _ in range(3)]
    with torch.autocast("cpu", dtype):
        found = joint_linear(x, weights, biases)
        wanted = [nn.functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
    assert {y.dtype for y in found} == {dtype}
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    found[0].float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32 and weights[0].grad.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------ in a model


def test_a_cache_by_position_is_seen() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertLMHeadModel")
    fasttx.patch(model)
    cache = transformers.DynamicCache(config=model.config)
    attention = model.bert.encoder.layer[0].attention.self
    attention(torch.randn(1, 3, 32), None, cache)
    assert not JOINED and cache.get_seq_length() == 3
    attention(torch.randn(1, 3, 32), None, None)
    assert JOINED == [3]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", {f: None for f, _ in zoo.CLASSES if f.roles(Projections)}, ids=lambda f: f.name)
def test_every_family_joins_all_its_layers(family: Any, training: bool) -> None:
    plain = zoo.tiny_model(family, family.bare).train(training)
    model = copy.deepcopy(plain)
    report = fasttx.patch(model)
    assert len([row for row in report.replaced if row.after == "one product"]) == zoo.DISTINCT.get(family.model_type, 2)
    inputs = zoo.inputs_for(family, family.bare)
    want = plain(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool() if "attention_mask" in inputs else torch.ones(want.shape[:2]).bool()
    got, want = run(model, **inputs).last_hidden_state[real], want[real]
    assert JOINED == [int(real.sum())] * 2  # real tokens only
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    dout = torch.randn_like(want)
    got.backward(dout)
    want.backward(dout)
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_weights_attentions_and_dropout() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel", attention_probs_dropout_prob=0.5)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    fasttx.patch(model)
    with torch.no_grad():
        joined = run(model, **inputs, output_attentions=True)
        assert len(JOINED) == 2 and len(joined.attentions) == 2
        fasttx.patch(model, qkv=False)
        want = run(model, **inputs, output_attentions=True)
        assert not JOINED
        for got, other in zip(joined.attentions, want.attentions, strict=True):
            torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-6)
        fasttx.patch(model)
        model.train()
        torch.manual_seed(0)
        first = run(model, **inputs).last_hidden_state
        second = run(model, **inputs).last_hidden_state
    assert JOINED and not torch.allclose(first, second)


def test_one_product_follows_the_optimizer_and_loading() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    other = zoo.tiny_model(zoo.BERT, "BertModel", seed=5)
    fasttx.patch(model)
    run(model)
    model.load_state_dict(other.state_dict())
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        run(model, **inputs).last_hidden_state[real], other(**inputs).last_hidden_state[real], rtol=1e-4, atol=1e-5
    )


class MyLinear(nn.Linear):
    """A user's layer."""


def _lora_like(attention: Any) -> None:
    old = attention.query
    attention.query = MyLinear(old.in_features, old.out_features)
    attention.query.load_state_dict(old.state_dict())


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "subclass": (_lora_like, "query is a .*MyLinear"),
    "forward hook": (lambda a: a.key.register_forward_hook(lambda *_: None), "key has hooks"),
    "backward hook": (lambda a: a.value.register_full_backward_hook(lambda *_: None), "value has hooks"),
    "pre-hook": (lambda a: a.value.register_forward_pre_hook(lambda *_: None), "value has hooks"),
    "parametrised": (
        lambda a: nn.utils.parametrize.register_parametrization(a.key, "weight", nn.Identity()),
        "key is a .*Parametrized",
    ),
    "own forward": (lambda a: setattr(a.query, "forward", a.query.forward), "query has a forward of its own"),
    "one bias": (lambda a: setattr(a.key, "bias", None), "some of query, key and value have a bias"),
    "dtypes": (lambda a: a.value.double(), "query, key and value differ in dtype"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_are_not_plain_stay_separate_and_the_report_says_why(change: str) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    mutate, reason = CHANGES[change]
    mutate(model.encoder.layer[1].attention.self)
    report = fasttx.patch(model)
    left = [row for row in report.left_alone if row.before == "three products for q, k, v"]
    assert [row.module for row in left] == ["encoder.layer.1.attention.self"]

    assert re.search(reason, left[0].reason)
    if change != "dtypes":
        run(model)
        assert len(JOINED) == 1  # the other layer


@pytest.mark.parametrize(
    "register",
    [
        modules.register_module_forward_hook,
        modules.register_module_forward_pre_hook,
        modules.register_module_full_backward_hook,
        modules.register_module_full_backward_pre_hook,
    ],
)
def test_hooks_on_every_module_see_the_layers(register: Callable[..., Any]) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model)
    seen: list[nn.Module] = []
    handle = register(lambda module, *_: seen.append(module) if isinstance(module, nn.Linear) else None)
    try:
        run(model).pooler_output.sum().backward()
    finally:
        handle.remove()
    assert any(module is model.encoder.layer[0].attention.self.key for module in seen)
    assert not JOINED


@pytest.mark.parametrize("change", [c for c in CHANGES if c != "dtypes"])
def test_what_changes_after_patching_is_seen_at_the_call(change: str) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model)
    run(model)
    assert len(JOINED) == 2
    CHANGES[change][0](model.encoder.layer[0].attention.self)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    real = inputs["attention_mask"].bool()
    got = run(model, **inputs).last_hidden_state[real]
    assert len(JOINED) == 1
    fasttx.unpatch(model)
    torch.testing.assert_close(got, model(**inputs).last_hidden_state[real], rtol=1e-4, atol=1e-5)


def test_another_implementation_a_cache_and_cross_attention_stay_separate() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model)
    model.set_attn_implementation("eager")
    run(model)
    assert not JOINED
    decoder = zoo.tiny_model(zoo.BERT, "BertLMHeadModel", add_cross_attention=True)
    fasttx.patch(decoder)
    ids = torch.randint(2, zoo.VOCAB, (2, 5))
    states = torch.randn(2, 7, 32)
    run(decoder, input_ids=ids, encoder_hidden_states=states, use_cache=False)
    assert JOINED == [10, 10]
    run(decoder, input_ids=ids, encoder_hidden_states=states, use_cache=True)
    assert not JOINED


def test_on_a_cpu_and_when_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    report = fasttx.patch(model, qkv=False)
    assert not [row for row in report.rows if row.before == "three products for q, k, v"]
    run(model)
    assert not JOINED
    monkeypatch.undo()
    assert "cpu" in fusion.UNFUSED_ON
    with pytest.raises(TypeError, match="qkv: got 'yes'; allowed are True and False"):
        fasttx.patch(model, qkv="yes")


def test_separate_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "UNFUSED_ON", frozenset(("cpu",)))
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    assert "on a CPU separate calls" in str(fasttx.patch(model))
    run(model)
    assert not JOINED


def test_transforms_of_torch_func_and_compiled_graphs() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    fasttx.patch(model)
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    want = run(model, **inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    params = dict(model.named_parameters())
    JOINED.clear()

    def loss(params: Any) -> Tensor:
        return torch.func.functional_call(model, params, kwargs=inputs).last_hidden_state[real].square().sum()

    torch.func.grad(loss)(params)
    assert not JOINED
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = run(compiled, **inputs).last_hidden_state
    assert len(JOINED) == 2
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-5)
    got[real].sum().backward()
    assert model.encoder.layer[0].attention.self.key.weight.grad is not None
