"""Calls of a padding-free encoder that have to run padded, and do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_padding_free import (
    LENS,
    assert_like_transformers,
    bare,
    batch,
    layer_inputs,
)
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

import fasttx
from fasttx.functional.attention import torch_fn
from fasttx.functional.attention.torch_fn import torch_attention
from fasttx.models.padding import decision as padding_free


@pytest.mark.parametrize("how", ["call", "config"])
def test_hidden_states_and_attentions_have_padded_shapes(how: str) -> None:
    """By the config hidden states alone: transformers refuses output_attentions there but for its eager attention."""
    plain, model = bare(unpad=None), bare()
    plain.set_attn_implementation("eager")
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    wanted = {"output_hidden_states": True, "output_attentions": True} if how == "call" else {}
    if how == "config":  # after the patch
        model.config.output_hidden_states = plain.config.output_hidden_states = True
    got, want = model(**inputs, **wanted), plain(**inputs, **wanted)
    assert [h.shape for h in got.hidden_states] == [(3, 11, 32)] * 3
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], rtol=1e-4, atol=1e-4)
    if how == "call":
        assert [a.shape for a in got.attentions] == [(3, 4, 11, 11)] * 2
        for a, b in zip(got.attentions, want.attentions, strict=True):
            torch.testing.assert_close(a.transpose(1, 2)[real], b.transpose(1, 2)[real], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_either_of_the_two_is_reason_enough(asked: str) -> None:
    model = bare()
    seen = layer_inputs(model)
    model(**batch(*LENS), **{asked: True})
    assert seen == [(3, 11, 32)]


class OwnLayer(nn.Module):
    """A user's layer, which knows nothing of where sequences start."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        return self.inner(hidden_states, attention_mask)


def _own_layer(model: Any) -> None:
    model.encoder.layer[1] = OwnLayer(model.encoder.layer[1])


def _own_class(path: str) -> Callable[[Any], None]:
    """A subclass whose forward passes on the hidden states and the mask alone."""

    def change(model: Any) -> None:
        module = model.get_submodule(path)
        base = type(module)
        forward = lambda self, hidden, attention_mask=None, *_, **__: base.forward(self, hidden, attention_mask)  # noqa: E731
        module.__class__ = type(f"My{base.__name__}", (base,), {"forward": forward})

    return change


def _own_forward(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        inner = module.forward
        module.forward = lambda hidden, attention_mask=None, *_, **__: inner(hidden, attention_mask)

    return change


PARTS = ("encoder.layer.1", "encoder.layer.0.attention", "encoder.layer.1.attention.self")
STRANGERS = {"layer": _own_layer}
STRANGERS |= {f"class of {path}": _own_class(path) for path in PARTS}
STRANGERS |= {f"forward of {path}": _own_forward(path) for path in PARTS}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", list(STRANGERS))
def test_a_part_that_may_lose_the_lengths_gets_a_padded_batch(name: str, when: str) -> None:
    want_model, model = bare(unpad=None), bare(unpad=None)
    if when == "before":
        STRANGERS[name](model)
    report = fasttx.patch(model)
    if when == "after":
        STRANGERS[name](model)
    reasons = [row.reason.split(" is not")[0] for row in report.left_alone if row.before == "padded batch"]
    part = "layer.1" if name == "layer" else name.split("encoder.")[1]
    assert reasons == ([part] if when == "before" else []), report
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    seen = layer_inputs(model)
    got, want = model(**inputs).last_hidden_state, want_model(**inputs).last_hidden_state
    assert seen == [(3, 11, 32)]
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_chunked_feed_forward_runs_padded(when: str) -> None:
    model = bare(unpad=None, chunk_size_feed_forward=11 if when == "before" else 0)
    report = fasttx.patch(model)
    if when == "before":
        assert any("chunk_size_feed_forward is 11" in row.reason for row in report.left_alone)
    else:
        model.config.chunk_size_feed_forward = 11
    inputs = batch(*LENS)
    seen = layer_inputs(model)
    assert_like_transformers(model, inputs, inputs["attention_mask"].bool())
    assert seen[-1] == (3, 11, 32)


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_cache_is_filled_by_padded_batches(prefix: int) -> None:
    """Also in encoders: prefix tuning gives them keys and values."""
    inputs = batch(*LENS)
    real = inputs["attention_mask"].bool()
    inputs["attention_mask"] = nn.functional.pad(inputs["attention_mask"], (prefix, 0), value=1)
    found = []
    for model in (bare(unpad=None), bare()):
        cache, generator = DynamicCache(), torch.Generator().manual_seed(3)
        for layer in range(2 if prefix else 0):
            keys, values = torch.randn(2, 3, 4, prefix, 8, generator=generator)
            cache.update(keys, values, layer)
        seen = layer_inputs(model)
        found.append(model(**inputs, past_key_values=cache).last_hidden_state[real])
        assert seen == [(3, 11, 32)] and cache.get_seq_length() == prefix + 11
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["position", "encoder_hidden_states", "encoder_attention_mask"])
def test_cross_attention_goes_by_padded_rows(how: str) -> None:
    model = bare()
    seen = layer_inputs(model)
    hidden, mask = torch.randn(3, 11, 32), batch(*LENS)["attention_mask"]
    more = {} if how == "position" else {how: hidden}
    model.encoder(hidden, mask, *([hidden] if how == "position" else []), **more)
    assert seen == [(3, 11, 32)]


def test_a_mask_beside_a_flattened_batch_stays_an_error() -> None:
    starts = torch.tensor([0, 11, 15, 22], dtype=torch.int32)
    flat = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=11, max_length_k=11)
    with pytest.raises(
        ValueError,
        match="^attention_mask: got one with cu_seq_lens_q; allowed is None, as lengths describe a packed batch",
    ):
        bare()(**batch(15, seqlen=22), **flat)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_attention_after_the_patch_runs_padded(implementation: str) -> None:
    model, inputs = bare(), batch(*LENS)
    model.set_attn_implementation(implementation)
    seen = layer_inputs(model)
    got, want = model(**inputs).last_hidden_state, bare(unpad=None)(**inputs).last_hidden_state
    assert seen == [(3, 11, 32)]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)


def test_a_users_attention_that_takes_the_mask_of_tokens_runs_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of that mask is what packing looks for; where sequences start, such a function does not know."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **_: Any) -> tuple[Tensor, None]:
        keys = None if mask is None else mask[:, None, None, :].bool()
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "mine", attend)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "mine", lambda attention_mask, **_: attention_mask)
    model, inputs = bare(), batch(*LENS)
    model.set_attn_implementation("mine")
    seen = layer_inputs(model)
    got, want = model(**inputs).last_hidden_state, bare(unpad=None)(**inputs).last_hidden_state
    assert seen == [(3, 11, 32)]
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)


def test_a_decoder_is_reported_and_runs_padded() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertLMHeadModel")
    report = fasttx.patch(model)
    assert ["is a decoder" in row.reason for row in report.left_alone if row.before == "padded batch"] == [True]
    seen = layer_inputs(model)
    real = batch(*LENS)["attention_mask"].bool()
    model.base_model.encoder(torch.randn(3, 11, 32), real)
    assert seen == [(3, 11, 32)]


def test_the_result_follows_the_last_layer_to_its_device() -> None:
    """Layers spread over devices; "meta" is the second device that every machine has."""
    model = bare()
    zoo.after(model.encoder.layer[-1], lambda output: output.to("meta"))
    hidden = torch.randn(2, 11, 32)
    output = model.encoder(hidden, attention_mask=batch(11, 4)["attention_mask"]).last_hidden_state
    assert output.is_meta and output.shape == (2, 11, 32)


def test_nothing_is_counted_without_data() -> None:
    model = bare().to("meta")
    seen = layer_inputs(model)
    output = model(**{name: value.to("meta") for name, value in batch(11, 4).items()})
    assert output.last_hidden_state.is_meta and seen == [(2, 11, 32)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_graph_holds_for_every_mask() -> None:
    model = bare(return_dict=False).requires_grad_(False)
    one, other = batch(*LENS), batch(5, 11, 9)
    traced = torch.jit.trace(lambda ids, mask: model(ids, mask)[0], tuple(one.values()), check_trace=False)
    real = other["attention_mask"].bool()
    torch.testing.assert_close(traced(*other.values())[real], model(**other)[0][real], rtol=1e-4, atol=1e-5)


def masks_of_torch(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The masks that torch's own attention gets from now on."""
    seen: list[Tensor | None] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *rest: Any, **kwargs: Any) -> Tensor:
        seen.append(mask)
        return torch_attention(q, k, v, mask, *rest, **kwargs)

    monkeypatch.setattr(torch_fn, "torch_attention", attention)
    return seen


@pytest.mark.parametrize("unpad", ["auto", True, False])
def test_a_mask_that_hides_nothing_costs_a_cpu_nothing(unpad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's kernel would add it to every score; a mask that hides something is passed on."""
    monkeypatch.setattr(padding_free, "WORTH_IT_ON_CPU", 10**9)  # "auto" finds every batch too small
    model = bare(unpad=unpad).eval()
    seen = masks_of_torch(monkeypatch)
    model(**batch(11, 11))
    assert seen == [None, None]
    if unpad is not True:
        model(**batch(11, 9))
        assert len(seen) == 4 and not any(mask is None or mask.all() for mask in seen[2:])


def test_a_mask_of_scores_without_a_zero_is_no_mask_of_tokens() -> None:
    """Each number is added to a score; as truth values they would say that nothing is hidden."""
    plain, model = bare(unpad=None).eval(), bare().eval()
    hidden, scores = torch.randn(3, 11, 32), torch.randn(3, 1, 11, 11)
    scores = scores.where(scores != 0, 1.0)
    got, want = (m.encoder(hidden, scores).last_hidden_state for m in (model, plain))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unpad", ["auto", False])
def test_a_trace_of_a_full_batch_keeps_the_mask(unpad: Any) -> None:
    model = bare(unpad=unpad).eval()
    model.config.return_dict = False
    full, part = batch(11, 11), batch(11, 7)
    traced = torch.jit.trace(model, (full["input_ids"], full["attention_mask"]), check_trace=False)
    with torch.no_grad():
        got, want = traced(part["input_ids"], part["attention_mask"])[0], model(**part)[0]
    real = part["attention_mask"].bool()
    torch.testing.assert_close(got[real], want[real])
