"""MPNet: a position bias that all layers share, padded and packed, with and without a gradient of it."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import transformers
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fasttx
from fasttx.ops.registry import LAUNCHES

MPNET = zoo.BY_NAME["MPNet"]
BIAS = "encoder.relative_attention_bias.weight"


def build(cls: str = "MPNetModel", **changes: Any) -> Any:
    model = zoo.tiny_model(MPNET, cls, **changes)
    with torch.no_grad():  # neighbours differ enough that a wrong distance shows
        model.base_model.encoder.relative_attention_bias.weight.normal_(0, 2)
    return model


def batch() -> dict[str, Tensor]:
    return zoo.inputs_for(MPNET, "MPNetModel")


def what_ran(model: Any, inputs: dict[str, Any]) -> dict[str, str]:
    return {row.what: row.choice for row, _ in fasttx.explain(model, inputs).rows}


def run(model: Any, inputs: dict[str, Tensor], real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    hidden = model(**inputs).last_hidden_state[real]
    if hidden.requires_grad:
        hidden.backward(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5)).to(hidden))
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(model: Any, inputs: dict[str, Tensor], real: Tensor | None = None, **options: Any) -> dict[str, str]:
    """The accuracy rule for hidden states and gradients; returns what the patched model ran."""
    real = inputs["attention_mask"].bool() if real is None else real
    want64, grads64 = run(zoo.double_of(model), zoo.to_double(inputs), real)
    want, grads = run(model, inputs, real)
    fasttx.patch(model, **options)
    got, found = run(model, inputs, real)
    assert_as_accurate(got, want, want64, "hidden states")
    assert_gradients_as_accurate(found, grads, grads64)
    return what_ran(model, inputs)


@pytest.mark.parametrize("unpad", ["auto", False])
@pytest.mark.parametrize("bias", ["learned", "frozen", "no gradient at all"])
def test_padded_and_packed(bias: str, unpad: Any) -> None:
    model = build()
    model.requires_grad_(bias != "no gradient at all")
    model.get_parameter(BIAS).requires_grad_(bias == "learned")
    ran = compare(model, batch(), unpad=unpad)
    assert ran.get("padded batch") == ("real tokens only" if unpad else None)
    assert ran.get("attention") == (None if unpad else "torch's own")
    assert ("attention_fwd" in ran) == bool(unpad)


def test_the_kernels_read_the_bias_within_each_sequence() -> None:
    model, inputs = build(num_hidden_layers=1), {name: t[1:] for name, t in batch().items()}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        want64, _ = run(zoo.double_of(model), inputs, real)
        want, _ = run(model, inputs, real)
        fasttx.patch(model, backend="triton", norm=False, mlp=False)
        before = LAUNCHES["attention_fwd", "triton"]
        got, _ = run(model, inputs, real)
    assert LAUNCHES["attention_fwd", "triton"] == before + 1
    assert_as_accurate(got, want, want64, "hidden states")


@pytest.mark.parametrize("unpad", ["auto", False])
def test_the_kernels_train_a_learned_bias(unpad: Any) -> None:
    """Padded, with the mask of each sequence in the bias, and packed, where its gradient is summed over sequences."""
    model, inputs = build(num_hidden_layers=1), batch()
    before = LAUNCHES["attention_bwd", "triton"]
    compare(model, inputs, backend="triton", norm=False, mlp=False, unpad=unpad)
    assert LAUNCHES["attention_bwd", "triton"] == before + 1
    assert bool(model.get_parameter(BIAS).grad.any())


def test_a_checkpointed_model_gives_the_same_gradients() -> None:
    """By torch's own function, as transformers' MPNet has no checkpoints; with dropout, drawn twice alike."""
    model, inputs = build(attention_probs_dropout_prob=0.3), batch()
    real = inputs["attention_mask"].bool()
    fasttx.patch(model)
    model.train()
    torch.manual_seed(3)
    _, want = run(model, inputs, real)
    model.zero_grad()
    torch.manual_seed(3)
    hidden = checkpoint(lambda: model(**inputs).last_hidden_state, use_reentrant=False)[real]
    hidden.backward(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5)))
    got = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == want.keys() and BIAS in got
    for name in want:
        torch.testing.assert_close(got[name], want[name], msg=name)


def test_one_gradient_of_all_layers_for_distributed_training() -> None:
    """A hook on the parameter, as DDP has, sees one whole gradient a step."""
    model, inputs, seen = build(), batch(), []
    fasttx.patch(model)
    weight = model.get_parameter(BIAS)
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    _, grads = run(model, inputs, inputs["attention_mask"].bool())
    assert len(seen) == 1 and torch.equal(seen[0], grads[BIAS])


@pytest.mark.parametrize("rows", ["left", "holes", "pairs", "soft", "none"])
@pytest.mark.parametrize("unpad", ["auto", True])
def test_other_masks(rows: str, unpad: Any) -> None:
    """Tokens in the middle cannot be taken out: the others would come closer to each other."""
    model, inputs = build(), batch()
    if rows in ("pairs", "soft") and not hasattr(sys.modules[type(model).__module__], "create_bidirectional_mask"):
        pytest.skip(f"MPNet of transformers {transformers.__version__} takes no mask of four dims")
    real = inputs["attention_mask"].bool()
    if rows == "left":
        inputs = {name: t.flip(1) for name, t in inputs.items()}
    elif rows == "holes":
        inputs["attention_mask"][0, 2:5] = 0
    elif rows == "pairs":
        band = (torch.arange(11)[:, None] - torch.arange(11)).abs() < 3
        seen = (band & real[:, None, :])[:, None] | torch.eye(11, dtype=torch.bool)
        inputs["attention_mask"] = torch.zeros(3, 1, 11, 11).masked_fill(~seen, torch.finfo(torch.float32).min)
    elif rows == "soft":  # numbers that hide nothing
        inputs["attention_mask"] = -torch.rand(3, 1, 1, 11)
    else:
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    real = torch.ones(3, 11, dtype=torch.bool) if rows in ("soft", "none") else real
    real = inputs["attention_mask"].bool() if rows in ("left", "holes") else real
    ran = compare(model, inputs, real, unpad=unpad)
    packs = rows == "left" and unpad is True
    assert ran["padded batch"] == ("real tokens only" if packs else "padded")


@pytest.mark.parametrize("unpad", ["auto", False])
def test_weights_and_hidden_states(unpad: Any) -> None:
    model, inputs = build(), batch()
    real = inputs["attention_mask"].bool()
    options = dict(output_attentions=True, output_hidden_states=True)
    want = model(**inputs, **options)
    fasttx.patch(model, unpad=unpad)
    for got in (model(**inputs, **options), model(**inputs, **options, return_dict=False)):
        hidden, attentions = got[-2:] if isinstance(got, tuple) else (got.hidden_states, got.attentions)
        assert len(hidden) == 3 and len(attentions) == 2
        for a, b in zip(hidden, want.hidden_states, strict=True):
            torch.testing.assert_close(a[real], b[real], rtol=1e-4, atol=1e-4)
        for a, b in zip(attentions, want.attentions, strict=True):
            torch.testing.assert_close(a.transpose(1, 2)[real], b.transpose(1, 2)[real], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("learned", [True, False])
def test_dropout_of_the_weights(learned: bool) -> None:
    model = build(attention_probs_dropout_prob=0.5)
    model.get_parameter(BIAS).requires_grad_(learned)
    fasttx.patch(model)
    still = [model(**batch()).last_hidden_state for _ in range(2)]
    assert torch.equal(*still)
    model.train()
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(model(**batch()).last_hidden_state)
    torch.testing.assert_close(*drawn)
    assert not torch.allclose(drawn[0], still[0], atol=1e-2)


def test_what_a_user_changes_in_a_layer() -> None:
    """An attention that is not ours, a dropout with a hook: padded, and transformers' own attention there."""
    plain, inputs = build(), batch()
    real = inputs["attention_mask"].bool()
    want, _ = run(plain, inputs, real)

    def unpatched(model: Any) -> None:
        fasttx.unpatch(model.encoder.layer[1].attention.attn)

    def hooked(model: Any) -> None:
        model.encoder.layer[1].attention.attn.dropout.register_forward_hook(lambda *_: None)

    def replaced(model: Any) -> None:
        class Other(type(plain.encoder.layer[1].attention.attn)):  # type: ignore[misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return super().forward(*args, **kwargs)

        model.encoder.layer[1].attention.attn.__class__ = Other

    for when in ("before", "after"):
        for change in (unpatched, hooked, replaced):
            if when == "before" and change is unpatched:
                continue
            model = copy.deepcopy(plain)
            if when == "before":
                change(model)
            fasttx.patch(model)
            if when == "after":
                change(model)
            torch.testing.assert_close(run(model, inputs, real)[0], want, rtol=1e-4, atol=1e-4)
            assert what_ran(model, inputs).get("padded batch") in ("padded", None), (when, change.__name__)


@pytest.mark.parametrize("joint", [True, False])
def test_one_product_for_query_key_and_value(joint: bool) -> None:
    model = build()
    ran = compare(model, batch(), qkv=joint)
    assert ran["query, key, value"] == ("one product" if joint else "q, k, v computed separately")
    model.encoder.layer[0].attention.attn.k.register_forward_hook(lambda *_: None)
    fasttx.patch(model, unpad=False)
    rows = [row for row, _ in fasttx.explain(model, batch()).rows if row.what == "query, key, value"]
    assert {row.choice for row in rows} == {"one product", "q, k, v computed separately"}


def test_bf16() -> None:
    """Under autocast and by itself."""
    inputs = batch()
    real = inputs["attention_mask"].bool()
    model = zoo.tiny_model(MPNET, "MPNetModel", initializer_range=0.05)
    want64, _ = run(zoo.double_of(model), inputs, real)
    for own in (False, True):
        plain = copy.deepcopy(model).to(torch.bfloat16) if own else model
        twin = copy.deepcopy(plain)
        fasttx.patch(twin)
        with torch.autocast("cpu", torch.bfloat16, enabled=not own):
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    want, got = (m(**inputs).last_hidden_state[real].detach() for m in (plain, twin))
                assert got.dtype == want.dtype
                assert_as_accurate(got, want, want64, f"own={own}, grad={grad}")


@pytest.mark.parametrize("loss", ["hf", "correct"])
def test_question_answering(loss: str) -> None:
    """transformers' loss looks at what stands at padding, and its forward does not pass on what it does not know."""
    model = build("MPNetForQuestionAnswering")
    inputs = zoo.inputs_for(MPNET, "MPNetForQuestionAnswering")
    want = model(**inputs).loss
    fasttx.patch(model, loss=loss)
    assert what_ran(model, inputs)["padded batch"] == ("padded" if loss == "hf" else "real tokens only")
    got = model(inputs.pop("input_ids"), inputs.pop("attention_mask"), **inputs).loss
    assert torch.allclose(got, want, rtol=1e-4) == (loss == "hf")


def test_lengths_that_would_be_lost() -> None:
    model = build("MPNetForTokenClassification")
    inputs = zoo.inputs_for(MPNET, "MPNetForTokenClassification")
    fasttx.patch(model)
    want = model(**inputs).loss
    assert torch.equal(model(**inputs, seq_lens=list(zoo.LENGTHS)).loss, want)
    inputs.pop("attention_mask")
    with pytest.raises(
        ValueError, match="^seq_lens: got lengths without an attention_mask; allowed are lengths alone where"
    ):
        model(**inputs, seq_lens=list(zoo.LENGTHS))
    with pytest.raises(ValueError, match="cu_seq_lens_q: got a packed batch"):
        model(**inputs, cu_seq_lens_q=torch.tensor([0, 11]))


@pytest.mark.slow
def test_fullgraph() -> None:
    """Padded, with the mask: nothing in a graph hangs on its values."""
    model, inputs = build(), batch()
    real = inputs["attention_mask"].bool()
    want, _ = run(model, inputs, real)
    fasttx.patch(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).last_hidden_state[real], want, rtol=1e-4, atol=1e-4)


def test_positions_are_counted_from_padding() -> None:
    model = build()
    ids = batch()["input_ids"].clone()
    ids[0, :3] = model.config.pad_token_id
    fasttx.patch(model)
    plain = copy.deepcopy(model)
    fasttx.unpatch(plain)
    torch.testing.assert_close(model.embeddings(ids), plain.embeddings(ids))


def test_a_bias_for_every_call_after_unpatch() -> None:
    """compute_position_bias gives transformers' shape again."""
    model = build()
    fasttx.patch(model)
    x = torch.zeros(3, 5, 32)
    assert model.encoder.compute_position_bias(x).shape == (1, 4, 5, 5)
    fasttx.unpatch(model)
    assert model.encoder.compute_position_bias(x).shape == (3, 4, 5, 5)
