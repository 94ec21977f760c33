"""The attention function and its mask function, as transformers calls them; decoders, caches, packed batches."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

import fasttx
from fasttx.models import fasttx_attention, fasttx_mask
from fasttx.models.attention.interface import UNSUPPORTED

ENCODER = SimpleNamespace(is_causal=False, training=False)
DECODER = SimpleNamespace(is_causal=True, training=False)


def qkv(length_q: int = 5, length_k: int = 7, heads: int = 4, heads_k: int = 4, batch: int = 2, dim: int = 8) -> tuple:
    """(batch, heads, length, dim) views of (batch, length, heads, dim), as a projection gives them."""
    shapes = ((length_q, heads), (length_k, heads_k), (length_k, heads_k))
    return tuple(torch.randn(batch, length, n, dim).transpose(1, 2) for length, n in shapes)


def masks() -> dict[str, Any]:
    keys = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()
    full = torch.rand(2, 4, 5, 7) > 0.4
    full[..., 0] = True
    additive = torch.randn(2, 1, 5, 7)
    return {
        "none": None,
        "2d": keys,
        "2d_int": keys.long(),
        "4d_key": keys[:, None, None],
        "4d": full,
        "float": additive,
    }


@pytest.mark.parametrize("name", ["none", "2d", "2d_int", "4d_key", "4d", "float"])
def test_masks(name: str) -> None:
    q, k, v = qkv()
    mask = masks()[name]
    plain = masks()["4d_key"] if name in ("2d", "2d_int") else mask
    want, _ = sdpa_attention_forward(ENCODER, q, k, v, plain, scaling=0.3)
    out, weights = fasttx_attention(ENCODER, q, k, v, mask, scaling=0.3)
    assert weights is None and out.is_contiguous() and out.shape == (2, 5, 4, 8)
    torch.testing.assert_close(out, want)
    out, weights = fasttx_attention(ENCODER, q, k, v, mask, scaling=0.3, output_attentions=True)
    torch.testing.assert_close(out, want)
    assert weights.shape == (2, 4, 5, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    torch.testing.assert_close((weights @ v).transpose(1, 2), want)


@pytest.mark.parametrize("weights", [False, True])
def test_fully_masked_rows_are_zero(weights: bool) -> None:
    q, k, v = qkv()
    mask = masks()["2d"].clone()
    mask[1] = False
    out, seen = fasttx_attention(ENCODER, q, k, v, mask, output_attentions=weights)
    assert (out[1] == 0).all() and (out[0] != 0).any()
    assert seen is None or (seen[1] == 0).all()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(("length_q", "length_k"), [(5, 5), (1, 7), (3, 7)])
def test_causal_without_a_mask(length_q: int, length_k: int, weights: bool) -> None:
    q, k, v = qkv(length_q, length_k)
    want, _ = sdpa_attention_forward(DECODER, q, k, v, None)
    torch.testing.assert_close(fasttx_attention(DECODER, q, k, v, None, output_attentions=weights)[0], want)
    want, _ = sdpa_attention_forward(ENCODER, q, k, v, None)
    torch.testing.assert_close(fasttx_attention(DECODER, q, k, v, None, is_causal=False)[0], want)
    torch.testing.assert_close(fasttx_attention(ENCODER, q, k, v, None)[0], want)


@pytest.mark.parametrize("weights", [False, True])
def test_grouped_heads(weights: bool) -> None:
    q, k, v = qkv(heads_k=2)
    module = SimpleNamespace(is_causal=False, num_key_value_groups=2)
    mask = masks()["4d_key"]
    want, _ = sdpa_attention_forward(module, q, k, v, mask)
    torch.testing.assert_close(fasttx_attention(module, q, k, v, mask, output_attentions=weights)[0], want)


@pytest.mark.parametrize("weights", [False, True])
def test_dropout(weights: bool) -> None:
    q, k, _ = qkv(64, 64, batch=1)
    out, seen = fasttx_attention(
        ENCODER, q, k, torch.eye(64).expand(1, 4, 64, 64), None, dropout=0.25, output_attentions=weights
    )
    dropped = float((out == 0).float().mean())
    assert abs(dropped - 0.25) < 0.02
    plain, _ = fasttx_attention(ENCODER, q, k, torch.eye(64).expand(1, 4, 64, 64), None)
    kept = out != 0
    torch.testing.assert_close(out[kept], plain[kept] / 0.75)
    assert seen is None or torch.equal(seen.transpose(1, 2), out)


def test_packed_batch() -> None:
    lengths = (4, 1, 6)
    starts = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    q, k, v = qkv(11, 11, batch=1)
    packed = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=6, max_length_k=6)
    for module in (ENCODER, DECODER):
        out, _ = fasttx_attention(module, q, k, v, None, **packed)
        assert out.shape == (1, 11, 4, 8)
        parts = []
        for start, length in zip(starts.tolist(), lengths):
            piece = [t[:, :, start : start + length] for t in (q, k, v)]
            parts.append(sdpa_attention_forward(module, *piece, None)[0])
        torch.testing.assert_close(out, torch.cat(parts, 1))
    with pytest.raises(ValueError, match="max_length_k"):
        fasttx_attention(ENCODER, q, k, v, None, **(packed | {"max_length_k": None}))
    for name, given in (
        ("cu_seq_lens_q", [0, 11]),
        ("cu_seq_lens_k", "x"),
        ("max_length_q", "x"),
        ("max_length_k", 6.5),
    ):
        with pytest.raises(TypeError, match=f"^{name}: got {type(given).__name__}; "):
            fasttx_attention(ENCODER, q, k, v, None, **(packed | {name: given}))
    fasttx_attention(ENCODER, q, k, v, None, **(packed | {"max_length_q": torch.tensor(6)}))
    with pytest.raises(ValueError, match="attention_mask"):
        fasttx_attention(ENCODER, q, k, v, torch.ones(1, 11).bool(), **packed)
    with pytest.raises(ValueError, match="^cu_seq_lens_q: got a batch of 2 rows; allowed is 1"):
        fasttx_attention(ENCODER, *qkv(11, 11, batch=2), None, **packed)
    with pytest.raises(ValueError, match="output_attentions: .* packed batch"):
        fasttx_attention(ENCODER, q, k, v, None, output_attentions=True, **packed)


def test_packed_batch_through_a_model() -> None:
    """What transformers' collator with flattening gives; the weights are refused and not silently None."""
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    ids = torch.randint(2, zoo.VOCAB, (1, 11))
    starts = torch.tensor([0, 4, 5, 11], dtype=torch.int32)
    want = torch.cat([model(ids[:, a:b]).last_hidden_state for a, b in zip(starts[:-1], starts[1:])], 1)
    fasttx.patch(model)
    packed = dict(
        position_ids=torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5]]),
        cu_seq_lens_q=starts,
        cu_seq_lens_k=starts,
        max_length_q=6,
        max_length_k=6,
    )
    torch.testing.assert_close(model(ids, **packed).last_hidden_state, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="output_attentions: .* packed batch"):
        model(ids, **packed, output_attentions=True)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_arguments_that_would_change_the_result(name: str) -> None:
    q, k, v = qkv()
    fasttx_attention(ENCODER, q, k, v, None, **{name: None})
    with pytest.raises(ValueError, match=f"{name}.*does not support"):
        fasttx_attention(ENCODER, q, k, v, None, **{name: 3})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 6).bool(), r"attention_mask: got shape \(2, 6\)"),
        (torch.ones(2, 5, 7).bool(), "attention_mask: got 3 dimensions"),
        (torch.ones(2, 1, 5, 7).long(), "attention_mask: got dtype torch.int64"),
        (torch.ones(2, 1, 5, 6).bool(), r"attention_mask: got shape \(2, 1, 5, 6\)"),
        (torch.ones(2, 3, 5, 7), r"attention_mask: got shape \(2, 3, 5, 7\)"),
    ],
)
def test_bad_masks(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fasttx_attention(ENCODER, *qkv(), mask)


def test_mask_function() -> None:
    mask = masks()["2d"]
    known: dict[str, Any] = dict(batch_size=2, kv_length=7, kv_offset=0)
    if "cache_position" in inspect.signature(sdpa_mask).parameters:  # how transformers 5.0 tells which queries
        known["cache_position"] = torch.arange(7)
    else:
        known |= dict(q_length=7, q_offset=0)
    arguments = known | dict(mask_function=bidirectional_mask_function, attention_mask=mask)
    assert fasttx_mask(**arguments) is mask
    assert fasttx_mask(**(arguments | {"attention_mask": None})) is None
    causal = known | dict(mask_function=causal_mask_function, attention_mask=mask)
    assert torch.equal(fasttx_mask(**causal), sdpa_mask(**causal))
    shorter = arguments | dict(kv_length=9)
    assert torch.equal(fasttx_mask(**shorter), sdpa_mask(**shorter))

    def custom(batch: Any, head: Any, row: Any, column: Any) -> Any:
        return row >= column - 2

    own = known | dict(mask_function=custom, attention_mask=mask)
    assert torch.equal(fasttx_mask(**own), sdpa_mask(**own))


def test_registered_implementation_on_an_unpatched_model() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    real = inputs["attention_mask"].bool()
    want = model(**inputs).last_hidden_state[real]
    model.set_attn_implementation("fasttx")
    torch.testing.assert_close(model(**inputs).last_hidden_state[real], want, rtol=1e-4, atol=1e-4)
    again = transformers.BertModel._from_config(zoo.tiny_config(zoo.BERT), attn_implementation="fasttx")
    assert again.config._attn_implementation == "fasttx"


@pytest.mark.parametrize("cls", ["BertLMHeadModel", "RobertaForCausalLM"])
def test_generation_with_cache(cls: str) -> None:
    family = {c: f for f, c in zoo.CLASSES}[cls]
    model = zoo.tiny_model(family, cls)
    mask = zoo.padding_mask().flip(1)  # generation pads on the left
    ids = zoo.inputs_for(family, cls, labels=False)["input_ids"].flip(1)
    options = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    want = model.generate(input_ids=ids, attention_mask=mask, **options)
    fasttx.patch(model)
    got = model.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), rtol=1e-3, atol=1e-3)
    cold = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cold.sequences, want.sequences)


def test_cross_attention_with_cache() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertLMHeadModel", add_cross_attention=True)
    inputs = zoo.inputs_for(zoo.BERT, "BertLMHeadModel")
    encoder = dict(
        encoder_hidden_states=torch.randn(3, 9, 32),
        encoder_attention_mask=(torch.arange(9) < torch.tensor([9, 2, 5])[:, None]).long(),
    )
    real = inputs["attention_mask"].bool()
    want = model(**inputs, **encoder)
    steps = model(input_ids=inputs["input_ids"][:, :3], **encoder, use_cache=True)
    want_step = model(
        input_ids=inputs["input_ids"][:, 3:5], **encoder, past_key_values=steps.past_key_values, output_attentions=False
    )
    report = fasttx.patch(model)
    assert sum("crossattention" in row.module for row in report.replaced) == 4
    got = model(**inputs, **encoder)
    torch.testing.assert_close(got.loss, want.loss)
    torch.testing.assert_close(got.logits[real], want.logits[real], rtol=1e-4, atol=1e-4)
    steps = model(input_ids=inputs["input_ids"][:, :3], **encoder, use_cache=True)
    got_step = model(input_ids=inputs["input_ids"][:, 3:5], **encoder, past_key_values=steps.past_key_values)
    torch.testing.assert_close(got_step.logits, want_step.logits, rtol=1e-4, atol=1e-4)
    seen = model(**inputs, **encoder, output_attentions=True)
    assert [w.shape for w in seen.cross_attentions] == [(3, 4, 11, 9)] * 2
    assert [w.shape for w in seen.attentions] == [(3, 4, 11, 11)] * 2


def test_flattened_batch_equals_the_padded_one() -> None:
    """Batches of transformers' DataCollatorWithFlattening reach the packed kernels through BertModel."""
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    real = inputs["attention_mask"].bool()
    fasttx.patch(model)
    want = model(**inputs).last_hidden_state[real]
    features = [{"input_ids": row[mask].tolist()} for row, mask in zip(inputs["input_ids"], real)]
    batch = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)(features)
    batch.pop("labels", None)
    got = model(**batch).last_hidden_state[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_deterministic_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    functional_attention = sys.modules["fasttx.functional.attention.autograd"]
    seen = []
    original = functional_attention._bwd

    def spy(*args: Any) -> Any:
        *_, deterministic, needs_dbias, _ = args
        seen.append(deterministic)
        assert not needs_dbias
        return original(*args)

    monkeypatch.setattr(functional_attention, "_bwd", spy)
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    for wanted in (True, False, None):
        fasttx.patch(model, backend="torch", deterministic=wanted)
        model(**zoo.inputs_for(zoo.BERT, "BertModel")).last_hidden_state.sum().backward()
    assert seen == [True] * 2 + [False] * 2 + [torch.are_deterministic_algorithms_enabled()] * 2


def test_a_forced_backend_that_cannot_run_is_an_error() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertModel")
    report = fasttx.patch(model, backend="cuda")
    inputs = zoo.inputs_for(zoo.BERT, "BertModel")
    assert all("cannot run here" in row.backend for row in report.rows if "attention" in row.after)
    with pytest.raises(fasttx.BackendError, match="cuda"):
        model(**inputs)
    fasttx.unpatch(model)
    model(**inputs)
