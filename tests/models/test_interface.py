"""``attn_implementation="fasttx"`` on models of no known family: encoders, decoders, position biases, refusals."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate
from torch import Tensor, nn

import fasttx
from fasttx.models.attention import masks as attention_masks
from fasttx.ops.registry import LAUNCHES

SMALL: dict[str, Any] = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1,
    bos_token_id=2, eos_token_id=3, initializer_range=0.3,
)  # fmt: skip
T5: dict[str, Any] = dict(
    vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=1,
    relative_attention_num_buckets=8, relative_attention_max_distance=12, initializer_factor=0.5,
)  # fmt: skip
LENGTHS = (11, 4, 7)
ON_THE_LEFT = frozenset(("GPT2Model", "LlamaModel"))
"""Decoders, which are padded on the left where they generate."""

MODELS: dict[str, dict[str, Any]] = {
    "LayoutLMModel": SMALL,
    "SplinterModel": SMALL,
    "EsmModel": SMALL | dict(position_embedding_type="rotary", token_dropout=False),
    "MarkupLMModel": SMALL | dict(max_depth=5),
    "NomicBertModel": SMALL,
    "EuroBertModel": SMALL | dict(num_key_value_heads=2),
    "GPT2Model": dict(
        vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        initializer_range=0.3, bos_token_id=2, eos_token_id=3,
    ),
    "LlamaModel": SMALL | dict(num_key_value_heads=2),
    "T5EncoderModel": T5,
}  # fmt: skip


def build(name: str, options: dict[str, Any]) -> Any:
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if name.startswith("T5") and not hasattr(sys.modules[cls.__module__], "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip(f"transformers {transformers.__version__} does not look T5's attention up in its registry")
    torch.manual_seed(0)
    model = cls(cls.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(left: bool) -> dict[str, Tensor]:
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    mask = mask.flip(1) if left else mask
    ids = torch.randint(4, 99, mask.shape, generator=torch.Generator().manual_seed(7))
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def run(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden states of real tokens, and every parameter's gradient of the sum of their squares."""
    model.zero_grad(set_to_none=True)
    hidden = model(**inputs).last_hidden_state[inputs["attention_mask"].bool()]
    hidden.square().sum().backward()
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_hidden_states_and_gradients(name: str) -> None:
    model, inputs = build(name, MODELS[name]), batch(name in ON_THE_LEFT)
    model.set_attn_implementation("eager")
    reference = copy.deepcopy(model).double()
    if name == "LlamaModel":  # eager's mask of a row without a key is -inf in float64, and its gradient NaN
        reference.set_attn_implementation("sdpa")
    want64, grads64 = run(reference, inputs)
    want, grads = run(model, inputs)
    model.set_attn_implementation("fasttx")
    assert model.config._attn_implementation == "fasttx"
    assert count_calls(model, inputs) == 2
    got, found = run(model, inputs)
    assert_as_accurate(got, want, want64, "hidden states")
    assert_gradients_as_accurate(found, grads, grads64)


def count_calls(model: Any, inputs: dict[str, Tensor]) -> int:
    """How many attentions ran on fasttx in one call."""
    rows = fasttx.explain(model, inputs).rows
    return sum(times for found, times in rows if found.what in ("attention", "attention_fwd"))


@pytest.mark.parametrize("name", ["EuroBertModel", "T5EncoderModel"])
def test_the_kernels(name: str) -> None:
    """Grouped heads with a mask of keys, and a position bias beside one."""
    model, inputs = build(name, MODELS[name]), {k: t[1:] for k, t in batch(False).items()}
    real = inputs["attention_mask"].bool()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        want64 = copy.deepcopy(model).double()(**inputs).last_hidden_state[real]
        want = model(**inputs).last_hidden_state[real]
        model.set_attn_implementation("fasttx")
        before = LAUNCHES["attention_fwd", "triton"]
        with fasttx.backend("triton"):
            got = model(**inputs).last_hidden_state[real]
    assert LAUNCHES["attention_fwd", "triton"] == before + 2
    assert_as_accurate(got, want, want64, "hidden states")


@pytest.mark.parametrize("name", ["LayoutLMModel", "T5EncoderModel", "LlamaModel"])
def test_weights(name: str) -> None:
    model, inputs = build(name, MODELS[name]), batch(False)
    if name == "LayoutLMModel":
        forward = type(model.encoder.layer[0].attention.self).forward
        if "output_attentions" in inspect.signature(forward).parameters:
            pytest.skip(f"transformers {transformers.__version__} does not pass output_attentions on to its interface")
    real = inputs["attention_mask"].bool()
    model.set_attn_implementation("eager")
    want = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("fasttx")
    got = model(**inputs, output_attentions=True).attentions
    assert len(got) == len(want) == 2
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.transpose(1, 2)[real], b.transpose(1, 2)[real], rtol=1e-4, atol=1e-6)


def test_an_encoder_and_a_decoder_with_position_biases() -> None:
    """T5: causal and biased in the decoder, a cache, cross attention with a bias of zeros."""
    build("T5EncoderModel", T5)  # skips where T5's attention is not the interface's
    config = transformers.T5Config(**T5, decoder_start_token_id=1, eos_token_id=3)
    torch.manual_seed(0)
    plain, model = (
        transformers.T5ForConditionalGeneration._from_config(copy.deepcopy(config), attn_implementation=name).eval()
        for name in ("eager", "fasttx")
    )
    model.load_state_dict(plain.state_dict())
    inputs = batch(False)
    labels = torch.randint(4, 99, (3, 5))
    options = dict(max_new_tokens=6, do_sample=False)
    want = plain(**inputs, labels=labels)
    want.loss.backward()
    grads = {name: p.grad for name, p in plain.named_parameters()}
    assert count_calls(model, inputs | {"labels": labels}) >= 6
    got = model(**inputs, labels=labels)
    got.loss.backward()
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(**inputs, **options), plain.generate(**inputs, **options))
    bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert grads[bias].abs().max() > 0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("name", "options", "argument"),
    [
        ("Gemma2Model", SMALL | dict(num_key_value_heads=2, head_dim=8, attn_logit_softcapping=20.0), "softcap"),
        (
            "GptOssModel",
            SMALL
            | dict(num_key_value_heads=2, head_dim=8, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1),
            "s_aux",
        ),
    ],
)
def test_what_is_not_supported_is_refused(name: str, options: dict[str, Any], argument: str) -> None:
    model = build(name, options)
    model(**batch(False))
    model.set_attn_implementation("fasttx")
    with pytest.raises(ValueError, match=f"{argument}: .*use attn_implementation='sdpa' or 'eager'"):
        model(**batch(False))


@pytest.mark.parametrize("mask", [None, "2d", "float"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_position_bias(causal: bool, mask: str | None, weights: bool) -> None:
    torch.manual_seed(1)
    module = nn.Module()
    module.is_causal = causal
    q, k, v = (torch.randn(2, 4, 7, 8) for _ in range(3))
    bias = torch.randn(1, 4, 7, 7, requires_grad=True)
    keys = torch.arange(7) < torch.tensor([7, 3])[:, None]
    given = {None: None, "2d": keys, "float": attention_masks.additive(keys, torch.float32) + torch.rand(2, 1, 7, 1)}[
        mask
    ]
    seen = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    if mask is not None:
        seen = seen & keys[:, None, None]
    elif causal:
        seen = seen.tril()
    scores = (0.3 * q @ k.transpose(2, 3) + bias).masked_fill(~seen, float("-inf"))
    want = (scores.softmax(-1) @ v).transpose(1, 2)
    (grad,) = torch.autograd.grad(want.square().sum(), bias)
    out, found = fasttx.models.fasttx_attention(
        module, q, k, v, given, scaling=0.3, position_bias=bias, output_attentions=weights
    )
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), bias)[0], grad, rtol=1e-4, atol=1e-5)
    if weights:
        torch.testing.assert_close(found, scores.softmax(-1), rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # by the op where there is no gradient
        out, _ = fasttx.models.fasttx_attention(module, q, k, v, given, scaling=0.3, position_bias=bias)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


def test_position_bias_of_a_packed_batch() -> None:
    """Read within each sequence, over which its gradient is summed."""
    module = nn.Module()
    module.is_causal = False
    q, k, v = (torch.randn(1, 4, 7, 8) for _ in range(3))
    bias = torch.randn(1, 4, 5, 5, requires_grad=True)
    starts = torch.tensor([0, 5, 7], dtype=torch.int32)
    packed: dict[str, Any] = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=5, max_length_k=5)
    attention: Callable[..., Any] = fasttx.models.fasttx_attention
    got, _ = attention(module, q, k, v, None, position_bias=bias, **packed)
    parts = [
        attention(module, *(x[:, :, a:b] for x in (q, k, v)), None, position_bias=bias[..., : b - a, : b - a])[0]
        for a, b in ((0, 5), (5, 7))
    ]
    want = torch.cat(parts, 1)
    torch.testing.assert_close(got, want)
    grad, expected = (torch.autograd.grad(x.square().sum(), bias)[0] for x in (got, want))
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(attention(module, q, k, v, None, position_bias=bias, **packed)[0], got)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(1, 4, 7, 6), r"position_bias: got shape \(1, 4, 7, 6\)"),
        (torch.zeros(4, 7, 7), "position_bias: got torch.float32 of 3 dimensions"),
        (torch.zeros(1, 4, 7, 7).bool(), "position_bias: got torch.bool"),
    ],
)
def test_bad_position_biases(bias: Tensor, message: str) -> None:
    module = nn.Module()
    q = torch.randn(2, 4, 7, 8)
    with pytest.raises(ValueError, match=message):
        fasttx.models.fasttx_attention(module, q, q, q, None, position_bias=bias)
    with pytest.raises(TypeError, match="position_bias: got int"):
        fasttx.models.fasttx_attention(module, q, q, q, None, position_bias=3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ attention of a family's own


@pytest.mark.parametrize("name", ["MegatronBertModel", "MPNetModel", "XGLMModel"])
def test_an_attention_of_its_own_gets_a_mask_that_it_can_add(name: str) -> None:
    """from_pretrained and from_config let any registered name through, and such a family asks for its mask by it."""
    options = SMALL | (dict(d_model=32, ffn_dim=37, num_layers=2, attention_heads=4) if name == "XGLMModel" else {})
    model, inputs = build(name, options), batch(False)
    real = inputs["attention_mask"].bool()
    want, alone = model(**inputs).last_hidden_state, model(inputs["input_ids"][:1]).last_hidden_state
    again = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="fasttx").eval()
    again.load_state_dict(model.state_dict())
    assert again.config._attn_implementation == "fasttx"
    torch.testing.assert_close(again(**inputs).last_hidden_state[real], want[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again(inputs["input_ids"][:1]).last_hidden_state, alone, rtol=1e-4, atol=1e-5)


def test_a_mask_of_keys_that_can_be_added() -> None:
    importlib.import_module("transformers.models.megatron_bert.modeling_megatron_bert")
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    known: dict[str, Any] = dict(
        batch_size=2, q_length=3, kv_length=3, mask_function=attention_masks.bidirectional_mask_function,
        attention_mask=mask.bool(), dtype=torch.float16, config=transformers.MegatronBertConfig(),
    )  # fmt: skip
    found = fasttx.models.fasttx_mask(**known)
    assert found is not None and found.dtype == torch.float16 and found.shape == (2, 1, 1, 3)
    assert torch.equal(found == 0, mask.bool()[:, None, None])
    assert (found[found != 0] == torch.finfo(torch.float16).min).all()
    assert fasttx.models.fasttx_mask(**(known | {"config": transformers.BertConfig()})) is known["attention_mask"]


# ----------------------------------------------------------------------------------------------------------- the report


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("LayoutLMModel", r"alone can be fasttx's: model.set_attn_implementation\('fasttx'\)"),
        ("MegatronBertModel", "is its own, and not looked up in transformers' registry"),
    ],
)
def test_patch_says_what_can_be_done(name: str, reason: str) -> None:
    model = build(name, SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = fasttx.patch(model)
    assert any("replaced nothing" in str(w.message) for w in caught)
    assert not report.replaced and len(report.left_alone) == 1
    with pytest.raises(ValueError, match=reason):
        fasttx.patch(model, strict=True)


@zoo.needs("ModernBERT", "ViT")
@pytest.mark.parametrize("how", ["no registry", "no config"])
def test_attention_of_an_older_transformers_is_left_alone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.0 looks ModernBERT's attention up in a table of its own, and gives ViT's no config."""
    family = zoo.BY_NAME["ModernBERT" if how == "no registry" else "ViT"]
    model = zoo.tiny_model(family, family.bare)
    if how == "no registry":
        monkeypatch.delattr(sys.modules[family.source], "ALL_ATTENTION_FUNCTIONS")
    else:
        for module in model.modules():
            if type(module).__name__ == "ViTAttention":
                del module.config
    report = fasttx.patch(model)
    left = [row for row in report.left_alone if row.reason.startswith(zoo.BUILT_OTHERWISE)]
    expected = 3 if how == "no registry" else 2  # ModernBERT's padding, too
    assert len(left) == expected and not [row for row in report.replaced if row.after == "attention: fasttx"]
    assert zoo.attention_of(model) != "fasttx"
