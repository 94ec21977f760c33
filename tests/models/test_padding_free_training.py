"""Training on real tokens only: checkpoints, autocast, dropout, memory; and a packed model's life as an object."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate
from models.test_padding_free import LENS, bare, batch, layer_inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fasttx
from fasttx.models.families.family import Family


def labelled(*lengths: int) -> dict[str, Tensor]:
    inputs = batch(*lengths)
    return inputs | {"labels": torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3, -100)}


def gradients(model: Any, inputs: dict[str, Any], seed: int = 3) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non_reentrant"])
@pytest.mark.parametrize("with_lengths", [True, False])
def test_gradient_checkpointing(use_reentrant: bool, with_lengths: bool) -> None:
    """The layers are run twice each, packed both times, with the dropout of the first time."""
    model = bare("BertForTokenClassification", hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    inputs: dict[str, Any] = labelled(*LENS) | ({"seq_lens": list(LENS)} if with_lengths else {})
    seen: list[tuple[int, ...]] = []  # below the layer, whose own hooks newer versions of transformers call once
    for watched in (False, True):  # while someone watches, parts run unfused, which rounds otherwise
        if watched:
            zoo.before(model.base_model.encoder.layer[0].attention, lambda args: seen.append(tuple(args[0].shape)))
        want = gradients(model, inputs)
        seen.clear()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        got = gradients(model, inputs)
        model.gradient_checkpointing_disable()
        assert got.keys() == want.keys()
        for name, value in got.items():
            torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-7)
    assert seen == [(1, 22, 32)] * 2


def test_autocast() -> None:
    """bf16 in the layers; what is packed and put back keeps the dtypes that transformers has."""
    model = zoo.tiny_model(zoo.BERT, "BertForTokenClassification", initializer_range=0.05)
    inputs = labelled(*LENS)
    real = inputs["attention_mask"].bool()
    want64 = zoo.double_of(model)(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(**inputs)
        fasttx.patch(model)
        seen = layer_inputs(model)
        got = model(**inputs, output_hidden_states=False)
    assert seen == [(1, 22, 32)] and got.logits.dtype == want.logits.dtype
    assert_as_accurate(got.logits[real], want.logits[real], want64.logits[real], "logits")
    got.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("where", ["hidden", "attention_probs"])
def test_dropout(where: str) -> None:
    model = bare(**{f"{where}_dropout_prob": 0.5}).train()
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(**inputs).last_hidden_state[real]

    seen = layer_inputs(model)
    one, again, other = run(1), run(1), run(2)
    assert seen == [(1, 22, 32)] * 3 and one.isfinite().all()
    assert torch.equal(one, again)
    assert (one != other).any(-1).all()  # acts on every token of every sequence
    model.eval()
    assert torch.equal(run(1), run(2))


class Counts(TorchDispatchMode):
    """How often each of PyTorch's operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", zoo.TEXT_FAMILIES, ids=lambda family: family.name)
def test_the_dim_of_one_row_costs_backward_nothing(family: Family) -> None:
    """The gradient of x[0] is zeros of x's size and a copy into them; of x.squeeze(0) it is a view."""
    inputs = zoo.inputs_for(family, family.bare)
    model = zoo.tiny_model(family, family.bare).train()
    fasttx.patch(model)
    hidden = model(**inputs).last_hidden_state
    with Counts() as found:
        hidden.square().sum().backward()
    assert found.calls["mul"] and not found.calls["select_backward"], found.calls


def test_the_padded_hidden_states_do_not_live_on() -> None:
    """Backward needs where the tokens were, not the padded copy that they came from."""
    model = bare()
    leaf = torch.randn(3, 11, 32, requires_grad=True)
    hidden = leaf * 1.0
    alive = weakref.ref(hidden)
    output = model.encoder(hidden, attention_mask=batch(*LENS)["attention_mask"]).last_hidden_state
    del hidden
    gc.collect()
    assert alive() is None
    output.square().sum().backward()
    real = batch(*LENS)["attention_mask"].bool()
    assert leaf.grad is not None and leaf.grad[real].ne(0).all() and leaf.grad[~real].eq(0).all()


def test_the_padded_result_does_not_live_on() -> None:
    model = bare()
    output = model.encoder(torch.randn(3, 11, 32), attention_mask=batch(*LENS)["attention_mask"]).last_hidden_state
    alive, total = weakref.ref(output), output.sum()
    del output
    gc.collect()
    assert alive() is None
    total.backward()


def test_functional_transforms_see_a_padded_batch() -> None:
    """What they cannot trace through is the count of the mask: its values differ along a mapped dimension."""
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    plain, model = bare("BertForTokenClassification", unpad=None), bare("BertForTokenClassification")
    seen = layer_inputs(model)

    def loss(weights: dict[str, Tensor], model: Any) -> Tensor:
        logits = torch.func.functional_call(model, weights, (), inputs).logits
        return torch.where(real[..., None], logits, 0.0).square().sum()

    weights = {name: p.detach() for name, p in model.named_parameters()}
    got, want = (torch.func.grad(loss)(weights, m) for m in (model, plain))
    assert seen == [(3, 11, 32)]
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------------------- the life of a patch


def test_unpatch_gives_the_encoder_its_class_back() -> None:
    model = bare(unpad=None)
    cls, inputs = type(model.encoder), batch(*LENS)
    want = model(**inputs).last_hidden_state
    fasttx.patch(model)
    assert type(model.encoder) is not cls and type(model.encoder).__name__ == cls.__name__
    assert isinstance(model.encoder, cls)
    fasttx.unpatch(model)
    assert type(model.encoder) is cls and "_fasttx" not in model.encoder.__dict__
    assert torch.equal(model(**inputs).last_hidden_state, want)  # at padding too


def test_a_bound_forward_outlives_unpatch() -> None:
    """accelerate keeps the forward that it found when it wrapped a module."""
    model, inputs = bare(), batch(*LENS)
    mask = inputs["attention_mask"]
    kept = model.encoder.forward
    fasttx.unpatch(model)
    hidden = model.embeddings(inputs["input_ids"])
    got, want = (f(hidden, mask[:, None, None, :].bool()).last_hidden_state for f in (kept, model.encoder))
    assert torch.equal(got, want)
    model.set_attn_implementation("fasttx")  # without a patch
    seen = layer_inputs(model)
    kept(hidden, mask)
    assert seen == [(3, 11, 32)]


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save_pretrained"])
def test_copies_pack_as_the_original(how: str, tmp_path: Path) -> None:
    model, inputs = bare(unpad=True), batch(*LENS)
    want = model(**inputs).last_hidden_state
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        model.save_pretrained(tmp_path)
        fasttx.unpatch(model)
        twin = type(model).from_pretrained(tmp_path)
        assert type(twin.encoder) is type(model.encoder)
        fasttx.patch(twin, unpad=True)
    seen = layer_inputs(twin)
    assert torch.equal(twin(**inputs).last_hidden_state, want)
    assert seen == [(1, 22, 32)]


def test_an_encoder_that_was_prepared_is_reported() -> None:
    """A forward on the instance: our class would never be asked."""
    model, inputs = bare(unpad=None), batch(*LENS)
    want = model(**inputs).last_hidden_state
    cls, inner = type(model.encoder), model.encoder.forward
    model.encoder.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    report = fasttx.patch(model)
    (row,) = [row for row in report.left_alone if row.before == "padded batch"]
    assert row.module == "encoder" and "on the instance (accelerate does that)" in row.reason
    assert type(model.encoder) is cls
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).last_hidden_state[real], want[real], rtol=1e-4, atol=1e-5)
