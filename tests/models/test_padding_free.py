"""A patched encoder runs on real tokens only, and computes what transformers computes at them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.accuracy import assert_as_accurate, assert_gradients_as_accurate
from torch import Tensor, nn

import fasttx
from fasttx.models.padding import decision as padding_free

LENGTH = 11
LENS = (11, 4, 7)
PAD = 1
"""The padding token of a tiny model."""


def bare(cls: str = "BertModel", unpad: bool | str | None = "auto", **changes: Any) -> Any:
    model = zoo.tiny_model(zoo.BERT, cls, **changes)
    if unpad is not None:
        fasttx.patch(model, unpad=unpad)
    return model


def batch(*lengths: int, seqlen: int = LENGTH, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, zoo.VOCAB, (len(lengths), seqlen), generator=generator)
    mask = torch.arange(seqlen) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.where(mask, ids, PAD), "attention_mask": mask.long()}


def masked(mask: Tensor) -> dict[str, Tensor]:
    """A batch with a mask (3, LENGTH) of any form; where it is 0 there is the padding token."""
    ids = batch(LENGTH, LENGTH, LENGTH)["input_ids"]
    return {"input_ids": torch.where(mask != 0, ids, PAD), "attention_mask": mask}


def layer_inputs(model: Any) -> list[tuple[int, ...]]:
    """A list to which each call of the first layer will add the shape of its hidden states."""
    shapes: list[tuple[int, ...]] = []
    zoo.before(zoo.layers_of(model)[0], lambda args: shapes.append(tuple(args[0].shape)))
    return shapes


def hidden_and_gradients(model: Any, inputs: dict[str, Any], real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The hidden states of real tokens, and the gradients of a random combination of them."""
    model.zero_grad(set_to_none=True)
    hidden = model(**inputs).last_hidden_state
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(5)).to(hidden.dtype)
    # not hidden[real].sum(): a NaN at padding must not hide in the gradients either
    torch.where(real[..., None], hidden * weight, torch.zeros_like(hidden)).sum().backward()
    return hidden[real], {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_like_transformers(model: Any, inputs: dict[str, Any], real: Tensor) -> None:
    """The accuracy rule at real tokens, for a patched model; float64 and unpatched models see the same inputs."""
    plain = copy.deepcopy(model)
    fasttx.unpatch(plain)
    want64, grads64 = hidden_and_gradients(zoo.double_of(plain), zoo.to_double(inputs), real)
    want, grads = hidden_and_gradients(plain, inputs, real)
    got, found = hidden_and_gradients(model, inputs, real)
    assert_as_accurate(got, want, want64, "hidden states")
    assert_gradients_as_accurate(found, grads, grads64)


# ------------------------------------------------------------------------------------------------------ when it packs


@pytest.mark.parametrize("unpad", ["auto", True, False])
def test_layers_see_real_tokens_only(unpad: bool | str) -> None:
    model = bare(unpad=unpad)
    seen = layer_inputs(model)
    hidden = model(**batch(*LENS)).last_hidden_state
    assert seen == ([(3, 11, 32)] if unpad is False else [(1, 22, 32)])
    assert hidden.shape == (3, 11, 32)
    if unpad is not False:
        assert hidden[1, 4:].eq(0).all() and hidden[1, :4].ne(0).any()


@pytest.mark.parametrize(("lengths", "auto", "always"), [((11, 11), False, False), ((32, 31), False, True)])
def test_batches_that_do_not_pay_stay_padded(lengths: tuple[int, ...], auto: bool, always: bool) -> None:
    inputs = batch(*lengths, seqlen=max(lengths))
    for unpad, packed in (("auto", auto), (True, always)):
        model = bare(unpad=unpad)
        seen = layer_inputs(model)
        masks: list[Any] = []
        zoo.before(model.encoder.layer[1], lambda args, masks=masks: masks.append(args[1]))
        model(**inputs)
        assert (seen[0][0] == 1) is packed, unpad
        if min(lengths) == max(lengths):
            assert masks == [None]  # a full batch needs no mask, which costs attention's fastest path


def test_enough_padding_is_a_32nd() -> None:
    model = bare()
    seen = layer_inputs(model)
    model(**batch(16, 15, seqlen=16))  # just a 32nd
    model(**batch(16, 14, seqlen=16))
    model(**batch(21, 20, 20, seqlen=21))  # between a 32nd and a 31st
    assert seen == [(2, 16, 32), (1, 30, 32), (1, 61, 32)]


def test_on_a_cpu_enough_has_to_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence costs attention a call there; against that stands what a padded token costs."""
    saved = 11 * 32 * (12 * 32 + 4 * 11 + 500)  # 11 padded tokens, width 32, 11 tokens a row
    for least, shape in ((saved, (1, 22, 32)), (saved + 1, (3, 11, 32))):
        monkeypatch.setattr(padding_free, "WORTH_IT_ON_CPU", least)
        model = bare()
        seen = layer_inputs(model)
        model(**batch(11, 4, 7))
        assert seen == [shape]
        always = bare(unpad=True)
        seen = layer_inputs(always)
        always(**batch(11, 4, 7))
        assert seen == [(1, 22, 32)]


# --------------------------------------------------------------------------------------------------------------- masks

MASKS: dict[str, tuple[str, bool, bool]] = {  # rows of tokens; packed under "auto", under True
    "right": ("11111111111 11110000000 11111110000", True, True),
    "holes": ("11110111101 10000000001 11010110000", True, True),
    "left": ("11111111111 00000001111 00001111111", False, True),
    "both_sides": ("11111111111 00011110000 11111110000", False, True),
    "empty_row": ("11111111111 00000000000 11111110000", False, True),
    "single_tokens": ("10000000000 10000000000 10000000000", True, True),
}


def mask_of(rows: str) -> Tensor:
    return torch.tensor([[int(c) for c in row] for row in rows.split()])


@pytest.mark.parametrize("unpad", ["auto", True])
@pytest.mark.parametrize("name", list(MASKS))
def test_masks(name: str, unpad: bool | str) -> None:
    rows, auto, always = MASKS[name]
    mask = mask_of(rows)
    model = bare(unpad=unpad)
    inputs = masked(mask)
    assert_like_transformers(model, inputs, mask.bool())
    seen = layer_inputs(model)
    model(**inputs)
    assert seen == [(1, int(mask.sum()), 32) if (auto if unpad == "auto" else always) else (3, 11, 32)]


def test_first_positions_of_left_padded_rows_are_transformers_own() -> None:
    """Poolers read them: padding or not."""
    inputs = masked(mask_of(MASKS["left"][0]))
    want, got = bare(unpad=None)(**inputs), bare()(**inputs)
    torch.testing.assert_close(got.last_hidden_state[:, 0], want.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.pooler_output, want.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unpad", ["auto", True])
def test_nothing_but_padding(unpad: bool | str) -> None:
    """Transformers' layers cannot run on no token at all."""
    model = bare(unpad=unpad)
    seen = layer_inputs(model)
    hidden = model(**batch(0, 0)).last_hidden_state
    assert seen == [(2, 11, 32)]
    assert hidden.isfinite().all()
    hidden.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())


@pytest.mark.parametrize("shape", [(0, 11), (0, 0), (2, 0)])
def test_no_positions_at_all(shape: tuple[int, int]) -> None:
    """Layers of transformers refuse them; the encoder around them need not."""
    model = bare()
    model.encoder.layer = nn.ModuleList()
    mask = torch.ones(shape, dtype=torch.long)
    assert model.encoder(torch.zeros(*shape, 32), attention_mask=mask).last_hidden_state.shape == (*shape, 32)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_dtypes_of_masks(dtype: torch.dtype) -> None:
    model, inputs = bare(), batch(*LENS)
    want = model(**inputs).last_hidden_state
    seen = layer_inputs(model)
    got = model(**inputs | {"attention_mask": inputs["attention_mask"].to(dtype)}).last_hidden_state
    assert torch.equal(got, want) and seen == [(1, 22, 32)]


def test_any_number_but_zero_marks_a_token() -> None:
    """Called directly: models make a bool mask of theirs."""
    encoder, mask = bare().encoder, batch(*LENS)["attention_mask"]
    hidden = torch.randn(3, 11, 32)
    want = encoder(hidden, mask).last_hidden_state
    mask[:, :3] *= torch.tensor([5, -1, 2])
    assert torch.equal(encoder(hidden, mask).last_hidden_state, want)
    assert torch.equal(encoder(hidden, mask, seq_lens=list(LENS)).last_hidden_state, want)


def test_a_mask_for_each_query_runs_padded() -> None:
    model, inputs = bare(), batch(*LENS)
    real = inputs["attention_mask"].bool()
    inputs["attention_mask"] = real[:, None, None, :].expand(3, 1, 11, 11) & torch.ones(11, 11).tril().bool()
    assert_like_transformers(model, inputs, real)
    seen = layer_inputs(model)
    model(**inputs)
    assert seen == [(3, 11, 32)]


def test_random_masks() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(deadline=None, max_examples=25)
    @hypothesis.given(st.integers(1, 4), st.integers(1, 9), st.data(), st.sampled_from(["auto", True]))
    def holds(rows: int, seqlen: int, data: Any, unpad: bool | str) -> None:
        mask = torch.tensor(
            data.draw(st.lists(st.lists(st.booleans(), min_size=seqlen, max_size=seqlen), min_size=rows, max_size=rows))
        )
        hypothesis.assume(
            not mask.any() or mask.sum(1).max() > 1
        )  # alone, a token's query has no gradient but rounding
        model = bare(unpad=unpad, num_hidden_layers=1, hidden_size=16, num_attention_heads=2)
        ids = batch(*[seqlen] * rows, seqlen=seqlen, seed=data.draw(st.integers(0, 99)))["input_ids"]
        inputs = {"input_ids": torch.where(mask, ids, PAD), "attention_mask": mask}
        assert_like_transformers(model, inputs, mask)

    holds()


# ------------------------------------------------------------------------------------------------------- other inputs


def test_embeddings_positions_and_types() -> None:
    model, inputs = bare(), batch(*LENS)
    real = inputs["attention_mask"].bool()
    positions = torch.arange(LENGTH).flip(0).expand(3, LENGTH)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    inputs |= {"inputs_embeds": embeds, "position_ids": positions, "token_type_ids": positions % 2}
    seen = layer_inputs(model)
    assert_like_transformers(model, inputs, real)
    assert seen[-1] == (1, 22, 32)


def test_positions_that_roberta_counts_from_the_ids() -> None:
    """Real tokens that carry the id of padding get the position of padding: embeddings run before packing."""
    roberta = next(family for family in zoo.FAMILIES if family.model_type == "roberta")
    model = zoo.tiny_model(roberta, "RobertaModel")
    inputs = batch(*LENS)
    inputs["input_ids"][0, 2:4] = inputs["input_ids"][2, 1] = model.config.pad_token_id
    fasttx.patch(model)
    seen = layer_inputs(model)
    assert_like_transformers(model, inputs, inputs["attention_mask"].bool())
    assert seen[-1] == (1, 22, 32)


def test_flattened_batch_equals_the_padded_one() -> None:
    """What transformers' own collator packs is left as it is, and the answer is that of a padded batch."""
    from transformers import DataCollatorWithFlattening

    model, inputs = bare("BertForTokenClassification"), batch(*LENS)
    real = inputs["attention_mask"].bool()
    rows = [{"input_ids": ids[keep].tolist()} for ids, keep in zip(inputs["input_ids"], real)]
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    flat = {name: value for name, value in collate(rows).items() if name != "labels"}
    want = model(**inputs).logits[real]
    seen = layer_inputs(model)
    torch.testing.assert_close(model(**flat).logits[0], want, rtol=1e-4, atol=1e-5)
    assert seen == [(1, 22, 32)]
