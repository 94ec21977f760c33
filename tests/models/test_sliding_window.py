"""Sliding windows of other models through ``attn_implementation="fasttx"``: ModernBERT's local layers, Mistral's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import fasttx.models  # registers the implementation
from fasttx.models.attention.interface import fasttx_attention
from fasttx.ops.registry import LAUNCHES


class Module(torch.nn.Module):
    """What transformers hands over as the attention module."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.is_causal = causal
        self.num_key_value_groups = 1


def heads(length_q: int = 13, length_k: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, length_q, 8), torch.randn(2, 3, length_k, 8), torch.randn(2, 3, length_k, 8)


def near(length: int, n: int, causal: bool) -> Tensor:
    """Keys that a window of n leaves visible, as transformers defines it: less than n away."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return ((i - j).abs() < n) & ((j <= i) | (not causal))


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("n", [1, 4, 12, 13, 99])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_without_a_mask(causal: bool, n: int, backend: str) -> None:
    q, k, v = heads()
    with fasttx.backend(backend):
        got, none = fasttx_attention(Module(causal), q, k, v, None, sliding_window=n)
    want, _ = sdpa_attention_forward(Module(causal), q, k, v, near(13, n, causal)[None, None])
    assert none is None
    torch.testing.assert_close(got, want)
    again, weights = fasttx_attention(Module(causal), q, k, v, None, sliding_window=n, output_attentions=True)
    torch.testing.assert_close(again, want)
    assert weights is not None and torch.equal(weights != 0, near(13, n, causal).expand_as(weights))


def test_a_window_beside_a_mask_of_keys() -> None:
    q, k, v = heads()
    keys = torch.arange(13) < torch.tensor([13, 6])[:, None]
    got, _ = fasttx_attention(Module(False), q, k, v, keys, sliding_window=4)
    weighed, weights = fasttx_attention(Module(False), q, k, v, keys, sliding_window=4, output_attentions=True)
    both = near(13, 4, False)[None, None] & keys[:, None, None]
    want, _ = sdpa_attention_forward(Module(False), q, k, v, both)
    seen = both.any(-1).expand(2, 3, 13).transpose(1, 2)  # PyTorch's value for the other rows is another
    for found in (got, weighed):
        torch.testing.assert_close(found[seen], want[seen])
        assert not bool(found[~seen].any())
    assert weights is not None and torch.equal(weights != 0, both.expand_as(weights))


def test_a_mask_of_pairs_knows_the_window_and_its_exceptions() -> None:
    q, k, v = heads()
    mask = near(13, 4, False)[None, None].clone()
    mask[..., 0] = True  # beyond the window
    got, _ = fasttx_attention(Module(False), q, k, v, mask, sliding_window=4)
    torch.testing.assert_close(got, sdpa_attention_forward(Module(False), q, k, v, mask)[0])


def test_with_a_cache_the_mask_alone_tells() -> None:
    q, k, v = heads(length_q=1)
    got, _ = fasttx_attention(Module(True), q, k, v, None, sliding_window=20)
    torch.testing.assert_close(got, sdpa_attention_forward(Module(True), q, k, v, None)[0])


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_packed_batch(causal: bool, backend: str) -> None:
    lengths, starts = (4, 1, 8), torch.tensor([0, 4, 5, 13], dtype=torch.int32)
    q, k, v = (x[:1] for x in heads())
    packed = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=8, max_length_k=8, sliding_window=3)
    with fasttx.backend(backend):
        got, _ = fasttx_attention(Module(causal), q, k, v, None, **packed)
    parts = []
    for start, length in zip(starts.tolist(), lengths, strict=False):
        piece = [x[:, :, start : start + length] for x in (q, k, v)]
        parts.append(sdpa_attention_forward(Module(causal), *piece, near(length, 3, causal)[None, None])[0])
    torch.testing.assert_close(got, torch.cat(parts, 1))


def test_a_window_that_is_none() -> None:
    q, k, v = heads()
    for nothing in (None, 0):
        got, _ = fasttx_attention(Module(False), q, k, v, None, sliding_window=nothing)
        torch.testing.assert_close(got, sdpa_attention_forward(Module(False), q, k, v, None)[0])
    with pytest.raises(ValueError, match="sliding_window: got -3; allowed are ints from 1 and None"):
        fasttx_attention(Module(False), q, k, v, None, sliding_window=-3)


# ---------------------------------------------------------------------------------------------------------- real models


def modernbert() -> Any:
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        global_attn_every_n_layers=2,
        local_attention=6,
        initializer_range=0.3,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.ModernBertForMaskedLM(config).eval()
    if not model._can_set_attn_implementation():
        pytest.skip(f"ModernBERT of transformers {transformers.__version__} has attentions of its own, no registry")
    return model


def test_modernbert() -> None:
    model = modernbert()
    ids = torch.randint(3, 99, (2, 24))
    mask = (torch.arange(24) < torch.tensor([24, 9])[:, None]).long()
    real = mask.bool()
    inputs = {"input_ids": ids, "attention_mask": mask}
    model.set_attn_implementation("eager")
    want = model(**inputs, output_attentions=True)
    padless = model(ids).logits
    want.logits[real].square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("fasttx")
    for backend in ("auto", "triton"):
        with fasttx.backend(backend):
            before = LAUNCHES["attention_fwd", "triton"]
            got = model(**inputs)
            assert LAUNCHES["attention_fwd", "triton"] == before + (4 if backend == "triton" else 0)
            torch.testing.assert_close(got.logits[real], want.logits[real], rtol=1e-3, atol=1e-3)
            model.zero_grad()
            got.logits[real].square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-2, atol=1e-2, msg=name)
    torch.testing.assert_close(model(ids).logits, padless, rtol=1e-3, atol=1e-3)
    found = model(**inputs, output_attentions=True).attentions
    for weights, other in zip(found, want.attentions, strict=True):
        rows = real[:, None, :, None] & (weights.sum(-1, keepdim=True) != 0)
        torch.testing.assert_close(weights * rows, other * rows, rtol=1e-3, atol=1e-4)


def test_modernbert_packed_by_its_collator() -> None:
    """Sequences in one row, by their lengths: each as if it were alone, in local layers too."""
    model = modernbert()
    lengths = (11, 3, 10)
    starts = torch.tensor([0, 11, 14, 24], dtype=torch.int32)
    ids = torch.randint(3, 99, (1, 24))
    want = torch.cat([model(ids[:, a:b]).logits for a, b in zip(starts[:-1], starts[1:], strict=True)], 1)
    model.set_attn_implementation("fasttx")
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=11, max_length_k=11)
    got = model(ids, position_ids=positions, **packed).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_decoder_with_windows_and_a_cache() -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        sliding_window=5,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = transformers.MistralForCausalLM(config).eval()
    ids = torch.randint(3, 99, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    want = model(ids, attention_mask=mask).logits
    text = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    model.set_attn_implementation("fasttx")
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], want[mask.bool()])
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False), text)
