"""A token that the mask hides and that is no padding: its output is wanted, and the batch runs padded."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_padding_free import LENS, PAD, bare, batch, layer_inputs
from torch import Tensor

import fasttx
from fasttx.models.families.family import Family
from fasttx.models.padding.encoder import Encoder

MASK = 5
"""The id that fills up ColBERT's queries."""
PACKED = [family for family in zoo.TEXT_FAMILIES if family.roles(Encoder)]
by_family = pytest.mark.parametrize("family", PACKED, ids=lambda family: family.name)


def expanded() -> dict[str, Tensor]:
    """Queries of ColBERT: filled up with [MASK], which no token attends to, and whose outputs are scored."""
    inputs = batch(*LENS)
    return inputs | {"input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, MASK)}


def ran(model: Any, inputs: dict[str, Tensor]) -> set[str]:
    """How the encoder ran a batch."""
    return {found.choice for found, _ in fasttx.explain(model, inputs).rows if found.what == "padded batch"}


def score(queries: Tensor, documents: Tensor) -> Tensor:
    """ColBERT's: for each position of a query, masked ones included, the nearest of a document, summed."""
    queries, documents = (torch.nn.functional.normalize(t, dim=-1) for t in (queries, documents))
    return torch.einsum("qnd,kmd->qknm", queries, documents).amax(-1).sum(-1)


@by_family
def test_query_expansion(family: Family) -> None:
    plain, model = (zoo.tiny_model(family, family.bare) for _ in range(2))
    fasttx.patch(model)
    documents, queries = torch.randn(2, 9, 32), expanded()
    with pytest.warns(UserWarning) as given:
        got = model(**queries).last_hidden_state
        again = model(**queries).last_hidden_state
    (warning,) = [str(w.message) for w in given if "attention_mask" in str(w.message)]
    assert f"of id {MASK}," in warning and f"padding token is {PAD}:" in warning and "unpad=True" in warning
    assert torch.equal(got, again) and ran(model, queries) == {"padded"}
    want = plain(**queries).last_hidden_state
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score(got, documents), score(want, documents), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ran(model, batch(*LENS)) == {"real tokens only"}


@pytest.mark.parametrize("cls", ["BertForMaskedLM", "BertForTokenClassification"])
@pytest.mark.parametrize("training", [False, True])
def test_heads_ask_too(cls: str, training: bool) -> None:
    model, inputs = bare(cls).train(training), expanded()
    seen = layer_inputs(model)
    with pytest.warns(UserWarning, match=f"tokens of id {MASK}"):
        model(**inputs, labels=torch.where(inputs["attention_mask"] == 1, inputs["input_ids"] % 3, -100))
    assert seen == [(3, 11, 32)]


def test_random_masking() -> None:
    """Some tokens hidden by a mask of one's own; the highest id among them is named."""
    inputs = batch(11, 11, 11)
    inputs["attention_mask"] = (torch.rand(3, 11, generator=torch.Generator().manual_seed(0)) < 0.6).long()
    inputs["attention_mask"][:, 0] = 1
    highest = int(inputs["input_ids"][inputs["attention_mask"] == 0].max())
    model = bare()
    seen = layer_inputs(model)
    with pytest.warns(UserWarning, match=f"tokens of id {highest}, and the padding token is {PAD}"):
        got = model(**inputs).last_hidden_state
    assert seen == [(3, 11, 32)]
    torch.testing.assert_close(got, bare(unpad=None)(**inputs).last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_padding_by_the_end_of_text(known: bool) -> None:
    """tokenizer.pad_token = tokenizer.eos_token: the model has to know it, or be told that it is padding."""
    eos = 7
    model = bare(unpad=None)
    if known:
        model.config.pad_token_id = eos
    inputs = batch(*LENS)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, eos)
    fasttx.patch(model)
    seen = layer_inputs(model)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        model(**inputs)
    assert seen == [(1, 22, 32) if known else (3, 11, 32)]
    assert [f"tokens of id {eos}, and the padding token is {PAD}" in str(w.message) for w in given] == [True] * (
        not known
    )


def _by_embeddings(model: Any, inputs: dict[str, Any]) -> None:
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()


def _without_padding_token(model: Any, inputs: dict[str, Any]) -> None:
    model.config.pad_token_id = None


def _with_lengths(model: Any, inputs: dict[str, Any]) -> None:
    inputs["seq_lens"] = LENS


def _always(model: Any, inputs: dict[str, Any]) -> None:
    fasttx.patch(model, unpad=True)


@pytest.mark.parametrize("change", [_by_embeddings, _without_padding_token, _with_lengths, _always])
def test_not_asked(change: Any) -> None:
    """Where there are no ids or no padding token to compare with, and where the caller has said it."""
    model, inputs = bare(), expanded()
    change(model, inputs)
    seen = layer_inputs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hidden = model(**inputs).last_hidden_state
    assert seen == [(1, 22, 32)] and bool((hidden[1, 4:] == 0).all())


@pytest.mark.parametrize("family", PACKED[:1] + [f for f in PACKED if f.name == "MPNet"], ids=lambda f: f.name)
def test_no_further_wait(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hidden travels with the lengths: tensors are read as often as without it."""
    reads: list[str] = []
    for name in ("tolist", "item", "__bool__", "__int__", "nonzero"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda t, *a, _n=name, _f=real, **k: (reads.append(_n), _f(t, *a, **k))[1])
    counts = []
    left = {name: t.flip(1) for name, t in batch(*LENS).items()}  # padded too, but for where it begins
    for inputs in (left, expanded()):
        model = zoo.tiny_model(family, family.bare)
        fasttx.patch(model)
        reads.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(**inputs)
        counts.append(Counter(reads))
    assert counts[0] == counts[1] and counts[0]["tolist"] == 1


def test_a_batch_that_stays_padded_anyway_warns_of_nothing() -> None:
    inputs = expanded()
    inputs["attention_mask"][:, 0] = 0  # a row begins with padding
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare()(**inputs)


def test_a_call_inside_a_call_and_one_that_fails_leave_nothing_behind() -> None:
    """An encoder called by itself does not see the ids of an earlier call of its model."""
    model, inputs = bare(), expanded()
    with pytest.raises(ValueError, match="input: "):
        model(inputs["input_ids"] + 1000, attention_mask=inputs["attention_mask"])
    seen = layer_inputs(model)
    model.encoder(torch.randn(3, 11, 32), attention_mask=inputs["attention_mask"])
    assert seen == [(1, 22, 32)]


def test_positional_ids_and_objects_that_were_copied() -> None:
    inputs = expanded()
    for copied in (copy.deepcopy(bare()), pickle.loads(pickle.dumps(bare()))):
        seen = layer_inputs(copied)
        with pytest.warns(UserWarning, match=f"tokens of id {MASK}"):
            copied(inputs["input_ids"], inputs["attention_mask"])
        assert seen == [(3, 11, 32)]


@by_family
def test_hidden_states_and_attentions_are_still_returned(family: Family) -> None:
    """transformers looks up by a model's class what it may record of its layers."""
    model, inputs = zoo.tiny_model(family, family.bare), batch(*LENS)
    model.set_attn_implementation("eager")
    want = model(**inputs, output_hidden_states=True, output_attentions=True)
    fasttx.patch(model, attention=True)
    got = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(got.hidden_states) == len(want.hidden_states) > 1 and len(got.attentions) == len(want.attentions) > 0
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.hidden_states[1][real], want.hidden_states[1][real], rtol=1e-4, atol=1e-4)


def test_the_report_says_what_becomes_of_padding() -> None:
    model = bare(unpad=None)
    (row,) = [row for row in fasttx.patch(model).rows if row.before == "padded batch"]
    assert row.reason.startswith("positions of padding are 0; unpad=False keeps them")
    fasttx.unpatch(model)
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    (row,) = [row for row in fasttx.patch(model).left_alone if row.before == "tokens that the mask hides"]
    assert "its forward was replaced" in row.reason
