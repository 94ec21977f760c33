"""Question answering, the one loss of transformers to which padding contributes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import model_zoo as zoo
from models.test_padding_free import LENS, batch, layer_inputs
from torch import Tensor

import fasttx
from fasttx.models.padding.decision import STAY_PADDED

CLS = "BertForQuestionAnswering"
ANSWERS = {"start_positions": torch.tensor([3, 1, 2]), "end_positions": torch.tensor([10, 3, 6])}


def model_with(**options: Any) -> Any:
    model = zoo.tiny_model(zoo.BERT, CLS)
    if options:
        fasttx.patch(model, **options)
    return model


def padded_to(seqlen: int, side: str = "right") -> dict[str, Tensor]:
    """The same rows in each length; positions count from the first real token."""
    inputs = batch(*LENS)
    more = seqlen - inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], 1)
    ids = torch.nn.functional.pad(inputs["input_ids"], (0, more), value=1)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, more))
    positions = torch.arange(seqlen).expand(3, seqlen)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    answers = dict(ANSWERS)
    if side == "left":
        shift = torch.tensor([seqlen - length for length in LENS])
        at = (positions - shift[:, None]) % seqlen
        inputs = {name: value.gather(1, at) for name, value in inputs.items()}
        answers = {name: value + shift for name, value in answers.items()}
    return inputs | answers


def loss64(inputs: dict[str, Tensor]) -> Tensor:
    """A softmax over real tokens, in float64, on logits of the unpatched model."""
    output = zoo.double_of(model_with())(**{name: t for name, t in inputs.items() if name not in ANSWERS})
    real, losses = inputs["attention_mask"].bool(), []
    for name in ("start", "end"):
        for row, keep, at in zip(output[f"{name}_logits"], real, inputs[f"{name}_positions"], strict=True):
            if 0 <= at < len(row) and keep[at]:
                losses.append((row[keep].logsumexp(0) - row[at], name))
    means = [torch.stack([loss for loss, n in losses if n == name]).mean() for name in ("start", "end")]
    return (means[0] + means[1]) / 2


@pytest.mark.parametrize("unpad", ["auto", True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_takes_no_part_in_the_softmax(side: str, unpad: bool | str) -> None:
    model = model_with(unpad=unpad)
    for seqlen in (11, 16):
        inputs = padded_to(seqlen, side)
        loss = model(**inputs).loss
        torch.testing.assert_close(loss.double(), loss64(inputs), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss.double(), loss64(padded_to(11)), rtol=1e-5, atol=1e-6)
        if side == "right":
            lengths_alone = {name: value for name, value in inputs.items() if name != "attention_mask"}
            if unpad is not False:
                torch.testing.assert_close(model(**lengths_alone, seq_lens=list(LENS)).loss, loss)


@pytest.mark.parametrize("seqlen", [11, 16])
def test_an_answer_in_the_padding_is_ignored(seqlen: int) -> None:
    model, inputs = model_with(unpad="auto"), padded_to(seqlen)
    inputs["start_positions"] = torch.tensor([3, 4, 2])  # row 1 has four tokens
    inputs["end_positions"] = torch.tensor([10, 9, 99])
    torch.testing.assert_close(model(**inputs).loss.double(), loss64(inputs), rtol=1e-5, atol=1e-6)


def test_any_number_but_zero_marks_a_token() -> None:
    model, inputs = model_with(unpad="auto"), padded_to(16)
    want = model(**inputs).loss
    torch.testing.assert_close(model(**inputs | {"attention_mask": 5 * inputs["attention_mask"]}).loss, want)


@pytest.mark.parametrize("rows", [3, 1])
def test_positions_with_the_dimension_of_data_parallel(rows: int) -> None:
    model, inputs = model_with(unpad="auto"), {name: value[:rows] for name, value in padded_to(16).items()}
    want = model(**inputs).loss
    inputs |= {name: inputs[name][:, None] for name in ANSWERS}
    torch.testing.assert_close(model(**inputs).loss, want)


def test_a_negative_position_is_the_first_as_in_transformers() -> None:
    inputs = padded_to(11)
    inputs["start_positions"] = torch.tensor([0, 1, 2])
    model = model_with(unpad="auto")
    want = model(**inputs).loss
    torch.testing.assert_close(model(**inputs | {"start_positions": torch.tensor([-5, 1, 2])}).loss, want)


def test_a_mask_for_each_query_says_nothing_about_the_softmax() -> None:
    inputs = padded_to(11)
    keys = inputs["attention_mask"].bool()[:, None, None].expand(3, 1, 11, 11)
    inputs["attention_mask"] = keys
    torch.testing.assert_close(model_with(unpad="auto")(**inputs).loss, model_with()(**inputs).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_of_nothing_but_padding(dtype: torch.dtype) -> None:
    """It has no answer, and adds nothing, not even a NaN, to the gradients of the others."""
    model, inputs = model_with(unpad="auto").to(dtype), padded_to(16)
    want = model(**{name: value[[0, 2]] for name, value in inputs.items()}).loss
    inputs["attention_mask"][1] = 0
    loss = model(**inputs).loss
    torch.testing.assert_close(loss, want, rtol=max(1e-5, 8 * torch.finfo(dtype).eps), atol=1e-6)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_no_answer_at_all() -> None:
    model, inputs = model_with(unpad="auto"), padded_to(16)
    inputs["start_positions"] = inputs["end_positions"] = torch.tensor([15, 15, 15])
    loss = model(**inputs).loss
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.parameters())


@pytest.mark.parametrize("lengths", [None, list(LENS)], ids=["mask", "lengths"])
def test_hf_is_transformers_with_its_padding(lengths: list[int] | None) -> None:
    inputs = padded_to(16)
    want, model = model_with()(**inputs), model_with(loss="hf")
    seen = layer_inputs(model)
    got = model(**inputs, **({} if lengths is None else {"seq_lens": lengths}))
    assert seen == [(3, 16, 32)]
    torch.testing.assert_close(got.loss, want.loss)
    assert (want.loss.double() - loss64(inputs)).abs() > 1e-3  # padding does contribute there
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.start_logits[real], want.start_logits[real], rtol=1e-4, atol=1e-4)
    without = {name: value for name, value in inputs.items() if name not in ANSWERS}
    model(**without)
    assert seen[-1] == (1, 22, 32)  # nobody asked for a loss


def test_hf_packs_under_the_other_heads() -> None:
    model = zoo.tiny_model(zoo.BERT, "BertForTokenClassification")
    inputs = zoo.inputs_for(zoo.BERT, "BertForTokenClassification")
    want = model(**inputs).loss
    fasttx.patch(model, loss="hf")
    seen = layer_inputs(model)
    torch.testing.assert_close(model(**inputs).loss, want)
    assert seen == [(1, sum(zoo.LENGTHS), 32)]


@pytest.mark.parametrize("options", [{}, {"unpad": False}, {"attention": False}], ids=str)
def test_layers_get_no_argument_of_ours(options: dict[str, Any]) -> None:
    model, inputs = model_with(loss="hf", **options), padded_to(16)
    names: set[str] = set()
    model.bert.encoder.layer[0].register_forward_pre_hook(
        lambda _, args, kwargs: names.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    if not options:
        model(**inputs, seq_lens=list(LENS))
    assert not names & {STAY_PADDED, "seq_lens"}
